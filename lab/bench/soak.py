"""Suite soak: resident memory of consumer, relay and worker at steady load. Run when asked for.

The shipped processes: ``billing consumer``, ``billing relay``, and a worker of two processes whose
tasks are metered, half of them from leases. Tasks are sent evenly, at a rate that the machine has
no trouble with. What is compared is the last quarter of the time with the first after a warm-up.
At the end every event is in the log, or there is no figure.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from celery import Celery

from billing.container import Container
from billing.devtools.embedded_servers.process import Process
from billing.settings import Settings
from lab.bench import cpu
from lab.bench.effort import Effort, Outcome
from lab.bench.errors import BenchError
from lab.bench.events import add_customers
from lab.bench.ground import Ground, Say
from lab.bench.memory import Sample, after_warm_up, per_hour, quarters, resident
from lab.bench.overhead_app import BILLED, LANES, make_bench_app, queue_of, task_of
from lab.bench.report import Goal, compare

NAME: Final = "soak"
_CUSTOMERS: Final = 20
_SAMPLES: Final = 1_200
_LEAST_PERIOD_SECONDS: Final = 0.25
_SLICE_SECONDS: Final = 0.02
_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.25
_TAIL: Final = 2000
_GOAL: Final = Goal(ratio_at_most=1.05)
_LOGGED: Final = sa.text("SELECT count(*) FROM usage_events WHERE customer_id = ANY(:customers)")


@dataclass(slots=True)
class _Line:
    """The processes, and what they were given."""

    app: Celery
    container: Container
    customers: list[str]
    processes: dict[str, Process]
    logs: dict[str, Path]
    sent: int = 0
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def send(self, producer: Any) -> None:  # noqa: ANN401 - Kombu's
        """One task more, of the two kinds in turn."""
        lane = BILLED[self.sent % len(BILLED)]
        customer = self.customers[self.sent // len(BILLED) % len(self.customers)]
        queue = queue_of(self.container.settings, lane)
        task_of(self.app, lane).apply_async(queue=queue, producer=producer, customer=customer)
        self.sent += 1

    def sample(self, at: float) -> None:
        """Look at every process.

        Raises:
            BenchError: One has ended.
        """
        for name, process in self.processes.items():
            if not process.alive:
                tail = self.logs[name].read_text("utf-8", "replace")[-_TAIL:]
                raise BenchError(f"{name} has ended; its log ends with:\n{tail}")
            family = cpu.family(process.pid)
            self._put(name, at, [process.pid])
            if name == "worker":
                self._put("worker's children", at, [pid for pid in family if pid != process.pid])

    def _put(self, name: str, at: float, pids: list[int]) -> None:
        self.samples.setdefault(name, []).append(Sample(at, resident(pids)))

    def logged(self) -> int:
        """Events of these customers in the log."""
        with self.container.engine.connect() as connection:
            found = connection.execute(_LOGGED, {"customers": self.customers})
            return int(found.scalar_one())

    def wait(self, done: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait until something is done.

        Raises:
            BenchError: The time is up; with the ends of the logs.
        """
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                tails = [log.read_text("utf-8", "replace")[-_TAIL:] for log in self.logs.values()]
                raise BenchError(f"waited for {what}; the logs end with:\n" + "\n".join(tails))
            time.sleep(_POLL_SECONDS)


def run(ground: Ground, effort: Effort, say: Say) -> Outcome:
    """Measure.

    Raises:
        BenchError: A process ended, or an event did not arrive.
    """
    say("starting consumer, relay and worker")
    line = _start(ground)
    seconds = effort.soak_seconds
    for at in _steadily(line, seconds, effort.soak_rate):
        line.sample(at)
        say(f"{at:.0f} of {seconds:.0f} s, {line.sent:,} tasks sent")
    line.wait(lambda: line.logged() >= line.sent, "every event in the log", _END_SECONDS)
    if line.logged() != line.sent:
        raise BenchError(f"{line.logged()} events of {line.sent} tasks are in the log")
    figures, slopes = [], []
    for name, samples in line.samples.items():
        counted = after_warm_up(samples)
        against = "first quarter after the warm-up"
        figures.append(
            compare(NAME, f"{name}: last quarter", "MB", against, quarters(counted), _GOAL)
        )
        slopes.append(f"{name} {per_hour(counted):+.1f}")
    note = (
        f"soak: {seconds:,.0f} s at {effort.soak_rate:g} tasks a second; all {line.sent:,} events "
        f"are in the log. Slopes in MB an hour: {', '.join(slopes)}. Resident memory; what the "
        "worker's children share with it counts in each. Quarters are told in five slices."
    )
    short = f"soak: {seconds:,.0f} s say little of a slope by the hour."
    return Outcome(figures, [note, *([short] if seconds < _SAMPLES / 2 else [])])


def _steadily(line: _Line, seconds: float, rate: float) -> Iterator[float]:
    """Send tasks evenly; gives the seconds since the beginning whenever a sample is due."""
    period = max(seconds / _SAMPLES, _LEAST_PERIOD_SECONDS)
    began, due = time.monotonic(), 0.0
    with line.app.producer_or_acquire() as producer:
        while (at := time.monotonic() - began) < seconds:
            for _ in range(min(ceil(at * rate), ceil(seconds * rate)) - line.sent):
                line.send(producer)
            if at >= due:
                yield at
                due += period
            time.sleep(_SLICE_SECONDS)


def _start(ground: Ground) -> _Line:
    # The relay as a process of its own, as a large platform has it.
    settings = ground.settings(NAME).model_copy(update={"relay_in_worker": False})
    ground.to_delete(*(queue_of(settings, lane) for lane in LANES))
    container = ground.container(settings)
    customers = add_customers(container, NAME, _CUSTOMERS)
    app = make_bench_app(settings)
    app.conf.update(broker_transport_options={}, task_send_sent_event=False)
    node = f"{settings.redis_prefix}@localhost"
    commands = {
        "consumer": ["billing.cli", "consumer"],
        "relay": ["billing.cli", "relay"],
        "worker": _worker(settings, node),
    }
    logs = {name: ground.folder_of(NAME) / f"{name}.log" for name in commands}
    processes = {
        name: ground.start(name, [sys.executable, "-m", *command], settings, logs[name])
        for name, command in commands.items()
    }
    line = _Line(app, container, customers, processes, logs)
    control: Any = app.control
    line.wait(
        lambda: bool(control.ping(destination=[node], timeout=1.0, limit=1)),
        "the worker to start",
        _START_SECONDS,
    )
    return line


def _worker(settings: Settings, node: str) -> list[str]:
    queues = ",".join(queue_of(settings, lane) for lane in BILLED)
    return [
        *("celery", "-A", "lab.bench.overhead_worker", "worker", "--pool", "prefork"),
        *("--concurrency", "2", "--loglevel", "WARNING", "--queues", queues),
        *("--hostname", node, "--task-events", "--without-gossip", "--without-mingle"),
    ]
