"""Suite reporting: what it costs to find out what is due, and how fast it can leave.

Two logs with the same customers, SKUs and hours, one with many times the events: planning reads
rollups and reports, never the log, so both cost the same. Then everything that is due leaves for a
provider that answers at once: what is left is the reporter's own cost, in transactions.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from time import perf_counter
from typing import Any, Final

import sqlalchemy as sa

from benchmarks.bulk import SKUS, Shape, fill, months_before
from benchmarks.effort import Effort, Outcome
from benchmarks.errors import BenchError
from benchmarks.ground import Ground, Say
from benchmarks.report import Goal, compare
from billing.core.clock import Clock
from billing.core.period import Period
from billing.log.engine import owner_engine
from billing.reporting.provider import Answer, Cause, Meter, MeterCheck, UsageReport
from billing.reporting.run import Pace, Reporter
from billing.reporting.store import CustomerIds, Destination, Metered, Reports

NAME: Final = "reporting"
EVENTS_PER_BUCKET: Final = 9
"""In the smaller log: then hardly a bucket is empty there that is not in the larger one."""
ALLOWED: Final = 1_000.0
"""Meter events a second that Stripe takes in live mode."""
_GROWTH: Final = 1.2


class Instant:
    """A provider that takes everything at once and remembers nothing but how much it was."""

    name = "instant"
    max_age: timedelta | None = None

    def __init__(self) -> None:
        self.taken = 0
        self._lock = threading.Lock()

    def ensure_meters(self, meters: Sequence[Meter], *, dry_run: bool = False) -> list[MeterCheck]:
        """All there."""
        del dry_run
        return [MeterCheck(meter=meter, provider_id=meter.name, created=False) for meter in meters]

    def report_usage(self, report: UsageReport) -> Answer:
        """Taken."""
        del report
        with self._lock:
            self.taken += 1
        return Answer(cause=Cause.TAKEN)

    def read_back(self, customer_ref: str, meter: str, day: date) -> Mapping[datetime, int]:
        """Nothing is kept."""
        del customer_ref, meter, day
        return {}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what reporting does not need
        raise BenchError(f"reporting asked the provider for {name}")


def run(ground: Ground, effort: Effort, say: Say) -> Outcome:
    """Measure.

    Raises:
        BenchError: Not everything that was due was sent.
    """
    clock = ground.system(ground.settings(NAME)).clock
    (month,) = months_before(clock.now(), 1)
    few = effort.reported_events
    many = few * effort.reported_times
    hours = (month.end - month.start) // timedelta(hours=1)
    customers = max(1, few // (hours * len(SKUS) * EVENTS_PER_BUCKET))
    logs = [
        _Log(ground, Shape(events=events, customers=customers, months=[month], skew=1), clock, say)
        for events in (many, few)
    ]
    plans, quiet = [], []
    for number in range(effort.repetitions):
        say(f"planning, repetition {number + 1} of {effort.repetitions}")
        many_first, few_first = (log.plan_all() for log in logs)
        plans.append((many_first, few_first))
        many_again, few_again = (log.plan_nothing() for log in logs)
        quiet.append((many_again, few_again))
    say("sending")
    ceilings = [logs[1].send(effort.reported_batch) for _ in range(effort.repetitions)]
    before = _resident()
    due = logs[1].plan_all(measured=False)
    allowed = logs[1].send(due, rate=ALLOWED)
    grown = _resident() - before
    for log in logs:
        log.close()
    note = (
        f"reporting: {due:,} due reports left in one run at {allowed[0]:,.0f} a second "
        f"({ALLOWED:,.0f} are allowed); resident memory grew by {grown:.0f} MiB."
    )
    goal = Goal(ratio_at_most=_GROWTH)
    against = f"{few:,} events, as many buckets"
    what = f"{many:,} events"
    return Outcome(
        [
            compare(NAME, f"first plan, {what}", "s", against, plans, goal),
            compare(NAME, f"plan with nothing due, {what}", "s", against, quiet, goal),
            compare(
                NAME, "reporter's own ceiling", "reports/s", "single-row commits, one connection",
                ceilings,
            ),
        ],
        [note],
    )  # fmt: skip


class _Log:
    """One log, its rollups, and reports of them to the instant provider."""

    def __init__(self, ground: Ground, shape: Shape, clock: Clock, say: Say) -> None:
        self.engine = owner_engine(ground.extra_database(f"reported_{shape.events}"))
        fill(self.engine, shape, lambda text: say(f"{shape.events:,} events, {text}"))
        self.clock = clock
        self.provider = Instant()
        self.reports = Reports(self.engine)
        with self.engine.connect() as connection:
            skus = connection.execute(sa.text("SELECT id FROM skus")).scalars().all()
        self.meters = {sku: Meter(sku=sku, name=f"b.{sku}", display_name=sku) for sku in skus}
        self.destination = Destination(
            environment="bench",
            provider=self.provider.name,
            customer_ids=CustomerIds.OURS,
            metered=lambda sku: Metered(meter=self.meters[sku]),
        )
        self.month: Period = shape.months[0]

    def close(self) -> None:
        self.engine.dispose()

    def plan_all(self, *, measured: bool = True) -> Any:  # noqa: ANN401 - seconds, or reports
        """Seconds to plan every bucket anew; or how many there are."""
        with self.engine.begin() as connection:
            connection.execute(sa.text("TRUNCATE usage_reports, report_passes CASCADE"))
        began = perf_counter()
        planned = self._plan()
        seconds = perf_counter() - began
        if not planned:
            raise BenchError("nothing was due")
        return seconds if measured else planned

    def plan_nothing(self) -> float:
        """Seconds of a whole comparison that finds nothing."""
        with self.engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM report_passes"))
            connection.execute(
                sa.text("UPDATE usage_reports SET state = 'accepted', answered_at = created_at")
            )
        began = perf_counter()
        if self._plan():
            raise BenchError("something was due twice")
        return perf_counter() - began

    def send(self, count: int, rate: float = 1e9) -> tuple[float, float]:
        """Reports a second of so many, and single-row commits a second."""
        with self.engine.begin() as connection:
            connection.execute(
                sa.text(
                    "UPDATE usage_reports SET state = 'pending', claim = NULL, lease_until = NULL,"
                    " confirm_at = NULL, answered_at = NULL WHERE id IN"
                    " (SELECT id FROM usage_reports ORDER BY customer_id, hour, id LIMIT :count)"
                ),
                {"count": count},
            )
        pace = Pace(rate_per_second=rate, burst=100, senders=8, batch=64)
        reporter = Reporter(
            self.reports, self.provider, self.destination, list(self.meters.values()), self.clock,
            pace=pace,
        )  # fmt: skip
        self.provider.taken = 0
        began = perf_counter()
        reporter.advance()
        sent = self.provider.taken / (perf_counter() - began)
        if self.provider.taken < count:
            raise BenchError(f"{self.provider.taken} of {count} reports were sent")
        return sent, self._commits(min(count, 500))

    def _plan(self) -> int:
        until = self.month.end
        return self.reports.plan(self.destination, until=until, now=self.clock.now())

    def _commits(self, count: int) -> float:
        update = sa.text("UPDATE skus SET description = :text WHERE id = :sku")
        (sku, *_) = self.meters
        began = perf_counter()
        for number in range(count):
            with self.engine.begin() as connection:
                connection.execute(update, {"sku": sku, "text": str(number)})
        return count / (perf_counter() - began)


def _resident() -> float:
    """The most that this process ever had in memory, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
