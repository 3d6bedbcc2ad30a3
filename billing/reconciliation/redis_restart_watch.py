"""When the books are to be checked out of turn: Redis restarted, was replaced, or lost its data.

A Redis that comes back may have forgotten its newest settlements (``appendfsync everysec``, a
replica that was late). Their events are in the log, or come there with the journals; the balances
that forgot them would let so much be spent once more, until somebody compares. So that is not left
to the hourly check.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from billing.core.clock import Clock, format_instant, parse_instant
from billing.core.errors import InvalidValue

WHILE: Final = timedelta(seconds=90)
"""So long after a new life of Redis was first seen, every asking is answered by yes: the journals
are published again within seconds, and what they bring has to be logged first."""


class RedisRestartWatch:
    """Remembers, for one node, which life of Redis's data it saw last, and since when.

    Args:
        generation: Names this life (``billing.transport.outbox.Outbox.generation``).
        file: Where it is remembered.
        clock: The time.
    """

    def __init__(self, generation: Callable[[], str], file: Path, clock: Clock) -> None:
        self._generation = generation
        self._file = file
        self._clock = clock

    def is_due(self) -> bool:
        """Whether the books are to be checked now; no reason for a node that never asked before.

        Raises:
            OutboxUnavailable: Redis does not answer, so it cannot be said.
            OSError: It cannot be remembered on this node's disk.
        """
        now = self._clock.now()
        generation = self._generation()
        remembered = self._remembered()
        if remembered is None:
            self._remember(generation, now - WHILE)
            return False
        known, since = remembered
        if known != generation:
            self._remember(generation, now)
            return True
        return now - since < WHILE

    def _remembered(self) -> tuple[str, datetime] | None:
        try:
            since, _, generation = self._file.read_text("utf-8").partition(" ")
            return generation, parse_instant(since, field="since")
        except (FileNotFoundError, UnicodeDecodeError, InvalidValue):
            return None

    def _remember(self, generation: str, since: datetime) -> None:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{format_instant(since)} {generation}", "utf-8")
        draft.replace(self._file)
