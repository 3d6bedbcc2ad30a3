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
from billing.core.periods import Period, month_of, next_month
from billing.core.usage_event import usage_line
from billing.providers.files import FileProvider
from billing.providers.ledger import LedgerProvider
from billing.providers.port import (
    MeteredLine,
    Provider,
    ProviderAnswer,
    ProviderCause,
    ProviderInvoice,
    ProviderMeter,
    UsageReport,
)
from billing.reporting.closed_periods import record_closed_periods
from billing.reporting.report_store import CustomerIds, Destination, Metered, ReportStore, Sums
from billing.reporting.sender import Advance, Pace, ReportSender
from billing.reporting.usage_report import OPEN, TAKEN
from billing.usage_log.log_writer import LogWriter

THIS_HOUR = NOW.replace(minute=0)
LAST_HOUR = THIS_HOUR - timedelta(hours=1)
CUSTOMERS = ("acme", "globex")
SKUS = ("page-capture", "premium-proxy-search")
Fault = Callable[[Provider, UsageReport], ProviderAnswer]


class Killed(BaseException):
    """The process ends here: nothing catches it, as nothing catches a SIGKILL."""


def killed_before_sending(provider: Provider, report: UsageReport) -> ProviderAnswer:
    del provider, report
    raise Killed


def killed_after_sending(provider: Provider, report: UsageReport) -> ProviderAnswer:
    provider.report_usage(report)
    raise Killed


def answer_lost(provider: Provider, report: UsageReport) -> ProviderAnswer:
    provider.report_usage(report)
    return ProviderAnswer(cause=ProviderCause.TIMED_OUT)


def answering(cause: ProviderCause) -> Fault:
    return lambda _provider, _report: ProviderAnswer(cause=cause, detail="to order")


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

    def ensure_meters(self, meters: Sequence[ProviderMeter], *, dry_run: bool = False) -> Any:
        checks = self.inner.ensure_meters(meters, dry_run=dry_run)
        return [replace(check, differences=self.differences) for check in checks]

    def report_usage(self, report: UsageReport) -> ProviderAnswer:
        self.seen.append(report)
        fault = self.faults.popleft() if self.faults else self.always
        if fault is not None:
            return fault(self.inner, report)
        answer: ProviderAnswer = self.inner.report_usage(report)
        return answer


class Aged(Faulty):
    """A provider that takes no figure older than ``max_age``, by the tests' clock."""

    def __init__(self, inner: Any, clock: ManualClock, max_age: timedelta) -> None:
        super().__init__(inner)
        self.clock = clock
        self.max_age = max_age

    def report_usage(self, report: UsageReport) -> ProviderAnswer:
        old = report.timestamp < self.clock.now() - self.max_age
        if old and not self.faults and self.always is None:
            self.seen.append(report)
            return ProviderAnswer(cause=ProviderCause.TOO_OLD, detail="by its age")
        return super().report_usage(report)


def metered(sku: str) -> Metered:
    return Metered(meter=ProviderMeter(sku=sku, name=f"wb.{sku}", display_name=sku))


def coarse(decimals: int) -> Callable[[str], Metered]:
    """Meters that count so many decimals of a credit."""

    def of_sku(sku: str) -> Metered:
        name = f"wb.{sku}.d{decimals}"
        return Metered(meter=ProviderMeter(sku=sku, name=name, display_name=sku), decimals=decimals)

    return of_sku


