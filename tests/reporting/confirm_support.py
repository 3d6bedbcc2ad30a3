"""A log, an outbox and a provider whose figures are read back; and what people do to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from reporting_support import CUSTOMERS, LAST_HOUR, SKUS, Container
from stripe_bench import LocalStripe
from support import NOW

from billing.providers.port import Provider, ProviderUnavailable, UsageReport
from billing.reporting.comparison import ProviderComparison
from billing.reporting.confirmations import ConfirmationStore
from billing.reporting.destination import CustomerIds, Destination
from billing.reporting.read_back import ReadBack, ReadBackPace, ReadBackResult
from billing.reporting.sender import Advance, Pace, ReportSender

QUICK = ReadBackPace(rate_per_second=1e6, burst=1000)
QUARTER = timedelta(minutes=15)


class Asked:
    """A provider that notes what is read back, and does not answer for as long as it is told."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.name: str = inner.name
        self.reads: list[tuple[str, str, date]] = []
        self.silence: ProviderUnavailable | None = None
        # What happens elsewhere while the answer is on its way.
        self.meanwhile: Callable[[], object] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read_back(self, customer_ref: str, meter: str, day: date) -> Mapping[datetime, int]:
        self.reads.append((customer_ref, meter, day))
        if self.silence is not None:
            raise self.silence
        found: Mapping[datetime, int] = self.inner.read_back(customer_ref, meter, day)
        if self.meanwhile is not None:
            self.meanwhile()
        return found


class Desk:
    """Everything between the log and one provider."""

    def __init__(self, container: Container, inner: Any, ids: CustomerIds) -> None:
        self.container = container
        self.engine = container.engine
        self.provider = Asked(inner)
        self.ids = ids
        self.confirmations = ConfirmationStore(container.engine)
        self.refs = {each: inner.link_customer(each, each.title()) for each in CUSTOMERS}
        self.edits = 0
        self.local: LocalStripe | None = None
        inner.ensure_meters([container.metered(sku).meter for sku in SKUS])

    def destination(self) -> Destination:
        return Destination(
            environment="test", provider=self.provider.name, customer_ids=self.ids,
            metered=self.container.metered, max_age=self.provider.max_age,
        )  # fmt: skip

    def advance(self, provider: Any = None) -> Advance:
        """One run of a reporter."""
        reporter = ReportSender(
            self.container.reports,
            provider or self.provider,
            self.destination(),
            [self.container.metered(sku).meter for sku in SKUS],
            self.container.clock,
            pace=Pace(senders=1, batch=64, rate_per_second=1e6, burst=1000),
            jitter=lambda: 1.0,
        )
        return reporter.advance()

    def reader(self, pace: ReadBackPace = QUICK, engine: sa.Engine | None = None) -> ReadBack:
        confirmations = ConfirmationStore(engine or self.engine)
        provider: Provider = self.provider  # type: ignore[assignment]  # the rest is the inner one's
        return ReadBack(
            confirmations, provider, self.container.clock, environment="test", pace=pace
        )

    def confirm(self, **options: Any) -> ReadBackResult:
        """One run of a reader."""
        return self.reader().confirm(**options)

    def comparison(self) -> ProviderComparison:
        provider: Provider = self.provider  # type: ignore[assignment]  # the rest is the inner one's
        return ProviderComparison(
            self.engine, provider, self.destination(), self.container.clock, pace=QUICK
        )

    def later(self, **time: float) -> None:
        """Time passes, here and at the provider."""
        self.container.later(**time)
        if self.local is not None:
            seconds = timedelta(**time).total_seconds()
            self.local.control.post("clock", advance_seconds=seconds)

    def edit(
        self,
        value: int,
        hour: datetime = LAST_HOUR,
        customer: str = "acme",
        sku: str = "page-capture",
    ) -> None:
        """Somebody else tells the provider another figure for an hour."""
        self.edits += 1
        meter = self.container.metered(sku).meter.name
        if self.local is None:
            report = UsageReport(
                identifier=f"person:{self.edits}", customer_ref=self.refs[customer], meter=meter,
                hour=hour, value=value, timestamp=hour + QUARTER,
            )  # fmt: skip
            self.provider.inner.report_usage(report)
            return
        payload = {"stripe_customer_id": self.refs[customer], "value": str(value)}
        self.local.person.billing.meter_events.create(
            {"event_name": meter, "payload": payload, "timestamp": int(hour.timestamp()) + 60}
        )

    def figure(
        self, hour: datetime = LAST_HOUR, customer: str = "acme", sku: str = "page-capture"
    ) -> int | None:
        """What the provider counts in an hour."""
        meter = self.container.metered(sku).meter.name
        read: Mapping[datetime, int] = self.provider.inner.read_back(
            self.refs[customer], meter, hour.date()
        )
        return read.get(hour)

    def told(self) -> dict[tuple[str, str], int]:
        """What the provider counts, per customer and SKU, over the days of the tests."""
        totals = {
            (customer, sku): sum(
                sum(
                    self.provider.inner.read_back(
                        ref, self.container.metered(sku).meter.name, (NOW + back).date()
                    ).values()
                )
                for back in (timedelta(days=days) for days in range(-4, 3))
            )
            for customer, ref in self.refs.items()
            for sku in SKUS
        }
        return {key: total for key, total in totals.items() if total}

    def rows(self, columns: str = "revision, state, cause") -> list[Any]:
        """Some columns of every report, in the order they were written."""
        query = sa.text(f"SELECT {columns} FROM usage_reports ORDER BY id")
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(query)]

    def states(self) -> list[str]:
        """The state of each report, in the order they were written."""
        return [state for (state,) in self.rows("state")]

    def unconfirmed_since(self) -> datetime | None:
        """When the oldest report was answered that is accepted and not confirmed."""
        query = sa.text(
            "SELECT min(answered_at) FROM usage_reports"
            " WHERE state = 'accepted' AND confirm_at IS NOT NULL"
        )
        with self.engine.connect() as connection:
            found: datetime | None = connection.execute(query).scalar_one()
        return found

    def link(self, customer: str, ref: str | None) -> None:
        """Who a customer is at the provider from now on."""
        update = sa.text("UPDATE customers SET stripe_customer_id = :ref WHERE id = :id")
        with self.engine.begin() as connection:
            connection.execute(update, {"id": customer, "ref": ref})
        if ref is not None:
            self.refs[customer] = ref

    def assert_all_confirmed(self) -> None:
        """The provider counts every unit of the log, and the books say so."""
        sums = self.container.sums()
        for each in sums.values():
            assert (each.accepted, each.open, each.parked, each.unclaimed) == (
                each.logged, 0, 0, 0,
            ), each  # fmt: skip
        assert self.told() == {key: each.logged for key, each in sums.items() if each.logged}
        assert self.unconfirmed_since() is None
        latest = "SELECT DISTINCT state FROM usage_reports WHERE latest"
        with self.engine.connect() as connection:
            assert list(connection.execute(sa.text(latest)).scalars()) == ["confirmed"]


def at_stripe(container: Container, local: LocalStripe) -> Desk:
    """The desk of a local Stripe whose customers are linked."""
    desk = Desk(container, local.adapter(), CustomerIds.STRIPE)
    desk.local = local
    for customer, ref in desk.refs.items():
        desk.link(customer, ref)
    return desk
