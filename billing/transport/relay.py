"""The relay: takes usage events from the outbox to RabbitMQ, and removes what was confirmed.

It runs as a thread in every worker's main process, and alone (``billing relay``). It may die at any
instruction: an event leaves the outbox only after its confirm, so the worst is a duplicate.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from billing.core import failpoints
from billing.core.clock import Clock, to_ms
from billing.core.errors import PublishFailed, WeighbridgeError
from billing.transport.journal import Journal
from billing.transport.journal_replay import Replay
from billing.transport.outbox import OutboxUnavailable, RedisOutbox
from billing.transport.publishers import Publisher

_log = structlog.get_logger(__name__)

LEASE_MS: Final = 10_000
"""Longer than a publish may take by default; leases are renewed at a third of it. A shorter one
makes duplicates, which the log drops."""
_CLAIM_SECONDS: Final = 3.0
"""Nor are they renewed more rarely: what another relay gave back must not wait."""
IDLE_SECONDS: Final = (0.02, 0.25)
GATHER_SECONDS: Final = 0.2
"""After a turn that found few events: a turn costs the same for one and for fifty."""
FAILURE_SECONDS: Final = (0.2, 5.0)
_PRUNE_SECONDS: Final = 30.0

_TROUBLES: Final = {
    PublishFailed: (
        "relay_cannot_publish",
        "usage is charged and safe in the outbox or the spool, but not in the log yet",
        "see that RabbitMQ runs, has no alarm, takes these credentials; the relay goes on trying",
    ),
    OutboxUnavailable: (
        "relay_cannot_read_outbox",
        "no balance can be checked either; settled usage is published directly or spooled",
        "see that Redis runs and answers in time; the relay goes on trying",
    ),
    Exception: (
        "relay_failed",
        "usage is charged and waits in the outbox",
        "this is a defect: report it with the traceback; the relay goes on trying",
    ),
}


@dataclass(frozen=True, slots=True)
class RelayLag:
    """What waits to be published. ``spool_segments`` are files of this node."""

    outbox_events: int
    oldest_seconds: float
    spool_segments: int
    unreadable_events: int


class Relay:
    """Moves events from the outbox and the node's spool to the publisher.

    Args:
        outbox: Where settled events wait.
        publisher: Used by this relay's thread.
        journal: This node's journal; published again when Redis lost data, else pruned.
        spool: This node's spool; drained always.
        owner: A name for this relay's leases, of its own among all relays.
        batch: The most events published before their confirms are waited for.
        clock: For the ages in ``lag`` and of journal segments.
        settle_abandoned: Settles the leases of this node's dead processes; returns how many runs.
        lease_ms: How long this relay's shards wait for another when it dies.
        monotonic: Seconds that only grow.
    """

    def __init__(
        self,
        outbox: RedisOutbox,
        publisher: Publisher,
        journal: Journal,
        spool: Journal,
        *,
        owner: str,
        batch: int,
        clock: Clock,
        settle_abandoned: Callable[[], int] = int,
        lease_ms: int = LEASE_MS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._spool = spool
        self._owner = owner
        self._batch = batch
        self._clock = clock
        self._settle_abandoned = settle_abandoned
        self._lease_ms = lease_ms
        self._monotonic = monotonic
        self._replay = Replay(
            outbox, publisher, journal, clock=clock, batch=batch, monotonic=monotonic
        )
        self._shards: list[int] = []
        self._next_claim = monotonic()
        self._next_prune = monotonic()
        self._trouble = ""
        self._disk_trouble = False
        self._leases_trouble = False
        self._pause = 0.0

    def run_once(self) -> int:
        """Publish what there is now: the spool, a lost journal, one batch of the outbox.

        Returns:
            How many events were confirmed.

        Raises:
            PublishFailed: RabbitMQ did not confirm; nothing was removed.
            OutboxUnavailable: Redis did not answer.
        """
        # The spool first: it fills when Redis is away, and must not wait for it.
        return self._drain_node() + self._drain_outbox()

    def run(self, stop: threading.Event) -> None:
        """Go on until ``stop`` is set. Never raises; trouble is logged when it begins and ends.

        A publisher made with ``cancelled=stop.is_set`` lets this end within a second, unless it is
        just connecting to a host that does not answer.
        """
        while not stop.is_set():
            self._turn()
            if self._pause:
                stop.wait(self._pause)
        with suppress(OutboxUnavailable):
            self._outbox.give_back(self._owner)
        self._publisher.close()

    def lag(self) -> RelayLag:
        """What waits, over all shards and on this node.

        Raises:
            OutboxUnavailable: Redis did not answer.
        """
        oldest_ms = self._outbox.oldest_ms()
        age_ms = 0 if oldest_ms is None else to_ms(self._clock.now()) - oldest_ms
        return RelayLag(
            outbox_events=self._outbox.length(),
            oldest_seconds=max(age_ms, 0) / 1000,
            spool_segments=len(self._spool.segments()),
            unreadable_events=self._outbox.bad_length(),
        )

    def _drain_node(self) -> int:
        """Publish what this node's disk has for us. A bad disk does not stop the outbox."""
        try:
            confirmed = self._spool.drain(self._publisher.publish, batch=self._batch)
            self._settle_abandoned_leases()
            confirmed += self._replay.check()
            if self._monotonic() >= self._next_prune:
                self._next_prune = self._monotonic() + _PRUNE_SECONDS
                self._replay.prune()
        except OSError as error:
            if not self._disk_trouble:
                _log.error(
                    "relay_cannot_use_disk",
                    error=str(error),
                    money="usage events in this node's spool or journal wait there",
                    remedy="see that the spool directory can be read and written",
                )
            self._disk_trouble = True
            return 0
        self._disk_trouble = False
        return confirmed

    def _settle_abandoned_leases(self) -> None:
        """What Redis does not take of them must not stop the outbox."""
        try:
            self._settle_abandoned()
        except WeighbridgeError as error:
            if not self._leases_trouble:
                _log.error(
                    "relay_cannot_settle_abandoned_leases",
                    error=str(error),
                    money="runs of a process that died are not charged yet; they are safe on "
                    "this node's disk",
                    remedy="see that Redis runs and answers in time; the relay goes on trying",
                )
            self._leases_trouble = True
        else:
            self._leases_trouble = False

    def _drain_outbox(self) -> int:
        if self._monotonic() >= self._next_claim:
            self._next_claim = self._monotonic() + min(self._lease_ms / 3000, _CLAIM_SECONDS)
            self._shards = self._outbox.claim(self._owner, self._lease_ms)
        entries = self._outbox.read(self._shards, self._batch) if self._shards else []
        # About `batch` at a time: a small rest would cost a whole round of confirms.
        size = math.ceil(len(entries) / max(len(entries) // self._batch, 1)) or 1
        for start in range(0, len(entries), size):
            batch = entries[start : start + size]
            failpoints.reach("relay.before_publish")
            self._publisher.publish([entry.encoded for entry in batch])
            failpoints.reach("relay.after_confirm")
            self._outbox.remove(batch)
        return len(entries)

    def _turn(self) -> None:
        try:
            confirmed = self.run_once()
        except Exception as error:  # noqa: BLE001 - a thread that dies here would stop all billing
            self._after_failure(error)
            return
        if self._trouble:
            _log.info("relay_recovered", after=self._trouble)
            self._trouble, self._pause = "", 0.0
        shortest, longest = IDLE_SECONDS
        if confirmed >= self._batch // 2:
            self._pause = 0.0
        elif confirmed:
            self._pause = GATHER_SECONDS
        else:
            self._pause = min(max(self._pause * 2, shortest), longest)

    def _after_failure(self, error: Exception) -> None:
        shortest, longest = FAILURE_SECONDS
        kind = next(known for known in _TROUBLES if isinstance(error, known))
        event, money, remedy = _TROUBLES[kind]
        if event != self._trouble:
            _log.error(
                event,
                error=str(error),
                money=money,
                remedy=remedy,
                exc_info=error if kind is Exception else None,
            )
            self._pause = 0.0
        self._trouble = event
        self._pause = min(max(self._pause * 2, shortest), longest)
        # Another node's relay may well reach what this one cannot.
        self._shards, self._next_claim = [], self._monotonic()
        with suppress(Exception):
            self._outbox.give_back(self._owner)
