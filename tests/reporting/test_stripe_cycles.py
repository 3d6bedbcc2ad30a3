"""ReadBackResult what Stripe itself has invoiced of our meters."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import stripe
from stripe_api import KEY
from stripe_bench import HOUR, INVOICES, METER, LocalStripe, delete, line, report
from stripe_description import problems_of_request
from support import NOW

from billing.core.errors import NotFound
from billing.providers.port import MeteredLine, ProviderCause, ProviderInvoice, ProviderMeter
from billing.providers.stripe.billing_cycles import StripeCycles
from billing.providers.stripe.client import StripeUnanswered, client_of
from billing.providers.stripe.provider import StripeProvider

START = (HOUR - timedelta(days=5)).replace(hour=0)
END = HOUR + timedelta(hours=1)
GRACE = timedelta(hours=1)
OTHER = ProviderMeter(sku="search", name="test.search", display_name="Searches")
PRICES = "/v1/prices"


def unix(instant: datetime) -> int:
    return int(instant.timestamp())


def end_cycle(local: LocalStripe, customer: str, **more: Any) -> str:
    """The id of the draft at the end of a cycle."""
    order = {"customer": customer, "period_start": unix(START), "period_end": unix(END), **more}
    return str(local.control.post("cycles", **order)["id"])


def pass_time(local: LocalStripe, by: timedelta = GRACE) -> None:
    local.control.post("clock", advance_seconds=by.total_seconds())


def billed(value: int, meter: str = METER.name) -> MeteredLine:
    return MeteredLine(meter=meter, period_start=START, period_end=END, value=value)


@pytest.fixture
def draft(local: LocalStripe, provider: StripeProvider, acme: str) -> str:
    """A draft of 1.5 million units."""
    provider.report_usage(report(acme))
    return end_cycle(local, acme)


def test_a_draft_and_what_becomes_of_it(
    local: LocalStripe, provider: StripeProvider, acme: str, draft: str
):
    first = provider.provider_invoice(draft)
    assert first == ProviderInvoice(
        provider_id=draft,
        customer_ref=acme,
        status="draft",
        currency="USD",
        total_minor=150,
        period_start=START,
        period_end=END,
        finalised_at=None,
        payment_failed=False,
        lines=(billed(1_500_000),),
    )
    provider.report_usage(report(acme, number=2, value=2_000_000))
    pass_time(local)
    final = replace(
        first, status="open", total_minor=200, finalised_at=NOW + GRACE, lines=(billed(2_000_000),)
    )
    assert provider.provider_invoice(draft) == final
    provider.report_usage(report(acme, number=3, value=9_000_000))
    assert provider.provider_invoice(draft) == final
    local.person.invoices.pay(draft)
    assert provider.provider_invoice(draft) == replace(final, status="paid")
    assert provider.invoices_since(NOW) == [replace(final, status="paid")]


@pytest.mark.parametrize(
    ("verb", "status"), [("void_invoice", "void"), ("mark_uncollectible", "uncollectible")]
)
def test_what_ends_otherwise_keeps_when_it_was_final_and_what_it_billed(
    local: LocalStripe, provider: StripeProvider, draft: str, verb: str, status: str
):
    pass_time(local)
    getattr(local.person.invoices, verb)(draft)
    found = provider.provider_invoice(draft)
    assert (found.status, found.finalised_at) == (status, NOW + GRACE)
    assert found.lines == (billed(1_500_000),)


def test_a_payment_has_failed_while_an_attempted_invoice_is_open(
    local: LocalStripe, provider: StripeProvider, draft: str
):
    def failed() -> bool:
        return provider.provider_invoice(draft).payment_failed

    pass_time(local)
    assert failed() is False
    local.control.fault("decline", path=f"{INVOICES}/*/pay")
    with pytest.raises(stripe.CardError):
        local.person.invoices.pay(draft)
    assert failed() is True
    local.person.invoices.pay(draft)
    assert failed() is False


def test_an_invoice_of_nothing_was_attempted_and_did_not_fail(
    local: LocalStripe, provider: StripeProvider, acme: str
):
    nothing = end_cycle(local, acme, meters=[METER.name], grace_seconds=0)
    found = provider.provider_invoice(nothing)
    assert (found.status, found.payment_failed, found.lines) == ("paid", False, (billed(0),))


def test_each_meter_has_its_line_and_what_is_not_metered_has_none(
    local: LocalStripe, provider: StripeProvider, acme: str
):
    provider.ensure_meters([METER, OTHER])
    provider.report_usage(report(acme))
    provider.report_usage(replace(report(acme, number=2, value=7), meter=OTHER.name))
    draft = end_cycle(local, acme)
    local.person.invoice_items.create(
        {"customer": acme, "invoice": draft, "currency": "usd", "amount": 500}
    )
    found = provider.provider_invoice(draft)
    assert found.lines == (billed(1_500_000), billed(7, OTHER.name))
    assert found.total_minor == 650


def test_invoices_that_no_cycle_made_are_left_out(
    local: LocalStripe, provider: StripeProvider, acme: str
):
    ours = provider.open_invoice("acme:2026-10", acme, "USD", [line(1)]).provider_id
    theirs = local.person.invoices.create({"customer": acme}).id
    unmetered = end_cycle(local, acme, meters=[])
    for each in (ours, theirs, unmetered, "in_none"):
        with pytest.raises(NotFound, match=each):
            provider.provider_invoice(each)
    assert provider.invoices_since(NOW - timedelta(days=1)) == []
    assert local.requests(PRICES) == []


def test_one_of_ours_is_left_out_even_where_a_cycle_made_it(
    local: LocalStripe, provider: StripeProvider, draft: str
):
    local.person.invoices.update(draft, {"metadata": {"weighbridge_invoice": "acme:2026-10"}})
    with pytest.raises(NotFound):
        provider.provider_invoice(draft)
    assert provider.invoices_since(NOW) == []


def test_a_deleted_draft_is_told_as_deleted(
    local: LocalStripe, provider: StripeProvider, acme: str, draft: str
):
    before = provider.provider_invoice(draft)
    ours = provider.open_invoice("acme:2026-10", acme, "USD", [line(1)]).provider_id
    local.person.invoices.delete(ours)
    delete(local, acme)
    assert provider.provider_invoice(draft) == replace(before, status="deleted", lines=())
    assert provider.invoices_since(NOW) == []
    with pytest.raises(NotFound):
        provider.provider_invoice(ours)


def test_what_was_final_before_its_customer_was_deleted_stays(
    local: LocalStripe, provider: StripeProvider, acme: str, draft: str
):
    pass_time(local)
    delete(local, acme)
    found = provider.provider_invoice(draft)
    assert (found.status, found.customer_ref, found.lines) == ("open", acme, (billed(1_500_000),))


def test_invoices_are_told_from_when_they_were_created_on_whatever_their_period(
    local: LocalStripe, provider: StripeProvider, acme: str
):
    provider.report_usage(report(acme))
    made = []
    for _ in range(3):
        made.append(end_cycle(local, acme))
        pass_time(local, timedelta(seconds=10))

    def since(seconds: float) -> list[str]:
        found = provider.invoices_since(NOW + timedelta(seconds=seconds))
        return [one.provider_id for one in found]

    assert since(-1) == made[::-1]
    assert since(0) == made[::-1]
    assert since(0.5) == made[::-1]
    assert since(1) == made[:0:-1]
    assert since(20) == [made[2]]
    assert since(21) == []


def test_more_invoices_than_a_page_are_all_told(
    local: LocalStripe, provider: StripeProvider, acme: str
):
    provider.report_usage(report(acme))
    made = [end_cycle(local, acme) for _ in range(105)]
    found = provider.invoices_since(NOW)
    assert [one.provider_id for one in found] == made[::-1]
    assert {one.lines for one in found} == {(billed(1_500_000),)}
    assert len(local.requests(INVOICES)) == 2


def test_more_lines_than_an_invoice_shows_are_all_told(
    local: LocalStripe, provider: StripeProvider, acme: str
):
    meters = [replace(METER, sku=f"s{n}", name=f"test.s{n:03}") for n in range(104)]
    provider.ensure_meters(meters)
    draft = end_cycle(local, acme, meters=[one.name for one in meters])
    path = f"{INVOICES}/{draft}/lines"
    found = provider.provider_invoice(draft)
    assert found.lines == tuple(billed(0, one.name) for one in meters)
    assert [one["params"]["limit"] for one in local.requests(path)] == ["100", "100"]
    short = end_cycle(local, acme, meters=[METER.name])
    provider.provider_invoice(short)
    assert local.requests(f"{INVOICES}/{short}/lines") == []


def test_prices_and_meters_are_asked_for_once(
    local: LocalStripe, provider: StripeProvider, acme: str, draft: str
):
    def asked() -> list[str]:
        paths = [one["path"] for one in local.requests() if one["method"] == "GET"]
        return [path for path in paths if path.startswith((PRICES, "/v1/billing/meters/"))]

    provider.provider_invoice(draft)
    assert len(asked()) == 2
    end_cycle(local, acme)
    provider.provider_invoice(draft)
    assert len(provider.invoices_since(NOW)) == 2
    assert len(asked()) == 2
    local.adapter().provider_invoice(draft)
    assert len(asked()) == 4


def test_a_meter_is_known_by_its_name_after_it_was_deactivated(
    local: LocalStripe, provider: StripeProvider, draft: str
):
    [meter] = local.person.billing.meters.list().data
    local.person.billing.meters.deactivate(meter.id)
    assert provider.provider_invoice(draft).lines == (billed(1_500_000),)


def test_a_fraction_is_an_error_and_never_rounded(
    local: LocalStripe, provider: StripeProvider, acme: str
):
    params: Any = {
        "event_name": METER.name,
        "payload": {"stripe_customer_id": acme, "value": "1.5"},
        "timestamp": unix(HOUR),
    }
    local.person.billing.meter_events.create(params)
    draft = end_cycle(local, acme)
    for ask in (lambda: provider.provider_invoice(draft), lambda: provider.invoices_since(NOW)):
        with pytest.raises(StripeUnanswered, match=rf"{draft} bills 1\.5 of the meter") as refused:
            ask()
        assert refused.value.cause is ProviderCause.INVALID_VALUE


@pytest.mark.parametrize("path", [f"{INVOICES}/*", f"{PRICES}/*", "/v1/billing/meters/*"])
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ({"kind": "rate_limit"}, ProviderCause.RATE_LIMITED),
        ({"kind": "server_error"}, ProviderCause.SERVER_ERROR),
        ({"kind": "timeout"}, ProviderCause.CONNECTION_FAILED),
        ({"kind": "unauthorized"}, ProviderCause.KEY_REFUSED),
        ({"kind": "forbidden"}, ProviderCause.PERMISSION_REFUSED),
    ],
    ids=str,
)
def test_without_an_answer_there_is_no_invoice_and_afterwards_there_is(
    local: LocalStripe, draft: str, path: str, fault: dict[str, Any], cause: ProviderCause
):
    provider = local.adapter()
    local.control.fault(method="GET", path=path, **fault)
    with pytest.raises(StripeUnanswered) as unanswered:
        provider.provider_invoice(draft)
    assert unanswered.value.cause is cause
    assert provider.provider_invoice(draft).lines == (billed(1_500_000),)


@pytest.mark.parametrize("path", [INVOICES, f"{PRICES}/*"])
def test_without_an_answer_there_is_no_list(local: LocalStripe, draft: str, path: str):
    provider = local.adapter()
    local.control.fault("rate_limit", method="GET", path=path)
    with pytest.raises(StripeUnanswered):
        provider.invoices_since(NOW)
    assert [one.provider_id for one in provider.invoices_since(NOW)] == [draft]


def test_a_deletion_that_cannot_be_looked_up_is_no_missing_invoice(
    local: LocalStripe, provider: StripeProvider, acme: str, draft: str
):
    delete(local, acme)
    local.control.fault("forbidden", method="GET", path="/v1/events")
    with pytest.raises(StripeUnanswered):
        provider.provider_invoice(draft)


def test_every_request_is_a_read_that_stripe_describes(
    local: LocalStripe, provider: StripeProvider, acme: str
):
    meters = [replace(METER, sku=f"s{n}", name=f"test.s{n}") for n in range(11)]
    provider.ensure_meters(meters)
    draft = end_cycle(local, acme, meters=[one.name for one in meters])
    before = len(local.requests())
    provider.provider_invoice(draft)
    provider.invoices_since(NOW)
    with pytest.raises(NotFound):
        provider.provider_invoice("in_none")
    seen = local.requests()[before:]
    assert {one["method"] for one in seen} == {"GET"}
    assert [
        problem
        for one in seen
        for problem in problems_of_request(one["method"], one["path"], one["params"])
    ] == []
    assert {one["path"].rsplit("_", 1)[0] for one in seen if one["path"] != INVOICES} >= {
        f"{INVOICES}/in",
        f"{PRICES}/price",
        "/v1/billing/meters/mtr_test",
    }


def test_a_meter_of_somebody_elses_bills_what_it_likes(
    local: LocalStripe, provider: StripeProvider, acme: str
):
    provider.ensure_meters([METER, OTHER])
    for meter in (METER.name, OTHER.name):
        provider.report_usage(replace(report(acme, value=7), meter=meter, identifier=f"i:{meter}"))
    draft = end_cycle(local, acme)
    reader = StripeCycles(client_of(KEY, local.url), ours=lambda name: name == METER.name)
    assert {line.meter for line in provider.provider_invoice(draft).lines} == {
        METER.name,
        OTHER.name,
    }
    assert [line.meter for line in reader.one(draft).lines] == [METER.name]
