"""Suite overhead: tasks a second of a metered no-op, against the same no-op without Weighbridge.

Once each task asks Redis, and once its SKU is leased. A prefork worker runs them, of two processes
and then another of eight, late acknowledgement, with the shipped configuration and its relay. What
they are held against runs in a worker of as many processes whose app has no Weighbridge in it, with
the same configuration but for publisher confirms, which Celery does not have by itself. So what
Weighbridge changes for every task of an app (how task events are sent) counts on its side; beside
it, the same is held against an unmetered task of the very worker that meters.

A round's messages are all in the queue before the worker may take the first, so that submitting is
no part of it. A metered task counts when its body ran; its acknowledgement comes after the
settlement, which has put the event into the outbox, or if leased on the disk. The relay works
meanwhile; what is left when the last task is done is told by the second figure, and counted in the
processor time.

Latency is that of tasks that run alone: from before a task is sent until the worker has
acknowledged it, so that hold and settlement are both within.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any, Final
from uuid import UUID

from celery import Celery

from billing.container import Container
from billing.core.usage_event_json import from_wire
from billing.devtools.embedded_servers.process import Process, end
from billing.settings import Settings
from billing.transport.message_batch import unpacked
from lab.bench import cpu
from lab.bench.effort import Effort, Outcome
from lab.bench.errors import BenchError
from lab.bench.events import PRICE_MICROCREDITS, add_customers
from lab.bench.ground import Ground, Say
from lab.bench.overhead_app import (
    BARE,
    BILLED,
    LANES,
    make_bench_app,
    queue_of,
    task_of,
    ticks_of,
)
from lab.bench.overhead_request import FORMAT, acks_of
from lab.bench.report import Figure, Goal, compare, percentile

NAME: Final = "overhead"
_CUSTOMERS: Final = 8
_START_SECONDS: Final = 60.0
_ROUND_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.005
_ALONE_POLL_SECONDS: Final = 0.0005
_PERCENTILES: Final = (50, 99)
_UNTIMED: Final = 0.05
"""The share of a round that passes before its time is taken: the worker has to get going."""

_LONGER: Final = 1.6
"""How much longer than asked a round is planned, since the next one may be faster."""

_GOALS: Final = {
    "metered": Goal(ratio_at_least=0.7),
    "leased": Goal(ratio_at_least=0.85),
}
_TAIL: Final = 2000
_WITHOUT: Final = "the same without Weighbridge"
_UNMETERED: Final = "unmetered, same worker"
_NOTE: Final = (
    "overhead: prefork, {processes} processes, acks_late, prefetch 1 and task events as "
    "shipped; exactly the credits of {tasks} metered tasks were settled, and the event of each is "
    "in RabbitMQ; the shortest measured round took {seconds:.1f} s."
)


@dataclass(frozen=True, slots=True)
class Round:
    """A round's tasks per second; ``confirmed`` until RabbitMQ had confirmed every event too.

    ``cpu_us``: processor time of the worker and its children, microseconds a task, until then.
    """

    rate: float
    confirmed: float
    seconds: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class _Worker:
    node: str
    process: Process
    log: Path

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text("utf-8", "replace")[-_TAIL:]


@dataclass(slots=True)
class _Line:
    """Two workers, without Weighbridge and with it, and the lanes of tasks through them."""

    app: Celery
    container: Container
    customers: list[str]
    bare: _Worker
    metering: _Worker
    submitted: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LANES, 0))

    @property
    def settings(self) -> Settings:
        return self.container.settings

    def worker(self, lane: str) -> _Worker:
        """That of a lane."""
        return self.bare if lane == BARE else self.metering

    def round(self, lane: str, tasks: int) -> Round:
        """Fill the lane's queue, let the worker empty it, and wait until all is relayed."""
        self._fill(lane, tasks)
        done = self.submitted[lane]
        first, last = done + ceil(tasks * _UNTIMED), done + tasks
        self.submitted[lane] = last
        ticks = ticks_of(self.settings, lane)
        worker = self.worker(lane)
        used = cpu.of_family(worker.process.pid)
        self._control("add_consumer", lane)
        began = self.wait(lambda: _size(ticks) >= first, "the first tasks")
        ended = self.wait(lambda: _size(ticks) >= last, "the last task")
        relayed = self.wait(self._is_relayed, "everything settled, and an empty outbox")
        used = cpu.of_family(worker.process.pid) - used
        self._control("cancel_consumer", lane)
        counted, seconds = last - first, ended - began
        return Round(counted / seconds, counted / (relayed - began), seconds, used / tasks * 1e6)

    def alone(self, lane: str, tasks: int) -> list[float]:
        """Milliseconds from sending to acknowledgement, of some tasks one after another."""
        task, queue = task_of(self.app, lane), queue_of(self.settings, lane)
        acks, taken = acks_of(self.settings.spool_dir), []
        self.submitted[lane] += tasks
        self._control("add_consumer", lane)
        for number in range(tasks):
            size = _size(acks) + FORMAT.size
            payer = self._payer(lane, number)
            sent = time.monotonic_ns()
            task.apply_async(queue=queue, **payer)
            self.wait(
                lambda size=size: _size(acks) >= size,  # type: ignore[misc]
                "a task to be acknowledged",
                poll_seconds=_ALONE_POLL_SECONDS,
            )
            with acks.open("rb") as file:
                file.seek(size - FORMAT.size)
                (at,) = FORMAT.unpack(file.read(FORMAT.size))
            taken.append((at - sent) / 1e6)
        self._control("cancel_consumer", lane)
        return taken

    def wait(
        self,
        done: Callable[[], bool],
        what: str,
        seconds: float = _ROUND_SECONDS,
        poll_seconds: float = _POLL_SECONDS,
    ) -> float:
        """The instant at which something was done.

        Raises:
            BenchError: A worker has ended, or the time is up; with the ends of their logs.
        """
        workers = (self.bare, self.metering)
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline or not all(each.process.alive for each in workers):
                tails = "\n\n".join(f"{each.log} ends with:\n{each.tail()}" for each in workers)
                raise BenchError(f"waited for {what}; {tails}")
            time.sleep(poll_seconds)
        return time.monotonic()

    def check_books(self) -> None:
        """See that the metered tasks' credits were settled, and that each event is in the queue.

        Raises:
            BenchError: The figures would be of something else.
        """
        due = self.due()
        expected = due * PRICE_MICROCREDITS
        self.wait(lambda: not self.container.quota.open_holds(), "the last settlement")
        accounts = [self.container.quota.account(customer) for customer in self.customers]
        settled = sum(account.settled_microcredits for account in accounts if account)
        if settled != expected:
            raise BenchError(f"{settled} microcredits were settled, not {expected}")
        self.wait(self._is_relayed, "an empty outbox")
        found = len(self._events_in_queue())
        if found != due:
            raise BenchError(f"{found} events are in the usage queue, not {due}")

    def due(self) -> int:
        """How many events there are to be."""
        return sum(self.submitted[lane] for lane in BILLED)

    def _events_in_queue(self) -> set[UUID]:
        """The ids in the queue, which is empty afterwards; a relay may send an event twice."""
        found: set[UUID] = set()
        with self.app.connection_for_read() as connection:
            channel: Any = connection.default_channel
            queue = self.container.settings.usage_queue
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                body = message.body
                wires = unpacked(body.encode() if isinstance(body, str) else bytes(body))
                found.update(from_wire(wire).id for wire in wires)
        return found

    def _is_relayed(self) -> bool:
        accounts = [self.container.quota.account(customer) for customer in self.customers]
        settled = sum(account.settled_microcredits for account in accounts if account)
        # What is not settled yet is on the worker's disk, and not in the outbox.
        return settled >= self.due() * PRICE_MICROCREDITS and self.container.outbox.length() == 0

    def _fill(self, lane: str, tasks: int) -> None:
        task, queue = task_of(self.app, lane), queue_of(self.settings, lane)
        with self.app.producer_or_acquire() as producer:
            for number in range(tasks):
                task.apply_async(queue=queue, producer=producer, **self._payer(lane, number))
            channel: Any = producer.connection.default_channel

            def waiting() -> bool:
                return bool(channel.queue_declare(queue, passive=True).message_count >= tasks)

            self.wait(waiting, "the messages to be in their queue")

    def _payer(self, lane: str, number: int) -> dict[str, str]:
        return {"customer": self.customers[number % _CUSTOMERS]} if lane in BILLED else {}

    def _control(self, verb: str, lane: str) -> None:
        control: Any = self.app.control
        queue, node = queue_of(self.settings, lane), self.worker(lane).node
        answers = getattr(control, verb)(
            queue, destination=[node], reply=True, timeout=_ROUND_SECONDS, limit=1
        )
        if not answers or "ok" not in answers[0].get(node, {}):
            raise BenchError(f"{verb} {queue}: the worker answered {answers!r:.300}")


