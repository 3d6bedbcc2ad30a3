"""After Redis lost data: publish again what this node had put into the outbox.

Which events were lost nobody can say, so all that the journal still has are sent; the log drops
those that it has already.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from billing.core.clock import Clock, from_ms
from billing.transport.journal import Journal
from billing.transport.outbox import RedisOutbox
from billing.transport.publishers import Publisher

_log = structlog.get_logger(__name__)

CHECK_SECONDS: Final = 0.5
AGAIN_SECONDS: Final = 5.0
"""A task settles in Redis first and writes its journal line next; a line that comes this long after
Redis was found to have lost data is still sent."""
RETAIN: Final = timedelta(minutes=5)


class Replay:
    """Watches the outbox's generation and republishes the journal when it changes.

    The generation that this node last saw is kept in a file beside the journal, so that a loss
    while no relay ran is noticed as well. Several relays of one node may do this at once; that
    only repeats events.

    Args:
        outbox: Whose generation is watched.
        publisher: Where lost events go.
        journal: This node's journal.
        clock: Tells the age of segments.
        batch: The most events given to one ``publish``.
        monotonic: Seconds that only grow.
    """

    def __init__(
        self,
        outbox: RedisOutbox,
        publisher: Publisher,
        journal: Journal,
        *,
        clock: Clock,
        batch: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._journal = journal
        self._clock = clock
        self._batch = batch
        self._monotonic = monotonic
        self._file = journal.directory / "generation"
        self._next_check = monotonic()
        self._first_pass: tuple[str, float] | None = None

    def check(self) -> int:
        """Republish the journal if the outbox's data is another life's. Twice, seconds apart.

        Returns:
            How many events were confirmed.

        Raises:
            OutboxUnavailable: Redis does not answer, so it cannot be said.
            PublishFailed: RabbitMQ did not confirm; the next check begins again.
            OSError: The journal cannot be read.
        """
        if self._monotonic() < self._next_check:
            return 0
        self._next_check = self._monotonic() + CHECK_SECONDS
        generation = self._outbox.generation()
        if generation == self._remembered():
            self._first_pass = None
            return 0
        if self._first_pass is None or self._first_pass[0] != generation:
            return self._begin(generation)
        if self._monotonic() < self._first_pass[1] + AGAIN_SECONDS:
            return 0
        confirmed = self._publish_all()
        self._remember(generation)
        self._first_pass = None
        _log.info("journal_replayed", events=confirmed, money="the log drops duplicates")
        return confirmed

    def prune(self) -> int:
        """Delete segments that cannot be needed any more.

        Kept are five minutes, and whatever is as young as the oldest event still in the outbox.
        Nothing is deleted while a loss of data has not been made good.

        Returns:
            How many segments were deleted.
        """
        # In this order: had the data been lost before the first answer, the second would say so.
        oldest_ms = self._outbox.oldest_ms()
        if self._outbox.generation() != self._remembered():
            return 0
        return self._journal.prune(self._needed_from(oldest_ms))

    def _needed_from(self, oldest_ms: int | None) -> datetime:
        young = self._clock.now() - RETAIN
        # The outbox's age is by Redis's clock, segments are named by this machine's.
        return young if oldest_ms is None else min(young, from_ms(oldest_ms) - timedelta(minutes=1))

    def _begin(self, generation: str) -> int:
        if not self._journal.segments() and self._remembered() is None:
            # A node that has put nothing into the outbox yet has lost nothing.
            self._remember(generation)
            return 0
        if self._first_pass is None and self._remembered() is None:
            _log.info(
                "journal_published_once",
                money="this node's relay meets this Redis for the first time; what the journal "
                "has is published again, and the log drops duplicates",
            )
        elif self._first_pass is None:
            _log.warning(
                "redis_lost_data",
                generation=generation,
                remembered=self._remembered(),
                money="Redis restarted or lost its data; usage events not yet published may be "
                "gone from the outbox. All that this node's journal has are published again; the "
                "log drops duplicates",
                remedy="none for these events; find out why Redis lost data",
            )
        confirmed = self._publish_all()
        self._first_pass = (generation, self._monotonic())
        return confirmed

    def _publish_all(self) -> int:
        confirmed = 0
        for segment in self._journal.segments():
            try:
                events = self._journal.read(segment).events
            except FileNotFoundError:
                continue
            for start in range(0, len(events), self._batch):
                self._publisher.publish(events[start : start + self._batch])
            confirmed += len(events)
        return confirmed

    def _remembered(self) -> str | None:
        try:
            return self._file.read_text()
        except FileNotFoundError:
            return None

    def _remember(self, generation: str) -> None:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        written = self._file.with_suffix(f".{os.getpid()}")
        written.write_text(generation)
        written.replace(self._file)
