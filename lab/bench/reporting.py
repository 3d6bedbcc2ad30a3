"""Suite reporting: what it costs to find out what is due, and how fast it can leave.

Two logs with the same customers, SKUs and hours, one with many times the events: planning reads
rollups and reports, never the log, so both cost the same. Then reports leave for a provider that
answers at once: what is left is the reporter's own cost, in transactions. Then everything that is
due leaves in one run, at the rate that Stripe allows, and this process's memory is watched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from time import perf_counter
from typing import Any, Final

import sqlalchemy as sa

from billing.core.clock import Clock
from billing.core.periods import Period
from billing.postgres.engines import owner_engine
from billing.providers.port import (
    MeterCheck,
    ProviderAnswer,
    ProviderCause,
    ProviderMeter,
    UsageReport,
)
from billing.reporting.report_store import CustomerIds, Destination, Metered, ReportStore
from billing.reporting.sender import Pace, ReportSender
from lab.bench.bulk import SKUS, Shape, fill, months_before
from lab.bench.drain import Watch
from lab.bench.effort import Effort, Outcome
from lab.bench.errors import BenchError
from lab.bench.ground import Ground, Say
from lab.bench.report import Figure, Goal, compare

NAME: Final = "reporting"
EVENTS_PER_BUCKET: Final = 9
"""In the smaller log: then hardly a bucket is empty there that is not in the larger one."""
ALLOWED: Final = 1_000.0
"""Meter events a second that Stripe takes in live mode."""
ANSWER_SECONDS: Final = 0.1
"""About what a request to Stripe takes: the senders wait for answers, and not for themselves."""
SENDERS: Final = 8
MOST_SENDERS: Final = 64
"""What ``WEIGHBRIDGE_REPORT_SENDERS`` takes at most."""
UNLIMITED: Final = 1e9
_GROWTH: Final = 1.2
_AS_ALLOWED: Final = 0.95
_FLAT: Final = 1.1

_Pairs = Sequence[tuple[float, float]]


class Instant:
    """A provider that takes everything and remembers nothing but how much it was.

    ``answer_seconds`` is how long it takes to answer; ``watch`` is told of every report.
    """

    name = "instant"
    max_age: timedelta | None = None

    def __init__(self) -> None:
        self.taken = 0
        self.answer_seconds = 0.0
        self.watch: Watch | None = None
        self._lock = threading.Lock()

    def ensure_meters(
        self, meters: Sequence[ProviderMeter], *, dry_run: bool = False
    ) -> list[MeterCheck]:
        """All there."""
        del dry_run
        return [MeterCheck(meter=meter, provider_id=meter.name, created=False) for meter in meters]

    def report_usage(self, report: UsageReport) -> ProviderAnswer:
        """Taken."""
        del report
        if self.answer_seconds:
            time.sleep(self.answer_seconds)
        with self._lock:
            self.taken += 1
            if self.watch is not None:
                self.watch.taken(self.taken)
        return ProviderAnswer(cause=ProviderCause.TAKEN)

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
    clock = ground.container(ground.settings(NAME)).clock
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
    ceilings = [logs[1].ceiling(effort.reported_batch) for _ in range(effort.repetitions)]
    answered = [logs[1].answered(effort.reported_batch) for _ in range(effort.repetitions)]
    say("draining everything that is due")
    due, watch = logs[1].drain(effort.repetitions)
    for log in logs:
        log.close()
    return Outcome(
        [
            *_planning(few, many, plans, quiet),
            *_draining(due, watch),
            compare(
                NAME, "reporter's own ceiling", "reports/s", "single-row commits, one connection",
                ceilings,
            ),
            compare(
                NAME, f"answers after {ANSWER_SECONDS * 1000:.0f} ms, {MOST_SENDERS} senders",
                "reports/s", f"{SENDERS} senders, the default", answered,
            ),
        ],
        [_note(due, watch)],
    )  # fmt: skip


def _planning(few: int, many: int, plans: _Pairs, quiet: _Pairs) -> list[Figure]:
    goal = Goal(ratio_at_most=_GROWTH)
    against = f"{few:,} events, as many buckets"
    return [
        compare(NAME, f"first plan, {many:,} events", "s", against, plans, goal),
        compare(NAME, f"plan with nothing due, {many:,} events", "s", against, quiet, goal),
    ]


def _draining(due: int, watch: Watch) -> list[Figure]:
    return [
        compare(
            NAME, f"drain of {due:,} due reports, each part of one run", "reports/s",
            "what Stripe allows", [(rate, ALLOWED) for rate in watch.rates()],
            Goal(ratio_at_least=_AS_ALLOWED),
        ),
        compare(
            NAME, "most resident memory in each part of that run", "MiB",
            "before its first report", watch.memory(), Goal(ratio_at_most=_FLAT),
        ),
    ]  # fmt: skip


def _note(due: int, watch: Watch) -> str:
    return (
        f"reporting: {due:,} due reports left in one run of {watch.seconds():.0f} s; the most "
        f"memory meanwhile was {watch.grown():+.1f} MiB more than before the first one."
    )


class _Log:
    """One log, its rollups, and reports of them to the instant provider."""

    def __init__(self, ground: Ground, shape: Shape, clock: Clock, say: Say) -> None:
        self.engine = owner_engine(ground.extra_database(f"reported_{shape.events}"))
        fill(self.engine, shape, lambda text: say(f"{shape.events:,} events, {text}"))
        self.clock = clock
        self.provider = Instant()
        self.reports = ReportStore(self.engine)
        with self.engine.connect() as connection:
            skus = connection.execute(sa.text("SELECT id FROM skus")).scalars().all()
        self.meters = {
            sku: ProviderMeter(sku=sku, name=f"b.{sku}", display_name=sku) for sku in skus
        }
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

    def ceiling(self, count: int) -> tuple[float, float]:
        """Reports a second of so many that are taken at once, and single-row commits a second."""
        return self._send(count), self._commits(min(count, 500))

    def answered(self, count: int) -> tuple[float, float]:
        """Reports a second through answers that take a while: the most senders, and the default."""
        self.provider.answer_seconds = ANSWER_SECONDS
        try:
            most = self._send(count, senders=MOST_SENDERS)
            return most, self._send(count // (MOST_SENDERS // SENDERS))
        finally:
            self.provider.answer_seconds = 0.0

    def drain(self, parts: int) -> tuple[int, Watch]:
        """How many reports were due, and what was seen while all left in one run, as allowed."""
        due: int = self.plan_all(measured=False)
        self.provider.watch = watch = Watch(due, parts)
        self._leave(due, rate=ALLOWED)
        self.provider.watch = None
        return due, watch

    def _send(self, count: int, *, senders: int = SENDERS) -> float:
        """Reports a second of so many that become due now."""
        with self.engine.begin() as connection:
            connection.execute(
                sa.text(
                    "UPDATE usage_reports SET state = 'pending', claim = NULL, lease_until = NULL,"
                    " confirm_at = NULL, answered_at = NULL WHERE id IN"
                    " (SELECT id FROM usage_reports ORDER BY hour, customer_id, id LIMIT :count)"
                ),
                {"count": count},
            )
        return self._leave(count, senders=senders)

    def _leave(self, count: int, *, rate: float = UNLIMITED, senders: int = SENDERS) -> float:
        """Reports a second of one run, in which so many that are due have to leave."""
        pace = Pace.of_settings(lag_seconds=300, rate_per_second=rate, senders=senders)
        reporter = ReportSender(
            self.reports, self.provider, self.destination, list(self.meters.values()), self.clock,
            pace=pace,
        )  # fmt: skip
        self.provider.taken = 0
        began = perf_counter()
        reporter.advance()
        sent = self.provider.taken / (perf_counter() - began)
        if self.provider.taken < count:
            raise BenchError(f"{self.provider.taken} of {count} reports were sent")
        return sent

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