def run(ground: Ground, effort: Effort, say: Say) -> Outcome:
    """Measure.

    Raises:
        BenchError: A worker did not do what it was given.
    """
    outcome = Outcome([])
    for processes in effort.concurrency:
        say(f"starting two workers of {processes} processes")
        line = _start(ground, processes)
        rounds, alone = _rounds(line, effort, say)
        line.check_books()
        end([line.bare.process, line.metering.process])
        outcome.figures.extend(_figures(processes, rounds, alone))
        outcome.notes.extend(_notes(line, processes, rounds, alone, effort))
    return outcome


def _rounds(
    line: _Line, effort: Effort, say: Say
) -> tuple[dict[str, list[Round]], dict[str, list[list[float]]]]:
    """Rounds of every lane, and the tasks that ran alone, repetition by repetition."""
    sizes = {}
    for lane in LANES:
        say(f"trying how fast {lane} tasks are")
        sizes[lane] = _tasks_for(line.round(lane, effort.calibration_tasks).rate, effort)
    rounds: dict[str, list[Round]] = {lane: [] for lane in LANES}
    alone: dict[str, list[list[float]]] = {lane: [] for lane in LANES}
    for number in range(effort.repetitions):
        # Each comes first in its turn.
        first = number % len(LANES)
        lanes = LANES[first:] + LANES[:first]
        for lane in lanes:
            say(f"repetition {number + 1} of {effort.repetitions}: {sizes[lane]} {lane} tasks")
            found = line.round(lane, sizes[lane])
            rounds[lane].append(found)
            sizes[lane] = _tasks_for(found.rate, effort)
        for lane in lanes:
            say(f"repetition {number + 1} of {effort.repetitions}: {lane} tasks, one by one")
            alone[lane].append(line.alone(lane, effort.latency_tasks))
    return rounds, alone


