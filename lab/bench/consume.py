"""Suite consume: from RabbitMQ to the log, by consumers as processes, against a raw COPY.

A round's events, packed as a relay packs them, are all in the queue before the first consumer may
begin; what is timed is from the batch that passes a twentieth of them to the COMMIT of the last.
The baseline then gets the very rows of that round, as in suite ingest. Every event is counted
afterwards: what is missing or double ends the run.

At half load, events are published evenly at half the rate that one consumer was just seen to
reach. RabbitMQ keeps their order and one consumer acknowledges in it, so the n-th event is
visible with the COMMIT after which n are through.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any, Final
from uuid import UUID

import amqp
from kombu.utils.url import url_to_parts

from billing.container import Container
from billing.core.usage_event import UsageEvent
from billing.devtools.embedded_servers.process import Process
from billing.transport import topology
from billing.transport.message_batch import packed
from lab.bench import cpu
from lab.bench.consume_process import Tick, is_ready, read_ticks, set_consumers, ticks_of
from lab.bench.effort import Effort, Outcome
from lab.bench.errors import BenchError
from lab.bench.events import add_customers, spread_over
from lab.bench.ground import Ground, Say
from lab.bench.ingest import make_equal_table, read_rows, store_rows
from lab.bench.locks import LockSampler, deadlocks
from lab.bench.report import Figure, Goal, compare, percentile

NAME: Final = "consume"
_CUSTOMERS: Final = 20
_UNTIMED: Final = 0.05
_START_SECONDS: Final = 60.0
_ROUND_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.01
_TAIL: Final = 2000
_SLICE_SECONDS: Final = 0.004
_GOALS: Final = {1: Goal(ratio_at_least=0.45, value_at_least=10_000), 2: Goal(ratio_at_least=0.6)}
_SEEN_GOALS: Final = {"p99": Goal(value_at_most=500)}
_ORDER_SEED: Final = 11
_NOTE: Final = (
    "consume: {messages:,} events a round, packed as a relay packs them. Every event has a subject "
    "of its own, the dearest case for the rollups. Half twice: every event is in the queue twice, "
    "in any order; counted are tellings. Seen: from publishing to the COMMIT, at half the rate of "
    "one consumer; the baseline is COPY and COMMIT of a single row."
)


@dataclass(frozen=True, slots=True)
class Round:
    """Messages a second, and microseconds of processor time for each of them."""

    rate: float
    consumer_us: float
    postgres_us: float
    broker_us: float


@dataclass(slots=True)
class _Line:
    """The queue, the consumers behind it, and the log."""

    container: Container
    customers: list[str]
    folder: Path
    processes: list[Process]
    channel: amqp.Channel
    logs: list[Path]
    offset: dict[int, int] = field(default_factory=dict)
    locks: dict[str, LockSampler] = field(default_factory=dict)

    def ticks(self) -> dict[int, list[Tick]]:
        """What each process told since the last call of ``forget``."""
        numbers = range(len(self.processes))
        return {n: read_ticks(self.folder, n)[self.offset.get(n, 0) :] for n in numbers}

    def forget(self) -> None:
        """Begin to count anew."""
        for number in range(len(self.processes)):
            self.offset[number] = len(read_ticks(self.folder, number))

    def publish(self, events: Sequence[UsageEvent]) -> int:
        """Put events into the exchange as a relay packs them, without waiting for anything.

        Returns:
            How many messages they are.
        """
        batch = self.container.settings.relay_batch
        packs = [
            pack
            for start in range(0, len(events), batch)
            for pack in packed(events[start : start + batch])
        ]
        for pack in packs:
            self.channel.basic_publish(
                amqp.Message(pack.body, delivery_mode=2, content_type=pack.content_type),
                exchange=self.container.settings.usage_exchange,
                routing_key=topology.routing_key(pack.customer),
            )
        return len(packs)

    def fill(self, events: Sequence[UsageEvent]) -> None:
        """Put events into the queue, and wait until all are there."""
        messages = self.publish(events)
        queue = self.container.settings.usage_queue

        def waiting() -> bool:
            found: Any = self.channel.queue_declare(queue, passive=True)
            return bool(found.message_count >= messages)

        self.wait(waiting, "the messages to be in their queue")

    def drain(self, consumers: int, messages: int) -> Round:
        """Let so many consumers empty the queue."""
        self.forget()
        backends, broker = cpu.of_backends(self.container.engine), cpu.of_broker()
        self.let(consumers, lambda: self.through() >= messages)
        ended, broker_ended = cpu.of_backends(self.container.engine), cpu.of_broker()
        told = self.ticks()
        batches = sorted((tick for each in told.values() for tick in each), key=lambda t: t.at_ns)
        before, began = 0, batches[0].at_ns
        for tick in batches:
            before, began = before + tick.messages, tick.at_ns
            if before >= messages * _UNTIMED:
                break
        seconds = (batches[-1].at_ns - began) / 1e9
        own = sum(each[-1].cpu_us - each[0].cpu_us for each in told.values() if each)
        of_own = sum(tick.messages for each in told.values() for tick in each[1:]) or 1
        return Round(
            rate=(messages - before) / seconds,
            consumer_us=own / of_own,
            postgres_us=cpu.used(backends, ended) / messages * 1e6,
            broker_us=((broker_ended or 0) - (broker or 0)) / messages * 1e6,
        )

    def let(self, consumers: int, done: Callable[[], bool]) -> None:
        """Let so many consumers run until something is done."""
        set_consumers(self.folder, consumers)
        try:
            self.wait(done, "the consumers")
        finally:
            set_consumers(self.folder, 0)

    def through(self) -> int:
        """Messages that were committed since ``forget``."""
        return sum(tick.messages for each in self.ticks().values() for tick in each)

    def wait(self, done: Callable[[], bool], what: str, seconds: float = _ROUND_SECONDS) -> None:
        """Wait until something is done.

        Raises:
            BenchError: A consumer has ended, or the time is up; with the ends of the logs.
        """
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline or not all(each.alive for each in self.processes):
                tails = [log.read_text("utf-8", "replace")[-_TAIL:] for log in self.logs]
                raise BenchError(f"waited for {what}; the logs end with:\n" + "\n".join(tails))
            time.sleep(_POLL_SECONDS)


def run(ground: Ground, effort: Effort, say: Say) -> Outcome:
    """Measure.

    Raises:
        BenchError: The log does not have every event once.
    """
    say("starting consumers")
    line = _start(ground, max(effort.consume_consumers))
    _warm_up(line, max(effort.consume_consumers), effort.consume_events // 4)
    found: dict[tuple[int, bool], list[tuple[Round, Round]]] = {}
    waits: list[tuple[tuple[float, float], tuple[float, float]]] = []

    def measure(number: int, consumers: int, *, twice: bool) -> None:
        say(f"repetition {number + 1} of {effort.repetitions}: {_name(consumers, twice=twice)}")
        pair = _round(line, consumers, effort.consume_events, twice=twice)
        found.setdefault((consumers, twice), []).append(pair)

    for number in range(effort.repetitions):
        for consumers in effort.consume_consumers:
            measure(number, consumers, twice=False)
        say(f"repetition {number + 1} of {effort.repetitions}: half load")
        rate = median(pair[0].rate for pair in found[1, False]) / 2
        waits.append(_half_load(line, rate, effort.half_load_seconds))
    # Afterwards: a consumer to which much came twice goes on without COPY for some batches.
    for number in range(effort.repetitions):
        for consumers in effort.consume_consumers:
            if consumers <= 2:  # noqa: PLR2004 - as many as there are tellings
                measure(number, consumers, twice=True)
    figures = [_figure(count, twice, pairs) for (count, twice), pairs in found.items()]
    figures += _latencies(waits)
    notes = [*_notes(found, effort), *_lock_notes(line)]
    return Outcome(figures, notes)


def _figure(count: int, twice: bool, pairs: Sequence[tuple[Round, Round]]) -> Figure:
    return compare(
        NAME,
        _name(count, twice=twice),
        "events/s",
        "raw COPY",
        [(ours.rate, copied.rate) for ours, copied in pairs],
        None if twice else _GOALS.get(count),
    )


def _name(count: int, *, twice: bool) -> str:
    return f"{count} consumer{'s' if count > 1 else ''}{', half twice' if twice else ''}"


def _latencies(
    waits: Sequence[tuple[tuple[float, float], tuple[float, float]]],
) -> list[Figure]:
    against = "COPY of one row"
    return [
        compare(
            NAME,
            f"half load, seen {name}",
            "ms",
            against,
            [(measured[number], one[number]) for measured, one in waits],
            _SEEN_GOALS.get(name),
        )
        for number, name in enumerate(("p50", "p99"))
    ]


def _notes(
    found: dict[tuple[int, bool], list[tuple[Round, Round]]],
    effort: Effort,
) -> list[str]:
    notes = [_NOTE.format(messages=effort.consume_events)]
    for (count, twice), pairs in found.items():
        ours, copied = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        notes.append(
            f"consume, {_name(count, twice=twice)}: processor time an event, µs: "
            f"consumer {median(each.consumer_us for each in ours):.1f}, "
            f"PostgreSQL {median(each.postgres_us for each in ours):.1f}, "
            f"RabbitMQ {median(each.broker_us for each in ours):.1f}; "
            f"COPY {median(each.postgres_us for each in copied):.1f} a row."
        )
    return notes


def _lock_notes(line: _Line) -> list[str]:
    told = [f"consume, {name}: {sampler.told()}." for name, sampler in line.locks.items()]
    return [*told, f"consume: {deadlocks(line.container.engine)} deadlocks in the whole suite."]


def _warm_up(line: _Line, consumers: int, messages: int) -> None:
    events = spread_over(line.customers, messages, line.container.clock.now())
    line.fill(events)
    line.forget()
    line.let(consumers, lambda: line.through() >= messages)


def _round(line: _Line, consumers: int, messages: int, *, twice: bool) -> tuple[Round, Round]:
    """One round of the consumers, and one of COPY with the same rows."""
    count = messages // 2 if twice else messages
    events = spread_over(line.customers, count, line.container.clock.now())
    told = events
    if twice:
        told = [*events, *events]
        random.Random(_ORDER_SEED).shuffle(told)  # noqa: S311 - repeatable, not secret
    line.fill(told)
    name = _name(consumers, twice=twice)
    with line.locks.setdefault(name, LockSampler(line.container.engine)):
        ours = line.drain(consumers, len(told))
    inserted = sum(tick.inserted for each in line.ticks().values() for tick in each)
    if inserted != count:
        raise BenchError(f"the log took {inserted} of {count} events")
    return ours, _copy(line.container, [event.id for event in events])


def _copy(container: Container, ids: list[UUID]) -> Round:
    size = container.settings.consumer_batch
    batches = [ids[start : start + size] for start in range(0, len(ids), size)]
    copies = [read_rows(container.engine, batch) for batch in batches]
    backends = cpu.of_backends(container.engine)
    began = time.perf_counter()
    for copy in copies:
        store_rows(container.engine, copy)
    seconds = time.perf_counter() - began
    used = cpu.used(backends, cpu.of_backends(container.engine))
    return Round(len(ids) / seconds, 0.0, used / len(ids) * 1e6, 0.0)


def _half_load(
    line: _Line, rate: float, seconds: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """p50 and p99 of milliseconds from publishing to COMMIT; then of COPY and COMMIT of a row."""
    count = ceil(rate * seconds)
    events = spread_over(line.customers, count, line.container.clock.now())
    published: list[int] = []
    line.forget()

    def publish() -> bool:
        began = time.monotonic()
        while len(published) < count:
            due = min(count, ceil((time.monotonic() - began) * rate))
            if due > len(published):
                # All of one instant, so it does not matter how packing changes their order.
                some = events[len(published) : due]
                published.extend([time.monotonic_ns()] * len(some))
                line.publish(some)
            time.sleep(_SLICE_SECONDS)
        return line.through() >= count

    line.let(1, publish)
    [ticks] = [each for each in line.ticks().values() if each]
    waited: list[float] = []
    for tick, end in zip(ticks, accumulate(tick.messages for tick in ticks), strict=True):
        waited += [(tick.at_ns - at) / 1e6 for at in published[end - tick.messages : end]]
    # The first batches also waited for the consumer to connect.
    waited = waited[count // 5 :]
    ones = _one_by_one(line.container, [event.id for event in events[:200]])
    return (percentile(waited, 50), percentile(waited, 99)), (
        percentile(ones, 50),
        percentile(ones, 99),
    )


def _one_by_one(container: Container, ids: list[UUID]) -> list[float]:
    copies = [read_rows(container.engine, [identifier]) for identifier in ids]
    took = []
    for copy in copies:
        began = time.perf_counter()
        store_rows(container.engine, copy)
        took.append((time.perf_counter() - began) * 1e3)
    return took


def _start(ground: Ground, count: int) -> _Line:
    settings = ground.settings(NAME)
    container = ground.container(settings)
    customers = add_customers(container, NAME, _CUSTOMERS)
    with container.engine.begin() as connection:
        make_equal_table(connection)
    folder = ground.folder_of(NAME)
    logs = [folder / f"consumer-{number}.log" for number in range(count)]
    processes = [
        ground.start(
            f"consumer-{number}",
            [sys.executable, "-m", "lab.bench.consume_process", str(number), str(folder)],
            settings,
            log,
        )
        for number, log in enumerate(logs)
    ]
    for number in range(count):
        ticks_of(folder, number).touch()
    channel = _channel(container)
    topology.declare(channel, exchange=settings.usage_exchange, queue=settings.usage_queue)
    line = _Line(container, customers, folder, processes, channel, logs)
    line.wait(
        lambda: all(is_ready(folder, number) for number in range(count)),
        "the consumers to start",
        _START_SECONDS,
    )
    return line


def _channel(container: Container) -> amqp.Channel:
    parts = url_to_parts(container.endpoints.amqp_url or "")
    connection = amqp.Connection(
        host=f"{parts.hostname}:{parts.port or 5672}",
        userid=parts.username or "guest",
        password=parts.password or "guest",
        virtual_host=parts.path or "/",
    )
    connection.connect()
    return connection.channel()
