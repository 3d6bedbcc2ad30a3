"""With Stripe behind it: what the log has counts there once, to the unit, whatever happens.

``test_reporting_invariant`` has the same of providers that fail to order. Here the requests are
real, and so are the refusals: of a repeated identifier, of a figure that is too old.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from confirm_support import Desk, at_stripe
from reporting_support import (
    LAST_HOUR,
    SKUS,
    THIS_HOUR,
    Container,
    Fault,
    Faulty,
    Killed,
    coarse,
    killed_after_sending,
    killed_before_sending,
)
from stripe_bench import EVENTS, LocalStripe
from support import NOW

from billing.providers.port import ProviderCause
from billing.reporting.sender import Pace, ReportSender

HOUR = timedelta(hours=1)
ALL_ALONG = 1_000_000
"""Times of a fault that goes on until it is lifted."""


@pytest.fixture
def desk(container: Container, local: LocalStripe) -> Desk:
    """A log, an outbox and a local Stripe whose summaries are never late."""
    local.control.post("settings", summary_seconds=0, judgement_seconds=0)
    return at_stripe(container, local)


def lift(local: LocalStripe) -> None:
    """Whatever fault was ordered is over."""
    local.control.client.delete("/_sandbox/faults").raise_for_status()


def counted(desk: Desk, days: int = 3) -> dict[tuple[str, str], int]:
    """What counts at Stripe from three days ago on, in the meters' smallest unit."""
    totals: Counter[tuple[str, str]] = Counter()
    for customer, ref in desk.refs.items():
        for sku in SKUS:
            meter = desk.container.metered(sku).meter.name
            for day in range(-3, days):
                at = (NOW + timedelta(days=day)).date()
                totals[customer, sku] += sum(desk.provider.inner.read_back(ref, meter, at).values())
    return {key: total for key, total in totals.items() if total}


def logged(desk: Desk) -> dict[tuple[str, str], int]:
    """The log, after checking the books' invariant in every month."""
    desk.container.books()
    return {(one.customer, one.sku): one.logged for one in desk.container.sums_ever()}


def confirmed(desk: Desk) -> None:
    """What was accepted is read back; the books, Stripe and the log are one figure."""
    desk.later(hours=1)
    desk.confirm()
    desk.assert_all_confirmed()


def identifiers(local: LocalStripe) -> list[str]:
    return [one["params"]["identifier"] for one in local.requests(EVENTS)]


def cycle(desk: Desk, start: datetime, end: datetime, customer: str = "acme") -> str:
    """A period ends: its draft, which is final an hour later."""
    assert desk.local is not None
    order = {
        "customer": desk.refs[customer],
        "period_start": int(start.timestamp()),
        "period_end": int(end.timestamp()),
        "meters": [desk.container.metered(sku).meter.name for sku in SKUS],
    }
    return str(desk.local.control.post("cycles", **order)["id"])


def billed(desk: Desk, invoice: str, sku: str = SKUS[0]) -> int:
    """What an invoice bills of a SKU's meter, as the adapter reads it."""
    name = desk.container.metered(sku).meter.name
    found = desk.provider.inner.provider_invoice(invoice)
    return sum(line.value for line in found.lines if line.meter == name)


def close_period(desk: Desk, invoice: str, customer: str = "acme") -> int:
    """What a webhook or a poll does: how many periods were sealed."""
    found = desk.provider.inner.provider_invoice(invoice)
    return desk.container.record_invoice("stripe", customer, found)


# -- the reporter --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("death", "repeated"), [(killed_before_sending, 0), (killed_after_sending, 1)]
)
def test_killed_between_claim_and_commit(desk: Desk, death: Fault, repeated: int) -> None:
    desk.container.use(1_234_567)
    desk.container.use(3, customer="globex")
    with pytest.raises(Killed):
        desk.advance(Faulty(desk.provider.inner, always=death))
    assert desk.container.books().open == 1_234_567
    desk.later(minutes=6)
    done = desk.advance()
    assert done.causes[ProviderCause.DUPLICATE_IDENTIFIER] == repeated
    confirmed(desk)


