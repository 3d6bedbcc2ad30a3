"""The reporter with Stripe behind it: each unit of the log counts at Stripe once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from reporting_support import CUSTOMERS, LAST_HOUR, SKUS, Container, metered
from stripe_bench import EVENTS, METERS, LocalStripe
from support import NOW

from billing.providers.port import ProviderCause
from billing.providers.stripe.provider import StripeProvider
from billing.reporting.report_store import CustomerIds, Destination
from billing.reporting.sender import Advance, Pace, ReportSender

METERS_OF = [metered(sku).meter for sku in SKUS]


class Rig:
    """A log, an outbox, and a local Stripe whose meters and customers are set up."""

    def __init__(self, container: Container, local: LocalStripe) -> None:
        self.container = container
        self.local = local
        self.provider = local.adapter()
        self.provider.ensure_meters(METERS_OF)
        self.refs = {each: self.provider.link_customer(each, each.title()) for each in CUSTOMERS}
        update = sa.text("UPDATE customers SET stripe_customer_id = :ref WHERE id = :id")
        with container.engine.begin() as connection:
            for customer, ref in self.refs.items():
                connection.execute(update, {"id": customer, "ref": ref})

    def advance(self, provider: StripeProvider | None = None) -> Advance:
        """One run of a reporter."""
        reporter = ReportSender(
            self.container.reports,
            provider or self.provider,
            Destination(
                environment="test",
                provider="stripe",
                customer_ids=CustomerIds.STRIPE,
                metered=metered,
            ),
            METERS_OF,
            self.container.clock,
            pace=Pace(senders=1, batch=64, rate_per_second=1e6, burst=1000),
            jitter=lambda: 1.0,
        )
        return reporter.advance()

    def at_stripe(self) -> dict[tuple[str, str], int]:
        """What counts there, per customer and SKU, over the days of the tests."""
        days = [(NOW - timedelta(days=back)).date() for back in range(3)]
        totals = {
            (customer, meter.sku): sum(
                sum(self.provider.read_back(ref, meter.name, day).values()) for day in days
            )
            for customer, ref in self.refs.items()
            for meter in METERS_OF
        }
        return {key: total for key, total in totals.items() if total}


@pytest.fixture
def rig(container: Container, local: LocalStripe) -> Rig:
    return Rig(container, local)


def test_usage_is_at_stripe_to_the_unit(rig: Rig) -> None:
    rig.container.use(1_234_567)
    rig.container.use(3, customer="globex", sku=SKUS[1])
    rig.container.use(10**12, hour=LAST_HOUR - timedelta(hours=20))
    rig.advance()
    logged = {key: sums.logged for key, sums in rig.container.sums().items()}
    assert rig.at_stripe() == logged
    assert {state for _, state, _ in rig.container.states()} == {"accepted"}


def test_late_usage_of_an_hour_overwrites_its_figure(rig: Rig) -> None:
    rig.container.use(100)
    rig.advance()
    rig.container.use(11)
    rig.advance()
    assert rig.at_stripe() == {("acme", SKUS[0]): 111}
    assert [revision for revision, _, _ in rig.container.states()] == [1, 2]


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "timeout"},
        {"kind": "timeout", "effect": False},
        {"kind": "server_error"},
        {"kind": "server_error", "effect": True},
        {"kind": "rate_limit"},
        {"kind": "lock_timeout"},
        {"kind": "unauthorized"},
        {"kind": "forbidden"},
    ],
    ids=str,
)
def test_a_fault_delays_and_neither_loses_nor_doubles(rig: Rig, fault: dict[str, Any]) -> None:
    rig.container.use(100)
    rig.local.control.fault(path=EVENTS, **fault)
    rig.advance()
    [(_, state, cause)] = rig.container.states()
    assert state in {"unknown", "pending"}
    assert cause in set(ProviderCause)
    rig.container.later(hours=1)
    rig.advance()
    assert [(revision, state) for revision, state, _ in rig.container.states()] == [(1, "accepted")]
    assert rig.at_stripe() == {("acme", SKUS[0]): 100}


def test_a_key_that_is_refused_stops_the_run_and_says_so(rig: Rig) -> None:
    rig.container.use(100)
    rig.container.use(100, customer="globex")
    rig.local.control.fault("unauthorized", path=EVENTS, times=2)
    done = rig.advance()
    assert "stripe" in done.stopped
    assert len(rig.local.requests(EVENTS)) == 1
    assert done.causes[ProviderCause.KEY_REFUSED] == 1


def test_nothing_is_sent_to_a_meter_that_counts_otherwise(rig: Rig) -> None:
    [check, _] = rig.provider.ensure_meters(METERS_OF)
    rig.local.person.billing.meters.deactivate(check.provider_id)
    rig.container.use(100)
    done = rig.advance()
    assert done.blocked == {METERS_OF[0].name: "status is inactive, needed active"}
    assert rig.local.requests(EVENTS) == []
    rig.local.person.billing.meters.reactivate(check.provider_id)
    rig.advance()
    assert rig.at_stripe() == {("acme", SKUS[0]): 100}


def test_a_run_asks_for_the_meters_once_and_sends_each_figure_once(rig: Rig) -> None:
    for back in range(5):
        rig.container.use(100, hour=LAST_HOUR - timedelta(hours=back))
    before = len(rig.local.requests(METERS))
    rig.advance()
    assert len(rig.local.requests(EVENTS)) == 5
    assert len(rig.local.requests(METERS)) <= before + 2
