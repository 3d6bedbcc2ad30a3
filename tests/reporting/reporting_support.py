"""A log with a reporter behind it, a provider that fails to order, and the invariant."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from support import NOW, add_customer, add_sku, make_event

from billing.core.clock import ManualClock
from billing.core.period import month_of
from billing.log.writer import LogWriter
from billing.reporting.provider import Answer, Cause, Meter, Provider, UsageReport
from billing.reporting.providers.file import FileProvider
from billing.reporting.providers.ledger import LedgerProvider
from billing.reporting.run import Advance, Pace, Reporter
from billing.reporting.store import CustomerIds, Destination, Metered, Reports, Sums
from billing.usage.event import usage_line

THIS_HOUR = NOW.replace(minute=0)
LAST_HOUR = THIS_HOUR - timedelta(hours=1)
CUSTOMERS = ("acme", "globex")
SKUS = ("page-capture", "premium-proxy-search")
Fault = Callable[[Provider, UsageReport], Answer]


class Killed(BaseException):
    """The process ends here: nothing catches it, as nothing catches a SIGKILL."""


def killed_before_sending(provider: Provider, report: UsageReport) -> Answer:
    del provider, report
    raise Killed


def killed_after_sending(provider: Provider, report: UsageReport) -> Answer:
    provider.report_usage(report)
    raise Killed


def answer_lost(provider: Provider, report: UsageReport) -> Answer:
    provider.report_usage(report)
    return Answer(cause=Cause.TIMED_OUT)


def answering(cause: Cause) -> Fault:
    return lambda _provider, _report: Answer(cause=cause, detail="to order")


@dataclass
class Faulty:
    """A provider in front of another: each report meets the next fault, then none."""

    inner: Any
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    seen: list[UsageReport] = field(default_factory=list)
    differences: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.name = self.inner.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def ensure_meters(self, meters: Sequence[Meter], *, dry_run: bool = False) -> Any:
        checks = self.inner.ensure_meters(meters, dry_run=dry_run)
        return [replace(check, differences=self.differences) for check in checks]

    def report_usage(self, report: UsageReport) -> Answer:
        self.seen.append(report)
        fault = self.faults.popleft() if self.faults else self.always
        if fault is not None:
            return fault(self.inner, report)
        answer: Answer = self.inner.report_usage(report)
        return answer


def metered(sku: str) -> Metered:
    return Metered(meter=Meter(sku=sku, name=f"wb.{sku}", display_name=sku))


class System:
    """Two customers, two SKUs, a log, an outbox, and two providers to report to."""

    def __init__(self, engine: sa.Engine, folder: Path) -> None:
        self.engine = engine
        self.clock = ManualClock(NOW)
        self.reports = Reports(engine)
        self.ledger = Faulty(LedgerProvider(engine))
        self.file = Faulty(FileProvider(folder))
        self.former: tuple[Provider, ...] = ()
        self.metered = metered
        for customer in CUSTOMERS:
            add_customer(engine, customer)
        for sku in SKUS:
            add_sku(engine, sku)
        self.writer = self.new_writer(engine)

    def new_writer(self, engine: sa.Engine) -> LogWriter:
        wide = timedelta(days=400)
        return LogWriter(engine, clock=self.clock, max_age=wide, max_ahead=wide, currency="USD")

    def use(
        self,
        amount: int,
        hour: datetime = LAST_HOUR,
        customer: str = "acme",
        sku: str = "page-capture",
        writer: LogWriter | None = None,
    ) -> None:
        """Log one event of so many microcredits."""
        event = make_event(
            metered_at=hour + timedelta(minutes=5), customer=customer, sku=sku,
            line=usage_line(sku), amount_microcredits=amount, held_microcredits=amount,
            finished_at=hour + timedelta(minutes=6),
        )  # fmt: skip
        result = (writer or self.writer).write([event.to_wire()])
        assert result.inserted == 1

    def reporter(self, provider: Any = None, *, senders: int = 1, batch: int = 64) -> Reporter:
        provider = provider or self.ledger
        return Reporter(
            self.reports,
            provider,
            Destination(
                environment="test",
                provider=provider.name,
                customer_ids=CustomerIds.OURS,
                metered=self.metered,
            ),
            [self.metered(sku).meter for sku in SKUS],
            self.clock,
            former=self.former,
            pace=Pace(senders=senders, batch=batch, rate_per_second=1e6, burst=1000),
            jitter=lambda: 1.0,
        )

    def advance(self, provider: Any = None) -> Advance:
        return self.reporter(provider).advance()

    def die(self, provider: Any = None) -> None:
        """A run that does not come to its end."""
        try:
            self.advance(provider)
        except Killed:
            return
        raise AssertionError("the run ended by itself")

    def later(self, **time: float) -> None:
        self.clock.advance(timedelta(**time))

    def states(self) -> list[tuple[int, str, str]]:
        """Every report as (revision, state, cause), in the order they were written."""
        query = sa.text("SELECT revision, state, cause FROM usage_reports ORDER BY id")
        with self.engine.connect() as connection:
            return [(row.revision, row.state, row.cause) for row in connection.execute(query)]

    def told(self, provider: Any) -> dict[tuple[str, str], int]:
        """What a provider has, per customer and SKU, over the days of the tests."""
        totals: defaultdict[tuple[str, str], int] = defaultdict(int)
        for customer in CUSTOMERS:
            for sku in SKUS:
                for back in range(-2, 10):
                    day = (NOW - timedelta(days=back)).date()
                    read = provider.inner.read_back(customer, self.metered(sku).meter.name, day)
                    totals[customer, sku] += sum(read.values())
        return {key: total for key, total in totals.items() if total}

    def sums(self) -> dict[tuple[str, str], Sums]:
        """The invariant's terms, after checking that the invariant holds."""
        found = {(s.customer, s.sku): s for s in self.reports.sums(month_of(NOW))}
        query = sa.text(
            "SELECT customer_id, sku_id, sum(amount_microcredits) FROM usage_events GROUP BY 1, 2"
        )
        with self.engine.connect() as connection:
            logged = {(row[0], row[1]): int(row[2]) for row in connection.execute(query)}
        assert {key: s.logged for key, s in found.items()} == logged
        for s in found.values():
            assert s.logged == s.accepted + s.open + s.parked + s.unclaimed
        return found

    def assert_all_told(self, *providers: Any) -> None:
        """Every unit of the log is at one of the providers, once, and the books say so."""
        providers = providers or (self.ledger,)
        at_providers: defaultdict[tuple[str, str], int] = defaultdict(int)
        for provider in providers:
            for key, value in self.told(provider).items():
                at_providers[key] += value
        sums = self.sums()
        for s in sums.values():
            assert (s.accepted, s.open, s.parked, s.unclaimed) == (s.logged, 0, 0, 0), s
        assert dict(at_providers) == {key: s.logged for key, s in sums.items() if s.logged}
