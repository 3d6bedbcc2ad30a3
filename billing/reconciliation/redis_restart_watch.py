"""A watch for restarts of Redis, after which balances are checked out of turn.

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

CHECK_FOR: Final = timedelta(seconds=90)
"""Keep requesting balance checks for this long after Redis restarts: journals are republished
within seconds and must reach the log before a check means anything."""


class RedisRestartWatch:
    """Remembers, for one node, which generation of Redis's data it saw last, and since when.

    Args:
        generation: Names the present one (``billing.transport.outbox.RedisOutbox.generation``).
        file: Keeps it.
        clock: The time.
    """

    def __init__(self, generation: Callable[[], str], file: Path, clock: Clock) -> None:
        self._generation = generation
        self._file = file
        self._clock = clock

    def is_due(self) -> bool:
        """Decide whether balances are to be checked now; never at a node's first call.

        Raises:
            OutboxUnavailable: Redis does not answer.
            OSError: This node's disk cannot keep the generation.
        """
        now = self._clock.now()
        generation = self._generation()
        remembered = self._remembered()
        if remembered is None:
            self._remember(generation, now - CHECK_FOR)
            return False
        known, since = remembered
        if known != generation:
            self._remember(generation, now)
            return True
        return now - since < CHECK_FOR

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
