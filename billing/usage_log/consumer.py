"""The consumer: usage queue to log, acknowledged only after COMMIT.

One thread talks to the broker (deliveries, heartbeats, acknowledgements) and reads the events,
another writes, so that a long write or an unreachable database never costs the connection, and
PostgreSQL has the next batch as soon as it is done with one. While the database is away the batch
is held and tried again; nothing is given back, because every redelivery counts towards the
queue's delivery limit. What is not acknowledged when the process dies is delivered again and found
to be duplicates.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from typing import Final, NamedTuple

import structlog
from kombu import Connection
from sqlalchemy.exc import SQLAlchemyError

from billing.core.usage_event import DeadReason
from billing.transport.message_batch import unpacked
from billing.usage_log.event_reader import Dead, Row, dead
from billing.usage_log.log_writer import BatchResult, LogWriter
from billing.usage_log.queue_reader import MAX_PREFETCH, Delivery, QueueReader

_log = structlog.get_logger(__name__)

_FIRST_DELAY_SECONDS: Final = 0.1
_LONGEST_DELAY_SECONDS: Final = 10.0
_IDLE_SECONDS: Final = 1.0
_TICK_SECONDS: Final = 0.2
_POLL_SECONDS: Final = 0.01
_DRAIN_AT_ONCE: Final = 200
_READ_AT_ONCE: Final = 200
"""Events read before it is looked whether the batch in the database is done: a few ms."""

_FRESH_SECONDS: Final = 10.0
"""How long a write may take before what was read meanwhile is read again."""


@dataclass(slots=True)
class Consumed:
    """What one run of the consumer did."""

    inserted: int = 0
    duplicates: int = 0
    dead: Counter[DeadReason] = field(default_factory=Counter)
    batches: int = 0

    def add(self, result: BatchResult) -> None:
        """Count a batch in."""
        self.inserted += result.inserted
        self.duplicates += result.duplicates
        self.dead.update(result.dead)
        self.batches += 1


@dataclass(slots=True)
class _Work:
    """A batch on its way to the database."""

    deliveries: list[Delivery]
    bodies: list[bytes]
    """The events in them."""
    read: list[Row | Dead] | None
    """None where it has to be done at the write."""
    of_dead_queue: bool = False
    future: Future[BatchResult] = field(default_factory=Future)
    attempts: int = 0
    again_at: float = 0.0
    since: float = field(default_factory=time.monotonic)


class _Parcel(NamedTuple):
    """A delivery, its events, and what may be logged of them."""

    delivery: Delivery
    bodies: list[bytes]
    read: list[Row | Dead]


class UsageConsumer:
    """Reads the usage queue, and what the broker itself dead-lettered, until told to stop.

    Args:
        connect: Makes a connection to the broker (``billing.usage_log.queue_reader.broker``).
        exchange: The exchange of usage events.
        queue: The usage queue.
        writer: Used by this consumer alone.
        batch: The most events in one transaction.
        linger_seconds: How long a batch may wait to fill.
        on_late: Told, after COMMIT, whose accounts are to be sent to Redis again. May fail: the
            balance check makes up for it.
        on_batch: Told of every batch, after COMMIT.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        exchange: str,
        queue: str,
        writer: LogWriter,
        batch: int,
        linger_seconds: float,
        on_late: Callable[[frozenset[str]], None],
        on_batch: Callable[[BatchResult], None] | None = None,
    ) -> None:
        self._connect = connect
        self._names = (exchange, queue)
        self._writer = writer
        self._batch = batch
        self._linger = linger_seconds
        self._on_late = on_late
        self._on_batch = on_batch

    def run(self, stop: threading.Event, *, idle_exit: bool = False) -> Consumed:
        """Consume until ``stop`` is set; a batch that is being written is finished first.

        Args:
            stop: Set by a signal handler or a test.
            idle_exit: Also return once nothing came for a second and nothing is held.

        Returns:
            What was done.
        """
        consumed = Consumed()
        delay = _FIRST_DELAY_SECONDS
        with ThreadPoolExecutor(1, thread_name_prefix="log-writer") as pool:
            while not stop.is_set():
                exchange, queue = self._names
                intake = QueueReader(
                    self._connect(), exchange=exchange, queue=queue, prefetch=self._prefetch
                )
                session = _Session(intake, self, pool, consumed)
                try:
                    intake.open()
                    delay = _FIRST_DELAY_SECONDS
                    session.serve(stop, idle_exit=idle_exit)
                except intake.errors as error:
                    _log.warning("broker lost", error=str(error), retry_in_seconds=delay)
                    stop.wait(delay)
                    delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
                else:
                    break
                finally:
                    session.abandon()
                    intake.close()
        return consumed

    @property
    def batch(self) -> int:
        """The most events in one transaction."""
        return self._batch

    @property
    def _prefetch(self) -> int:
        """Messages for two batches, if each has one event; most have several.

        No more of these than one channel may hold: what one consumer holds, another waits for.
        """
        return min(2 * self._batch, MAX_PREFETCH)

    @property
    def linger_seconds(self) -> float:
        """How long a batch may wait to fill."""
        return self._linger

    def read(self, bodies: Sequence[bytes]) -> list[Row | Dead]:
        """Check and encode events, as far as that needs no database."""
        return self._writer.read(bodies)

    def write(self, bodies: Sequence[bytes], read: list[Row | Dead] | None) -> BatchResult:
        """Log a batch, then tell who has to know. Runs in the writing thread.

        Args:
            bodies: The batch.
            read: What ``read`` made of them; None where that was too long ago.
        """
        result = self._writer.write(bodies, read)
        if result.late_customers:
            try:
                self._on_late(result.late_customers)
            except Exception:  # noqa: BLE001 - the batch is committed: nothing may undo its ack
                _log.exception("accounts not sent again", customers=sorted(result.late_customers))
        if self._on_batch is not None:
            self._on_batch(result)
        return result

    def bury(self, deliveries: Sequence[Delivery]) -> BatchResult:
        """Keep what the broker gave up, each event by itself. Runs in the writing thread."""
        reason = DeadReason.DELIVERY_LIMIT
        letters = [
            dead(reason, found.detail, body)
            for found in deliveries
            for body in unpacked(found.body)
        ]
        self._writer.bury(letters)
        return BatchResult(0, 0, {reason: len(letters)}, frozenset())


