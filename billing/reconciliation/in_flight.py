"""Usage between outbox and log, and usage that was lost there: charged and nowhere any more.

The node's journal has a second copy of what went into the outbox during the last minutes. What is
in it, and neither in the outbox nor in the log, was lost on the way, once the queue is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.core.usage_event import UsageEvent
from billing.redis.keys import SHARDS
from billing.transport.journal import Journal
from billing.transport.outbox import RedisOutbox

_CHUNK: Final = 1000
_PAGE: Final = 500
_LOGGED: Final = sa.text("SELECT id FROM usage_events WHERE id = ANY(CAST(:ids AS uuid[]))")


class InFlightUsage:
    """Events of this node and of the outbox that have not reached the log.

    Args:
        engine: Any that may read the log.
        outbox: Of all nodes.
        journal: This node's.
        depth: Messages waiting in the usage queue; None where that cannot be known.
    """

    def __init__(
        self,
        engine: Engine,
        outbox: RedisOutbox,
        journal: Journal,
        depth: Callable[[], int | None],
    ) -> None:
        self._engine = engine
        self._outbox = outbox
        self._journal = journal
        self.depth = depth

    def waiting(self, customer: str | None = None) -> Iterator[UsageEvent]:
        """Read the events in the outbox, of one customer or of all.

        Raises:
            OutboxUnavailable: Redis did not answer.
        """
        for shard in range(SHARDS):
            for entry in self._outbox.everything(shard, page=_PAGE):
                if customer is None or entry.event.customer == customer:
                    yield entry.event

    def missing(self) -> list[UsageEvent]:
        """Find events of this node's journal that are neither in the outbox nor in the log.

        Empty while anything is in the usage queue: the event may be just there. Events move from
        journal and outbox over the queue to the log, and are looked for in that order, so that one
        that moves on meanwhile is found further on.

        Raises:
            OutboxUnavailable: Redis did not answer.
        """
        kept = {event.id: event for event in self._journalled()}
        if not kept or self.depth() != 0:
            return []
        on_the_way = {event.id for event in self.waiting()}
        candidates = [event for event in kept.values() if event.id not in on_the_way]
        # Between the outbox and the log it is in the queue, or with a consumer that has not
        # committed: the second look at the queue is after the one at the outbox.
        logged = self._logged([event.id for event in candidates])
        if self.depth() != 0:
            return []
        return [event for event in candidates if event.id not in logged]

    def _journalled(self) -> Iterator[UsageEvent]:
        for segment in self._journal.segments():
            try:
                yield from self._journal.read(segment).events
            except FileNotFoundError:
                continue

    def _logged(self, ids: Sequence[UUID]) -> set[UUID]:
        found: set[UUID] = set()
        with self._engine.connect() as connection:
            for start in range(0, len(ids), _CHUNK):
                chunk = list(ids[start : start + _CHUNK])
                found.update(connection.execute(_LOGGED, {"ids": chunk}).scalars())
        return found
