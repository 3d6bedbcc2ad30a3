"""The end of a billing cycle: what gets onto its invoice, and from when on nothing does."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stripe_api import Api

from billing.core.clock import ManualClock
from billing.devtools.stripe_sandbox.cycles import Cycle, whole_windows
from billing.devtools.stripe_sandbox.errors import Refusal
from billing.devtools.stripe_sandbox.faults import Fault

HOUR = 3_600
DAY = 24 * HOUR


@pytest.fixture
def acme(api: Api) -> str:
    return api.customer(name="Acme", email="bills@acme.test")


@pytest.fixture
def now(api: Api) -> int:
    """The start of a UTC day."""
    return int(api.box.clock.seconds())


def kinds(api: Api) -> list[str]:
    return [event["type"] for event in api.box.events.all()]


def quantities(api: Api, invoice: str) -> list[tuple[int, str, int]]:
    lines = api.get(f"/v1/invoices/{invoice}/lines")["data"]
    return [(line["quantity"], line["quantity_decimal"], line["amount"]) for line in lines]


def test_the_end_of_a_cycle_is_a_draft_with_a_line_per_meter(api: Api, acme: str, now: int):
    meters = [api.meter(name) for name in ("pages", "searches")]
    api.report(acme, "1500000", at=now - 5 * HOUR, name="pages")
    api.report(acme, "70", at=now - DAY, name="searches")
    draft = api.cycle(acme, now - DAY, now)
    assert (draft["status"], draft["billing_reason"]) == ("draft", "subscription_cycle")
    assert (draft["auto_advance"], draft["automatically_finalizes_at"]) == (True, now + HOUR)
    assert (draft["period_start"], draft["period_end"]) == (now - DAY, now)
    assert (draft["customer"], draft["total"], draft["currency"]) == (acme, 150, "usd")
    assert draft["parent"]["type"] == "subscription_details"
    assert [line["quantity"] for line in draft["lines"]["data"]] == [1_500_000, 70]
    for line, meter in zip(draft["lines"]["data"], meters, strict=True):
        assert line["period"] == {"start": now - DAY, "end": now}
        assert line["parent"]["type"] == "subscription_item_details"
        price = api.get(f"/v1/prices/{line['pricing']['price_details']['price']}")
        assert price["recurring"]["meter"] == meter
        assert (price["recurring"]["usage_type"], price["type"]) == ("metered", "recurring")
        assert price["unit_amount_decimal"] == "0.0001"
    assert kinds(api)[-1] == "invoice.created"


def test_prices_items_and_the_subscription_stay_from_cycle_to_cycle(api: Api, acme: str, now: int):
    api.meter()
    api.report(acme, "1", at=now - DAY)
    api.report(acme, "2", at=now)
    first = api.cycle(acme, now - DAY, now)["lines"]["data"][0]
    second = api.cycle(acme, now, now + DAY)["lines"]["data"][0]
    assert first["pricing"] == second["pricing"]
    assert first["parent"] == second["parent"]
    dearer = api.cycle(acme, now, now + DAY, unit_amount_decimal="2", currency="eur")
    assert dearer["lines"]["data"][0]["pricing"]["price_details"] != first["pricing"]
    assert (dearer["total"], dearer["currency"]) == (4, "eur")


def test_what_comes_in_the_grace_counts_and_what_comes_after_bills_nothing(
    api: Api, acme: str, now: int, sandbox_clock: ManualClock
):
    meter = api.meter()
    api.report(acme, "10", at=now - HOUR)
    invoice = api.cycle(acme, now - DAY, now, unit_amount_decimal="1")["id"]
    sandbox_clock.advance(timedelta(minutes=59, seconds=59))
    api.report(acme, "25", at=now - HOUR)
    # A draft shows what was there when it was made.
    assert api.billed(invoice) == {"searches": "10"}
    sandbox_clock.advance(timedelta(seconds=1))
    assert api.report(acme, "99", at=now - HOUR).status == 200
    final = api.get(f"/v1/invoices/{invoice}")
    assert (final["status"], final["total"], final["amount_due"]) == ("open", 25, 25)
    assert final["status_transitions"]["finalized_at"] == now + HOUR
    assert final["automatically_finalizes_at"] is None
    assert api.billed(invoice) == {"searches": "25"}
    # The meter itself has it, and no later invoice ever will.
    assert api.summary(meter, acme, now - DAY, now) == {now - DAY: 99}
    assert api.billed(api.cycle(acme, now, now + DAY)["id"]) == {}
    assert kinds(api)[-2:] == ["invoice.finalized", "invoice.created"]


def test_the_draft_keeps_its_lines_ids_when_they_are_counted_again(
    api: Api, acme: str, now: int, sandbox_clock: ManualClock
):
    for name in ("a", "b"):
        api.meter(name)
        api.report(acme, "1", at=now - HOUR, name=name)
    draft = api.cycle(acme, now - DAY, now)
    api.meter("c")
    api.report(acme, "1", at=now - HOUR, name="c")
    sandbox_clock.advance(timedelta(hours=1))
    final = api.get(f"/v1/invoices/{draft['id']}")
    ids = [line["id"] for line in draft["lines"]["data"]]
    assert [line["id"] for line in final["lines"]["data"]][:2] == ids
    assert api.billed(draft["id"]) == {"a": "1", "b": "1", "c": "1"}


@pytest.mark.parametrize("grace", [0, 60, 72 * HOUR])
def test_the_grace_is_as_long_as_asked_for(
    api: Api, acme: str, now: int, sandbox_clock: ManualClock, grace: int
):
    api.meter()
    api.report(acme, "9000", at=now - HOUR)
    cycle = Cycle(customer=acme, period_start=now - DAY, period_end=now, grace_seconds=grace)
    invoice = api.box.cycles.end(cycle)
    assert invoice["status"] == "draft"
    if grace:
        sandbox_clock.advance(timedelta(seconds=grace - 1))
        assert api.get(f"/v1/invoices/{invoice['id']}")["status"] == "draft"
        sandbox_clock.advance(timedelta(seconds=1))
    assert api.get(f"/v1/invoices/{invoice['id']}")["status"] == "open"


@pytest.mark.parametrize(
    ("values", "unit", "billed"),
    [
        (["5", "-12"], "1", (0, "0", 0)),
        (["12", "-5"], "1", (7, "7", 7)),
        (["0.5", "0.25"], "100", (0, "0.75", 75)),
        (["1.9"], "1", (1, "1.9", 2)),
        (["0.0000000000001"], "1", (0, "0", 0)),
        (
            ["999999999999999", "999999999999999"],
            "0",
            (1_999_999_999_999_998, "1" + "9" * 14 + "8", 0),
        ),
    ],
)
def test_less_than_nothing_bills_as_nothing_and_fractions_are_exact(
    api: Api, acme: str, now: int, values: list[str], unit: str, billed: tuple[int, str, int]
):
    api.meter(event_time_window=None)
    for value in values:
        api.report(acme, value, at=now - HOUR)
    draft = api.cycle(acme, now - DAY, now, unit_amount_decimal=unit)
    assert quantities(api, draft["id"]) == [billed]


def test_an_invoice_of_nothing_is_paid_when_it_becomes_final(
    api: Api, acme: str, now: int, sandbox_clock: ManualClock
):
    api.meter()
    draft = api.cycle(acme, now - DAY, now, meters=["searches"])
    assert quantities(api, draft["id"]) == [(0, "0", 0)]
    sandbox_clock.advance(timedelta(days=9))
    final = api.get(f"/v1/invoices/{draft['id']}")
    assert (final["status"], final["attempted"], final["attempt_count"]) == ("paid", True, 0)
    assert final["status_transitions"]["finalized_at"] == now + HOUR
    assert kinds(api)[-2:] == ["invoice.finalized", "invoice.paid"]


def test_of_an_hour_the_figure_that_came_last_is_billed(api: Api, acme: str, now: int):
    api.meter()
    api.report(acme, "10", at=now - HOUR + 60)
    api.report(acme, "7", at=now - HOUR)
    api.report(acme, "1", at=now - 2 * HOUR)
    assert api.billed(api.cycle(acme, now - DAY, now)["id"]) == {"searches": "8"}


@pytest.mark.parametrize(
    ("window", "split", "billed"),
    [
        ("hour", 0, ("1", "2")),
        ("hour", 30 * 60, ("1", "2")),
        ("hour", HOUR, ("3", "0")),
        (None, 30 * 60, ("3", "0")),
        (None, 10 * 60, ("1", "2")),
        ("day", 30 * 60, ("0", "3")),
    ],
)
def test_a_window_over_the_end_of_a_cycle_is_billed_whole_by_the_next(
    api: Api, acme: str, now: int, window: str | None, split: int, billed: tuple[str, str]
):
    api.meter(event_time_window=window)
    start = now - DAY
    api.report(acme, "1", at=start + 4 * HOUR)
    api.report(acme, "2", at=start + 5 * HOUR + 20 * 60)
    if window == "day":
        api.report(acme, "3", at=start + 5 * HOUR)
    cut = start + 5 * HOUR + split
    periods = ((start, cut), (cut, now))
    found = [api.cycle(acme, *period, meters=["searches"])["id"] for period in periods]
    assert tuple(api.billed(one)["searches"] for one in found) == billed


@given(
    bounds=st.lists(st.integers(0, 40 * DAY), min_size=2, max_size=8, unique=True),
    window=st.sampled_from([HOUR, DAY]),
)
def test_cycles_in_a_row_bill_every_window_once(bounds: list[int], window: int):
    bounds.sort()
    billed = [
        start
        for begin, end in itertools.pairwise(bounds)
        for start in range(*whole_windows(begin, end, window), window)
    ]
    first, last = bounds[0] // window * window, bounds[-1] // window * window
    assert billed == list(range(first, last, window))
    for begin, end in itertools.pairwise(bounds):
        ends = [start + window for start in range(*whole_windows(begin, end, window), window)]
        assert all(begin < one <= end for one in ends)


def test_only_named_meters_or_those_with_usage_in_the_period_are_billed(
    api: Api, acme: str, now: int
):
    for name in ("pages", "searches", "former"):
        api.meter(name)
    api.report(acme, "4", at=now - HOUR, name="pages")
    api.report(acme, "5", at=now - 2 * DAY, name="former")
    api.report(api.customer(), "6", at=now - HOUR, name="searches")
    period = (now - DAY, now)
    assert api.billed(api.cycle(acme, *period)["id"]) == {"pages": "4"}
    named = api.cycle(acme, *period, meters=["searches", "former"])["id"]
    assert api.billed(named) == {"searches": "0", "former": "0"}
    assert api.billed(api.cycle(acme, *period, meters=[])["id"]) == {}


def test_what_is_rejected_or_cancelled_is_not_billed(api: Api, acme: str, now: int):
    api.meter(event_time_window=None)
    api.report(acme, "4", at=now - HOUR)
    api.report(acme, "none", at=now - HOUR)
    api.report(acme, "8", at=now - HOUR, identifier="back")
    cancel = {"event_name": "searches", "type": "cancel", "cancel": {"identifier": "back"}}
    api.post("/v1/billing/meter_event_adjustments", cancel)
    assert api.billed(api.cycle(acme, now - DAY, now)["id"]) == {"searches": "4"}


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"customer": "cus_none"}, "customer"),
        ({"meters": ["searches", "none"]}, "meters"),
        ({"period_end": 0}, "period_end"),
    ],
)
def test_a_cycle_that_cannot_be_is_refused(
    api: Api, acme: str, now: int, changed: dict[str, Any], param: str
):
    api.meter()
    given = {"customer": acme, "period_start": now - DAY, "period_end": now, **changed}
    with pytest.raises(Refusal) as refused:
        api.box.cycles.end(Cycle(**given))
    assert (refused.value.status, refused.value.param) == (400, param)
    assert api.get("/v1/invoices")["data"] == []


def test_a_person_may_finalise_early_and_then_nothing_changes(api: Api, acme: str, now: int):
    api.meter()
    api.report(acme, "10000", at=now - HOUR)
    draft = api.cycle(acme, now - DAY, now)["id"]
    api.report(acme, "30000", at=now - HOUR)
    final = api.post(f"/v1/invoices/{draft}/finalize")
    assert (final["status"], final["total"]) == ("open", 3)
    api.report(acme, "50000", at=now - HOUR)
    assert api.billed(draft) == {"searches": "30000"}


def test_an_item_put_on_the_draft_stays_beside_what_was_metered(
    api: Api, acme: str, now: int, sandbox_clock: ManualClock
):
    api.meter()
    api.report(acme, "10000", at=now - HOUR)
    draft = api.cycle(acme, now - DAY, now)["id"]
    kept, gone = (
        api.post("/v1/invoiceitems", {"customer": acme, "invoice": draft, "amount": amount})["id"]
        for amount in (500, 70)
    )
    api.delete(f"/v1/invoiceitems/{gone}")
    api.report(acme, "20000", at=now - HOUR)
    sandbox_clock.advance(timedelta(hours=1))
    final = api.get(f"/v1/invoices/{draft}")
    assert final["total"] == 502
    lines = final["lines"]["data"]
    assert [line["amount"] for line in lines] == [2, 500]
    assert lines[1]["parent"]["invoice_item_details"]["invoice_item"] == kept


@pytest.mark.parametrize(
    ("verb", "status", "transition", "kind"),
    [
        ("pay", "paid", "paid_at", "invoice.paid"),
        ("void", "void", "voided_at", "invoice.voided"),
        (
            "mark_uncollectible",
            "uncollectible",
            "marked_uncollectible_at",
            "invoice.marked_uncollectible",
        ),
    ],
)
def test_a_final_one_is_paid_void_or_given_up(
    api: Api, acme: str, now: int, verb: str, status: str, transition: str, kind: str
):
    api.meter()
    api.report(acme, "10000", at=now - HOUR)
    draft = api.cycle(acme, now - DAY, now)["id"]
    assert api.post(f"/v1/invoices/{draft}/{verb}").status == 400
    api.post(f"/v1/invoices/{draft}/finalize")
    ended = api.post(f"/v1/invoices/{draft}/{verb}")
    assert (ended["status"], ended["status_transitions"][transition]) == (status, now)
    assert kinds(api)[-1] == kind
    assert api.billed(draft) == {"searches": "10000"}
    assert api.post(f"/v1/invoices/{draft}/mark_uncollectible").status == 400


def test_what_was_given_up_may_still_be_paid_or_voided(api: Api, acme: str, now: int):
    api.meter()
    api.report(acme, "10000", at=now - HOUR)
    for verb, status in (("pay", "paid"), ("void", "void")):
        invoice = api.cycle(acme, now - DAY, now)["id"]
        api.post(f"/v1/invoices/{invoice}/finalize")
        api.post(f"/v1/invoices/{invoice}/mark_uncollectible")
        assert api.post(f"/v1/invoices/{invoice}/{verb}")["status"] == status


def test_a_declined_payment_counts_as_an_attempt(api: Api, acme: str, now: int):
    api.meter()
    api.report(acme, "10000", at=now - HOUR)
    invoice = api.cycle(acme, now - DAY, now)["id"]
    api.post(f"/v1/invoices/{invoice}/finalize")
    api.post(f"/v1/invoices/{invoice}/pay", fault=Fault(kind="decline"))
    found = api.get(f"/v1/invoices/{invoice}")
    assert (found["status"], found["attempted"], found["attempt_count"]) == ("open", True, 1)


def test_a_draft_of_a_subscription_cannot_be_deleted(api: Api, acme: str, now: int):
    api.meter()
    draft = api.cycle(acme, now - DAY, now)["id"]
    refused = api.delete(f"/v1/invoices/{draft}")
    assert (refused.status, "created by subscriptions" in refused.error["message"]) == (400, True)
    assert api.get(f"/v1/invoices/{draft}")["status"] == "draft"


def test_with_its_customer_a_subscription_ends_and_its_draft_goes(
    api: Api, acme: str, now: int, sandbox_clock: ManualClock
):
    api.meter()
    api.report(acme, "10000", at=now - HOUR)
    final = api.cycle(acme, now - 2 * DAY, now - DAY, grace_seconds=0)["id"]
    other = api.cycle(api.customer(), now - DAY, now)["id"]
    draft = api.cycle(acme, now - DAY, now)["id"]
    api.delete(f"/v1/customers/{acme}")
    assert kinds(api)[-2:] == ["customer.deleted", "invoice.deleted"]
    assert api.get(f"/v1/invoices/{draft}").status == 404
    with pytest.raises(Refusal) as refused:
        api.cycle(acme, now, now + DAY)
    assert refused.value.message == f"No such customer: '{acme}'"
    sandbox_clock.advance(timedelta(hours=2))
    assert api.get(f"/v1/invoices/{final}")["status"] == "paid"
    assert api.get(f"/v1/invoices/{other}")["status"] == "paid"
    assert api.report(acme, "1", at=now).status == 200
    assert api.box.usage.taken[-1].state == "meter_event_customer_not_found"


def test_more_lines_than_an_invoice_shows_are_paged(api: Api, acme: str, now: int):
    for number in range(13):
        api.meter(f"m{number}")
        api.report(acme, str(number), at=now - HOUR, name=f"m{number}")
    draft = api.cycle(acme, now - DAY, now)
    assert (draft["lines"]["has_more"], len(draft["lines"]["data"])) == (True, 10)
    path = f"/v1/invoices/{draft['id']}/lines"
    first = api.get(path, limit=8)
    rest = api.get(path, limit=8, starting_after=first["data"][-1]["id"])
    found = [line["quantity"] for line in (*first["data"], *rest["data"])]
    assert (found, rest["has_more"]) == (list(range(13)), False)