class Container:
    """Two customers, two SKUs, a log, an outbox, and two providers to report to."""

    def __init__(self, engine: sa.Engine, folder: Path) -> None:
        self.engine = engine
        self.clock = ManualClock(NOW)
        self.reports = ReportStore(engine)
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

    def reporter(self, provider: Any = None, *, senders: int = 1, batch: int = 64) -> ReportSender:
        provider = provider or self.ledger
        return ReportSender(
            self.reports,
            provider,
            Destination(
                environment="test",
                provider=provider.name,
                customer_ids=CustomerIds.OURS,
                metered=self.metered,
                max_age=provider.max_age,
            ),
            [self.metered(sku).meter for sku in SKUS],
            self.clock,
            former=self.former,
            pace=Pace(senders=senders, batch=batch, rate_per_second=1e6, burst=1000),
            jitter=lambda: 1.0,
        )

    def advance(self, provider: Any = None) -> Advance:
        return self.reporter(provider).advance()

    def seal(
        self,
        billed: int,
        *,
        end: datetime = THIS_HOUR,
        start: datetime = THIS_HOUR - timedelta(hours=8),
        provider: Any = None,
        invoice: str = "in_1",
        customer: str = "acme",
        sku: str = "page-capture",
    ) -> int:
        """The provider's invoice for a customer's period is final, and the notice of it is here."""
        line = MeteredLine(
            meter=self.metered(sku).meter.name, period_start=start, period_end=end, value=billed
        )
        final = ProviderInvoice(
            provider_id=invoice, customer_ref=customer, status="open", currency="USD",
            total_minor=1, period_start=start, period_end=end, finalised_at=self.clock.now(),
            payment_failed=False, lines=[line],
        )  # fmt: skip
        name = (provider or self.ledger).name
        return self.record_invoice(name, customer, final)

    def record_invoice(self, provider: str, customer: str, invoice: ProviderInvoice) -> int:
        """Close the periods of an invoice; how many this call closed."""
        with self.engine.begin() as own:
            return record_closed_periods(own, provider, customer, invoice, self.clock.now())

    def carries(self) -> list[tuple[datetime, datetime, int, str]]:
        """Every line as (from, to, amount, reason), in the order they were written."""
        lines = reversed(self.reports.carries(limit=1000))
        return [(c.from_hour, c.to_hour, c.amount_microcredits, c.reason.value) for c in lines]

    def books(self, customer: str = "acme", sku: str = "page-capture") -> Sums:
        """The invariant's terms of one SKU over all time, after checking it for all of them."""
        months = [month_of(NOW)]
        for _ in range(3):
            months.append(next_month(months[-1]))
        of_months: defaultdict[tuple[str, str], int] = defaultdict(int)
        for month in months:
            for one in self.reports.sums(month):
                terms = (one.accepted, one.open, one.parked, one.unclaimed, one.carried)
                assert one.logged == sum(terms), one
                of_months[one.customer, one.sku] += one.carried
        assert not any(of_months.values()), of_months
        return {(s.customer, s.sku): s for s in self.sums_ever()}[customer, sku]

    def sums_ever(self) -> Sequence[Sums]:
        """The invariant's terms over all time."""
        wide = timedelta(days=400)
        return self.reports.sums(Period("ever", NOW - wide, NOW + wide))

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
                ahead = max(2, (self.clock.now() - NOW).days + 1)
                for back in range(-ahead, 10):
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
            assert s.logged == s.accepted + s.open + s.parked + s.unclaimed + s.carried
        return found

    def assert_figures_are_exact(self, decimals: int) -> None:
        """What is accepted or on its way is whole units of a meter, and the figure is so many."""
        states = [state.value for state in OPEN | TAKEN]
        query = sa.text("SELECT held_microcredits, value FROM usage_reports WHERE state = ANY(:s)")
        with self.engine.connect() as connection:
            for held, value in connection.execute(query, {"s": states}):
                assert held == value * 10 ** (6 - decimals)

    def assert_all_told(self, *providers: Any) -> None:
        """Every unit of the log is at one of the providers, once, and the books say so."""
        providers = providers or (self.ledger,)
        at_providers: defaultdict[tuple[str, str], int] = defaultdict(int)
        for provider in providers:
            for key, value in self.told(provider).items():
                at_providers[key] += value
        sums = self.sums()
        for s in sums.values():
            assert s.accepted == s.logged, s
            assert (s.open, s.parked, s.unclaimed, s.carried) == (0, 0, 0, 0), s
        assert dict(at_providers) == {key: s.logged for key, s in sums.items() if s.logged}
