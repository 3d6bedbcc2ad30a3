"""Invoices of ours at Stripe: one per key, complete or not final, whatever becomes of an answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from stripe_bench import FINALISE, INVOICES, ITEMS, LocalStripe, delete, line, until_answered

from billing.core.errors import AlreadyExists, InvalidValue, NotFound
from billing.providers.port import Invoice, ProviderCause
from billing.providers.stripe.client import StripeUnanswered, idempotency_key
from billing.providers.stripe.invoices import digest_of
from billing.providers.stripe.provider import StripeProvider

KEY = "acme:2026-10"
LINES = (line(1, 1_250), line(2, -50), line(3, 0))
FAULTS: list[dict[str, Any]] = [
    {"kind": "timeout"},
    {"kind": "timeout", "effect": False},
    {"kind": "server_error"},
    {"kind": "server_error", "effect": True},
    {"kind": "rate_limit"},
    {"kind": "lock_timeout"},
]


def opened(provider: StripeProvider, acme: str) -> Invoice:
    return provider.open_invoice(KEY, acme, "USD", LINES)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize(
    ("path", "skip"), [(INVOICES, 0), (ITEMS, 0), (ITEMS, 1), (ITEMS, 2), (FINALISE, 0)]
)
def test_one_complete_invoice_becomes_final_whatever_happens_to_one_request(
    local: LocalStripe, acme: str, path: str, skip: int, fault: dict[str, Any]
) -> None:
    local.control.fault(path=path, method="POST", skip=skip, **fault)

    def run() -> Invoice:
        provider = local.adapter()
        return provider.finalise_invoice(opened(provider, acme).provider_id)

    final, failed = until_answered(run)
    assert failed == 1
    assert (final.status, final.total_minor, final.lines) == ("open", 1_200, LINES)
    assert local.count("invoices") == 1
    assert len(local.person.invoices.line_items.list(final.provider_id).data) == 3


@pytest.mark.parametrize(("path", "skip"), [(INVOICES, 0), (ITEMS, 0), (ITEMS, 1), (ITEMS, 2)])
def test_a_draft_left_half_done_is_completed_when_stripe_has_forgotten_the_keys(
    local: LocalStripe, provider: StripeProvider, acme: str, path: str, skip: int
) -> None:
    local.control.fault("timeout", path=path, method="POST", skip=skip)
    with pytest.raises(StripeUnanswered):
        opened(provider, acme)
    local.control.post("clock", advance_seconds=25 * 3_600)
    assert opened(local.adapter(), acme).lines == LINES
    assert local.count("invoices") == 1


def test_a_draft_is_not_final_by_itself_and_takes_nothing_that_is_pending(
    local: LocalStripe, provider: StripeProvider, acme: str
) -> None:
    local.person.invoice_items.create({"customer": acme, "amount": 99, "currency": "usd"})
    draft = opened(provider, acme)
    local.control.post("clock", advance_seconds=7_200)
    there = local.person.invoices.retrieve(draft.provider_id)
    assert (there.status, there.auto_advance, there.total) == ("draft", False, 1_200)


def test_more_lines_than_a_page_come_back_in_their_order(
    provider: StripeProvider, acme: str
) -> None:
    lines = tuple(line(number, number) for number in range(105))
    draft = provider.open_invoice(KEY, acme, "EUR", lines)
    assert (draft.lines, draft.currency) == (lines, "EUR")
    assert provider.finalise_invoice(draft.provider_id).total_minor == sum(range(105))


def test_an_invoice_that_asks_for_nothing_is_paid_at_once(
    provider: StripeProvider, acme: str
) -> None:
    draft = provider.open_invoice(KEY, acme, "USD", (line(1, 0),))
    assert provider.finalise_invoice(draft.provider_id).status == "paid"


def test_a_line_that_somebody_added_is_told_and_the_draft_stays_a_draft(
    local: LocalStripe, provider: StripeProvider, acme: str
) -> None:
    draft = opened(provider, acme)
    local.person.invoice_items.create(
        {"customer": acme, "invoice": draft.provider_id, "amount": 5, "currency": "usd"}
    )
    with pytest.raises(AlreadyExists, match="lines or a total"):
        opened(provider, acme)
    with pytest.raises(AlreadyExists, match="delete the draft"):
        provider.finalise_invoice(draft.provider_id)
    assert local.person.invoices.retrieve(draft.provider_id).status == "draft"


def test_an_invoice_that_somebody_deleted_is_opened_anew(
    local: LocalStripe, provider: StripeProvider, acme: str
) -> None:
    first = opened(provider, acme)
    local.person.invoices.delete(first.provider_id)
    second = opened(provider, acme)
    assert second.provider_id != first.provider_id
    assert replace(second, provider_id=first.provider_id) == first


@pytest.mark.parametrize(
    "other",
    [
        (line(1, 1_251), *LINES[1:]),
        (replace(LINES[0], description="Other"), *LINES[1:]),
        (replace(LINES[0], period_end=LINES[0].period_end + timedelta(hours=1)), *LINES[1:]),
        (*LINES, line(4)),
        LINES[:2],
        LINES[::-1],
    ],
)
@pytest.mark.parametrize("final", [False, True])
def test_a_key_keeps_its_lines(
    provider: StripeProvider, acme: str, other: tuple[Any, ...], final: bool
) -> None:
    draft = opened(provider, acme)
    if final:
        provider.finalise_invoice(draft.provider_id)
    with pytest.raises(AlreadyExists):
        provider.open_invoice(KEY, acme, "USD", other)
    assert opened(provider, acme).lines == LINES


def test_a_key_keeps_its_customer_and_its_currency(provider: StripeProvider, acme: str) -> None:
    opened(provider, acme)
    with pytest.raises(AlreadyExists):
        provider.open_invoice(KEY, acme, "EUR", LINES)
    other = provider.link_customer("globex", "Globex")
    with pytest.raises(AlreadyExists):
        provider.open_invoice(KEY, other, "USD", LINES)


def test_somebody_elses_invoice_is_left_alone(
    local: LocalStripe, provider: StripeProvider, acme: str
) -> None:
    theirs = local.person.invoices.create({"customer": acme, "auto_advance": False})
    with pytest.raises(NotFound, match="none of ours"):
        provider.finalise_invoice(theirs.id)
    assert local.person.invoices.retrieve(theirs.id).status == "draft"


def test_a_voided_invoice_says_so(local: LocalStripe, provider: StripeProvider, acme: str) -> None:
    final = provider.finalise_invoice(opened(provider, acme).provider_id)
    local.person.invoices.void_invoice(final.provider_id)
    assert provider.finalise_invoice(final.provider_id).status == "void"


def test_a_deleted_customer_gets_no_invoice(
    local: LocalStripe, provider: StripeProvider, acme: str
) -> None:
    delete(local, acme)
    with pytest.raises(StripeUnanswered) as refused:
        opened(provider, acme)
    assert refused.value.cause is ProviderCause.CUSTOMER_MISSING


@pytest.mark.parametrize(
    "lines",
    [
        tuple(line(number) for number in range(251)),
        (line(1), line(1)),
        (replace(line(1), key=""),),
        (replace(line(1), key="k" * 201),),
    ],
)
def test_lines_that_stripe_could_not_keep_are_refused_before_anything_is_sent(
    local: LocalStripe, provider: StripeProvider, acme: str, lines: tuple[Any, ...]
) -> None:
    with pytest.raises(InvalidValue):
        provider.open_invoice(KEY, acme, "USD", lines)
    assert local.requests(INVOICES) == []


def test_four_at_once_open_and_finalise_one_invoice(local: LocalStripe, acme: str) -> None:
    adapters = [local.adapter() for _ in range(4)]

    def run(adapter: StripeProvider) -> Invoice:
        draft, _ = until_answered(lambda: opened(adapter, acme))
        return until_answered(lambda: adapter.finalise_invoice(draft.provider_id))[0]

    with ThreadPoolExecutor(4) as pool:
        invoices = list(pool.map(run, adapters))
    assert invoices == [invoices[0]] * 4
    assert (invoices[0].lines, local.count("invoices")) == (LINES, 1)


def test_a_digest_is_of_the_whole_second_and_of_the_order() -> None:
    half = timedelta(milliseconds=500)
    later = replace(LINES[0], period_end=LINES[0].period_end + half)
    assert digest_of("usd", LINES) == digest_of("USD", (later, *LINES[1:]))
    assert digest_of("USD", LINES) != digest_of("USD", LINES[::-1])


def test_a_long_key_is_hashed_and_short_ones_are_legible() -> None:
    assert idempotency_key("ii", "in_1", "sku") == "wb:ii:in_1:sku"
    long = idempotency_key("inv", "k" * 400)
    assert len(long) < 100
    assert long == idempotency_key("inv", "k" * 400) != idempotency_key("inv", "k" * 401)