def test_three_reporters_at_once_send_each_figure_once_and_never_two_of_a_customer_and_meter(
    desk: Desk, local: LocalStripe
) -> None:
    for back in range(6):
        for customer in desk.refs:
            for sku in SKUS:
                desk.container.use(back + 1, LAST_HOUR - back * HOUR, customer=customer, sku=sku)
    gate = threading.Barrier(3)

    def run(_: int) -> None:
        reporter = ReportSender(
            desk.container.reports,
            local.adapter(),
            desk.destination(),
            [desk.container.metered(sku).meter for sku in SKUS],
            desk.container.clock,
            pace=Pace(senders=3, batch=4, rate_per_second=1e6, burst=1000),
        )
        gate.wait(timeout=60)
        reporter.advance()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, range(3)))
    desk.advance()
    sent = identifiers(local)
    assert len(sent) == len(set(sent)) == 24
    assert local.control.get("state")["overlapping_meter_events"] == {}
    confirmed(desk)


# -- outages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "server_error"},
        {"kind": "server_error", "effect": True},
        {"kind": "rate_limit"},
        {"kind": "unauthorized"},
    ],
    ids=str,
)
def test_an_outage_of_thirty_hours(desk: Desk, local: LocalStripe, fault: dict[str, Any]) -> None:
    local.control.fault(path=EVENTS, times=ALL_ALONG, **fault)
    for hours in range(30):
        desk.container.use(hours + 1, LAST_HOUR + hours * HOUR)
        desk.container.use(2, LAST_HOUR, customer="globex")
        desk.advance()
        desk.later(hours=1)
        logged(desk)
    lift(local)
    desk.later(hours=1)
    desk.advance()
    desk.later(hours=1)
    desk.advance()  # what came after a first figure without an answer is its second revision
    confirmed(desk)


def test_an_outage_of_36_days_carries_what_stripe_takes_no_longer(
    desk: Desk, local: LocalStripe
) -> None:
    local.control.fault("unauthorized", path=EVENTS, times=ALL_ALONG)
    desk.container.use(7)
    desk.container.use(9, LAST_HOUR + timedelta(days=30))
    desk.advance()
    desk.later(days=36)
    lift(local)
    desk.advance()
    assert [line[2:] for line in desk.container.carries()] == [(7, "too_old")]
    desk.later(hours=1)
    desk.advance()
    assert counted(desk, days=38) == logged(desk) == {("acme", SKUS[0]): 16}
    assert desk.container.books().accepted == 16
    assert [one["status"] for one in local.requests(EVENTS)] == [401, 200, 200]


@pytest.mark.parametrize("arrived", [True, False])
def test_an_outage_of_36_days_after_a_lost_answer_counts_it_once(
    desk: Desk, local: LocalStripe, arrived: bool
) -> None:
    local.control.fault("timeout", path=EVENTS, effect=arrived)
    desk.container.use(7)
    desk.advance()
    local.control.fault("unauthorized", path=EVENTS, times=ALL_ALONG)
    desk.later(days=36)
    desk.advance()
    lift(local)
    for _ in range(8):  # hours as old as these are compared once a day
        desk.later(hours=5)
        desk.advance()
        desk.confirm()
        logged(desk)
    assert counted(desk, days=40) == logged(desk) == {("acme", SKUS[0]): 7}
    assert [line[2:] for line in desk.container.carries()] == ([] if arrived else [(7, "too_old")])


def test_no_meter_at_the_start(desk: Desk, local: LocalStripe) -> None:
    local.control.post("reset")
    local.control.post("settings", summary_seconds=0, judgement_seconds=0)
    for customer in desk.refs:
        desk.link(customer, desk.provider.inner.link_customer(customer, customer))
    desk.container.use(100)
    done = desk.advance()
    assert len(done.blocked) == len(SKUS)
    assert local.requests(EVENTS) == []
    assert desk.container.books().open == 100
    desk.container.use(11)
    desk.provider.inner.ensure_meters([desk.container.metered(sku).meter for sku in SKUS])
    desk.advance()
    confirmed(desk)


# -- amounts -------------------------------------------------------------------------------------