def _figures(
    processes: int, rounds: dict[str, list[Round]], alone: dict[str, list[list[float]]]
) -> list[Figure]:
    figures = []
    for lane in BILLED:
        ours, bare, plain = rounds[lane], rounds[BARE], rounds["plain"]
        waits = list(zip(alone[lane], alone[BARE], strict=True))
        measured = [
            ("no-op", "tasks/s", _WITHOUT, _paired(ours, bare, "rate"), _GOALS[lane]),
            ("until all is in RabbitMQ", "tasks/s", _WITHOUT, _confirmed(ours, bare), None),
            ("no-op, same worker", "tasks/s", _UNMETERED, _paired(ours, plain, "rate"), None),
            ("processor time", "µs/task", _WITHOUT, _paired(ours, bare, "cpu_us"), None),
        ]
        measured += [
            (
                f"latency p{percent}",
                "ms",
                _WITHOUT,
                [(percentile(ours, percent), percentile(bare, percent)) for ours, bare in waits],
                None,
            )
            for percent in _PERCENTILES
        ]
        for what, unit, baseline, values, goal in measured:
            name = f"{lane} x{processes}: {what}"
            figures.append(compare(NAME, name, unit, baseline, values, goal))
    return figures


def _paired(ours: list[Round], theirs: list[Round], what: str) -> list[tuple[float, float]]:
    return [
        (getattr(one, what), getattr(other, what)) for one, other in zip(ours, theirs, strict=True)
    ]