class _Session:
    """One connection's worth of consuming."""

    def __init__(
        self,
        intake: QueueReader,
        consumer: UsageConsumer,
        pool: ThreadPoolExecutor,
        consumed: Consumed,
    ) -> None:
        self._intake = intake
        self._consumer = consumer
        self._pool = pool
        self._consumed = consumed
        self._work: _Work | None = None
        self._parcels: deque[_Parcel] = deque()
        self._events = 0
        """In the parcels."""
        self._stale = 0
        """Parcels that have to be read again."""
        self._waiting_since: float | None = None
        self._buried_last = False
        self._last_delivery = time.monotonic()

    def serve(self, stop: threading.Event, *, idle_exit: bool) -> None:
        """Take in, write, acknowledge, until stopped or idle."""
        while not stop.is_set():
            self._take_in()
            self._advance()
            if idle_exit and self._idle():
                return
        # The batch in flight is finished and acknowledged; one that fails goes back to the queue.
        while self._work is not None and not self._work.again_at:
            self._take_in()
            self._advance(start=False)

    def abandon(self) -> None:
        """Wait for the writing thread: a writer is not for two batches at once."""
        if self._work is not None:
            wait([self._work.future])
            self._work = None

    def _idle(self) -> bool:
        held = self._work is not None or self._parcels or self._intake.usage or self._intake.dead
        return not held and time.monotonic() - self._last_delivery > _IDLE_SECONDS

    def _take_in(self) -> None:
        came = self._intake.receive(timeout=self._patience(), most=_DRAIN_AT_ONCE)
        read = self._unpack()
        now = time.monotonic()
        if self._waiting_since is None and (self._parcels or self._intake.dead):
            self._waiting_since = now
        if came or self._waiting_since is not None:
            self._last_delivery = now
        if not came and not read and self._work is not None and not self._work.again_at:
            wait([self._work.future], timeout=_POLL_SECONDS)

    def _unpack(self) -> int:
        """Read some of what the next two batches may need; the rest waits as it came, packed.

        Returns:
            How many messages.
        """
        # Deliveries can come at any exchange of frames, the first ones before `receive` is called.
        usage = self._intake.usage
        room = min(self._room, _READ_AT_ONCE)
        fresh: list[tuple[Delivery, list[bytes]]] = []
        while usage and room > 0:
            delivery = usage.popleft()
            bodies = unpacked(delivery.body)
            fresh.append((delivery, bodies))
            room -= len(bodies)
        read = iter(self._consumer.read([body for _, bodies in fresh for body in bodies]))
        for delivery, bodies in fresh:
            self._parcels.append(_Parcel(delivery, bodies, [*islice(read, len(bodies))]))
            self._events += len(bodies)
        return len(fresh)

    @property
    def _room(self) -> int:
        """How many more events are read before the batches in hand are written."""
        return max(0, 2 * self._consumer.batch - self._events)

    @property
    def _is_full(self) -> bool:
        """Whether the next batch need not wait for more."""
        enough = len(self._parcels) >= self._messages_of_a_batch
        return enough or self._events >= self._consumer.batch

    @property
    def _messages_of_a_batch(self) -> int:
        """At most; half of what may be held, because the other half comes meanwhile."""
        return ceil(self._intake.prefetch / 2)

    def _patience(self) -> float:
        """How long to wait for the next delivery: not at all while there is other work."""
        if self._intake.usage and self._room:
            return 0.0
        if self._work is not None:
            return _TICK_SECONDS if self._work.again_at else 0.0
        if self._waiting_since is None:
            return _TICK_SECONDS
        due = self._waiting_since + self._consumer.linger_seconds - time.monotonic()
        return max(0.0, min(due, _TICK_SECONDS))

    def _advance(self, *, start: bool = True) -> None:
        if self._work is not None:
            if self._work.again_at:
                if time.monotonic() >= self._work.again_at:
                    self._submit(self._work)
            elif self._work.future.done():
                self._finish(self._work)
        if self._work is None and start:
            self._begin()

    def _begin(self) -> None:
        usage, gone = self._parcels, self._intake.dead
        due = self._waiting_since is not None and (
            time.monotonic() - self._waiting_since >= self._consumer.linger_seconds
        )
        # In turns, so that neither queue waits for the other to be empty.
        of_dead_queue = bool(gone) and not (usage and self._buried_last)
        if of_dead_queue:
            given_up = [gone.popleft() for _ in range(len(gone))]
            work = _Work(given_up, [], None, of_dead_queue=True)
        elif usage and (due or self._is_full):
            work = self._next_batch()
        else:
            return
        self._buried_last = of_dead_queue
        self._waiting_since = time.monotonic() if usage or gone else None
        self._work = work
        self._submit(work)

    def _next_batch(self) -> _Work:
        """As many whole messages as fit into a batch, and one at least."""
        taken = [self._parcels.popleft()]
        count, most = len(taken[0].bodies), self._messages_of_a_batch
        while (
            self._parcels
            and len(taken) < most
            and count + len(self._parcels[0].bodies) <= self._consumer.batch
        ):
            taken.append(self._parcels.popleft())
            count += len(taken[-1].bodies)
        self._events -= count
        stale, self._stale = self._stale > 0, max(0, self._stale - len(taken))
        return _Work(
            [parcel.delivery for parcel in taken],
            [body for parcel in taken for body in parcel.bodies],
            None if stale else [found for parcel in taken for found in parcel.read],
        )

    def _submit(self, work: _Work) -> None:
        work.again_at = 0.0
        work.attempts += 1
        if work.of_dead_queue:
            work.future = self._pool.submit(self._consumer.bury, work.deliveries)
        else:
            work.future = self._pool.submit(self._consumer.write, work.bodies, work.read)

    def _finish(self, work: _Work) -> None:
        try:
            result = work.future.result()
        except SQLAlchemyError as error:
            delay = min(_FIRST_DELAY_SECONDS * 2**work.attempts, _LONGEST_DELAY_SECONDS)
            work.again_at = time.monotonic() + delay
            work.read = None
            _log.warning(
                "batch not written; held",
                messages=len(work.deliveries),
                attempts=work.attempts,
                retry_in_seconds=delay,
                error=str(error).partition("\n")[0],
            )
            return
        self._consumed.add(result)
        self._work = None
        if work.attempts > 1 or time.monotonic() - work.since > _FRESH_SECONDS:
            # What an event may be depends on the time, which has passed for those in hand.
            self._stale = len(self._parcels)
        self._intake.acknowledge(work.deliveries)