def test_fractions_of_a_meters_unit_reach_it_as_whole_digits(
    desk: Desk, container: Container, local: LocalStripe
) -> None:
    container.metered = coarse(2)
    desk.provider.inner.ensure_meters([container.metered(sku).meter for sku in SKUS])
    amounts = [1_234_567, 1, 9_999, 10_000, 765_433, 10**12 + 1]
    for back, amount in enumerate(amounts):
        container.use(amount, LAST_HOUR - back * HOUR)
    for _ in range(4):
        desk.advance()
        desk.later(hours=1)
    values = [one["params"]["payload"]["value"] for one in local.requests(EVENTS)]
    assert all(value.isascii() and value.isdigit() for value in values), values
    books = container.books()
    assert books.accepted + books.parked + books.unclaimed == books.logged == sum(amounts)
    assert 0 <= books.parked < 10_000
    assert counted(desk) == {("acme", SKUS[0]): books.accepted // 10_000}
    assert books.accepted % 10_000 == 0


# -- ends of periods -----------------------------------------------------------------------------


@pytest.mark.parametrize("noticed_at_once", [True, False])
def test_late_usage_during_and_after_finalization_is_billed_once_all_invoices_together(
    desk: Desk, noticed_at_once: bool
) -> None:
    hour = LAST_HOUR - HOUR
    desk.container.use(100, hour)
    desk.advance()
    first = cycle(desk, hour - timedelta(days=3), THIS_HOUR)
    desk.container.use(11, hour)  # while it is a draft
    desk.advance()
    desk.later(hours=1)
    assert billed(desk, first) == 111
    if noticed_at_once:
        assert close_period(desk, first) == len(SKUS)
    desk.container.use(5, hour)
    desk.advance()  # if nobody has noticed, Stripe takes it, and bills nobody
    assert close_period(desk, first) == (0 if noticed_at_once else len(SKUS))
    desk.container.use(7, hour)
    desk.container.use(50, THIS_HOUR)
    for _ in range(3):
        desk.advance()
        logged(desk)
        desk.later(hours=1)
    desk.advance()
    second = cycle(desk, THIS_HOUR, THIS_HOUR + 12 * HOUR)
    desk.later(hours=12)
    assert (billed(desk, first), billed(desk, second)) == (111, 62)
    assert logged(desk) == {("acme", SKUS[0]): 111 + 62}
    assert {line[3] for line in desk.container.carries()} <= {"late", "billed"}


def test_an_invoice_that_billed_too_much_is_made_up_for_and_never_by_a_negative_figure(
    desk: Desk, local: LocalStripe
) -> None:
    desk.container.use(100)
    desk.advance()
    desk.edit(130)
    first = cycle(desk, LAST_HOUR - timedelta(days=3), THIS_HOUR)
    desk.later(hours=1)
    close_period(desk, first)
    for _ in range(3):
        desk.advance()
        desk.later(hours=1)
    assert desk.container.books().parked == -30
    desk.container.use(50, desk.container.clock.now().replace(minute=0))
    for _ in range(3):
        desk.later(hours=1)
        desk.advance()
    second = cycle(desk, THIS_HOUR, THIS_HOUR + 24 * HOUR)
    desk.later(hours=24)
    assert billed(desk, first) + billed(desk, second) == 150
    assert logged(desk) == {("acme", SKUS[0]): 150}
    values = [int(one["params"]["payload"]["value"]) for one in local.requests(EVENTS)]
    assert min(values) >= 0


# -- a change of provider ------------------------------------------------------------------------


def test_from_the_ledger_to_stripe_to_files_and_back_nothing_is_told_twice(
    desk: Desk, local: LocalStripe
) -> None:
    container = desk.container
    steps: list[Callable[[], Any]] = [
        lambda: container.advance(container.ledger),
        desk.advance,
        lambda: container.advance(container.file),
        desk.advance,
    ]
    for number, advance in enumerate(steps):
        container.use(10**number)
        container.use(5 * 10**number, LAST_HOUR - HOUR, customer="globex")
        advance()
        advance()
    at: Counter[tuple[str, str]] = Counter()
    for told in (container.told(container.ledger), counted(desk), container.told(container.file)):
        at.update(told)
    assert dict(at) == logged(desk) == {("acme", SKUS[0]): 1111, ("globex", SKUS[0]): 5555}
    assert counted(desk) == {("acme", SKUS[0]): 1010, ("globex", SKUS[0]): 5050}
    assert container.books().accepted == 1111
    assert len(local.requests(EVENTS)) == 4


def test_a_change_of_provider_while_stripe_owes_an_answer(desk: Desk, local: LocalStripe) -> None:
    container = desk.container
    local.control.fault("timeout", path=EVENTS)  # after the effect
    container.use(7)
    desk.advance()
    container.use(4)
    container.later(hours=1)
    container.advance(container.ledger)
    assert (container.told(container.ledger), container.books().open) == ({}, 7)
    # With its key still set, Stripe is asked for its answer, and the rest goes to the ledger.
    container.former = (local.adapter(),)
    container.advance(container.ledger)
    assert counted(desk) == {("acme", SKUS[0]): 7}
    assert container.told(container.ledger) == {("acme", SKUS[0]): 4}
    assert (container.books().accepted, container.books().logged) == (11, 11)