def _confirmed(ours: list[Round], theirs: list[Round]) -> list[tuple[float, float]]:
    return [(one.confirmed, other.rate) for one, other in zip(ours, theirs, strict=True)]


def _notes(
    line: _Line,
    processes: int,
    rounds: dict[str, list[Round]],
    alone: dict[str, list[list[float]]],
    effort: Effort,
) -> list[str]:
    shortest = min(found.seconds for lane in LANES for found in rounds[lane])
    notes = [_NOTE.format(processes=processes, tasks=line.due(), seconds=shortest)]
    for lane in BILLED:
        added = [
            median(
                percentile(ours, percent) - percentile(plain, percent)
                for ours, plain in zip(alone[lane], alone[BARE], strict=True)
            )
            for percent in _PERCENTILES
        ]
        more = median(
            ours.cpu_us - plain.cpu_us
            for ours, plain in zip(rounds[lane], rounds[BARE], strict=True)
        )
        notes.append(
            f"overhead, {lane}, {processes} processes: a task that runs alone takes "
            f"{added[0]:.2f} ms (p50), {added[1]:.2f} ms (p99) and {more:,.0f} µs of the worker's "
            "processor time more than without Weighbridge."
        )
    if shortest < effort.round_seconds:
        # Not measured again: leaving out the fastest rounds would tell a slower machine.
        notes.append(
            f"overhead: a round took less than the {effort.round_seconds:g} s asked for, because "
            "the machine became faster than the round before let expect."
        )
    return notes


def _tasks_for(rate: float, effort: Effort) -> int:
    """How many tasks fill a measured round at this rate."""
    return ceil(rate * effort.round_seconds * _LONGER / (1 - _UNTIMED))


def _start(ground: Ground, processes: int) -> _Line:
    suite = f"{NAME}-{processes}"
    settings = ground.settings(suite)
    ground.to_delete(*(queue_of(settings, lane) for lane in LANES))
    container = ground.container(settings)
    customers = add_customers(container, suite, _CUSTOMERS)
    app = make_bench_app(settings)
    # Submitting is not measured: no confirm for each message, no event about it.
    app.conf.update(broker_transport_options={}, task_send_sent_event=False)
    workers = [
        _start_worker(ground, suite, settings, processes, module)
        for module in ("overhead_bare", "overhead_worker")
    ]
    line = _Line(app, container, customers, *workers)
    for worker in workers:
        line.wait(partial(_answers, app, worker.node), "a worker to start", _START_SECONDS)
    return line


def _start_worker(
    ground: Ground, suite: str, settings: Settings, processes: int, module: str
) -> _Worker:
    node = f"{settings.redis_prefix}.{module}@localhost"
    log = ground.folder_of(suite) / f"{module}.log"
    arguments = [
        *(sys.executable, "-m", "celery", "-A", f"{__package__}.{module}", "worker"),
        *("--pool", "prefork", "--concurrency", str(processes), "--loglevel", "WARNING"),
        *("--queues", settings.task_queue, "--hostname", node, "--task-events"),
        *("--without-gossip", "--without-mingle"),
    ]
    return _Worker(node, ground.start(f"{suite}-{module}", arguments, settings, log), log)


def _answers(app: Any, node: str) -> bool:  # noqa: ANN401 - its control is untold by stubs
    return bool(app.control.ping(destination=[node], timeout=1.0, limit=1))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
