"""How many credits a paid checkout is worth, to the microcredit."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.core.credits import MAX_MICROCREDITS
from billing.stripe_webhooks.checkout import (
    CREDITS,
    NotYet,
    credits_bought,
    decimals_of,
    read_checkout,
)
from billing.stripe_webhooks.stripe_event import Unreadable

SESSION: dict[str, Any] = {
    "id": "cs_test_1",
    "mode": "payment",
    "payment_status": "paid",
    "customer": "cus_1",
    "client_reference_id": None,
    "currency": "usd",
    "amount_total": 500,
    "metadata": {},
}


def bought(session: dict[str, Any], currency: str = "USD", credit_value: str = "0.01") -> int:
    return credits_bought(read_checkout(session), currency=currency, credit_value=credit_value)


@pytest.mark.parametrize(
    ("amount", "currency", "credit_value", "credits"),
    [
        (500, "USD", "0.01", "500"),
        (500, "USD", "1", "5"),
        (500, "USD", "0.03", "166.666666"),
        (1, "USD", "0.000001", "10000"),
        (1, "USD", "999999999", "0"),
        (500, "JPY", "1", "500"),
        (500, "KRW", "0.5", "1000"),
        (5120, "KWD", "1", "5.12"),
        (500, "ISK", "1", "5"),
    ],
)
def test_an_amount_is_divided_by_what_a_credit_is_worth(
    amount: int,
    currency: str,
    credit_value: str,
    credits: str,  # noqa: A002 - the word of the field
):
    session = {**SESSION, "amount_total": amount, "currency": currency.lower()}
    expected = int(Decimal(credits) * 1_000_000)
    if not expected:
        with pytest.raises(NotYet, match="less than one microcredit"):
            bought(session, currency, credit_value)
        return
    assert bought(session, currency, credit_value) == expected


@given(st.integers(1, 10**9), st.decimals("0.000001", "1000", places=6))
def test_never_more_than_was_paid_and_never_a_microcredit_less(amount: int, value: Decimal):
    exact = Fraction(amount, 100) / Fraction(value) * 1_000_000
    try:
        given = bought({**SESSION, "amount_total": amount}, credit_value=format(value, "f"))
    except NotYet:
        assert exact < 1 or exact >= MAX_MICROCREDITS + 1
    else:
        assert given <= exact < given + 1


def test_tax_and_shipping_are_not_credits():
    details = {"amount_tax": 95, "amount_shipping": 5, "amount_discount": 100}
    session = {**SESSION, "amount_total": 600, "total_details": details}
    assert bought(session) == 500_000_000


@pytest.mark.parametrize(
    ("text", "microcredits"),
    [("500", 500_000_000), (" 0.25 ", 250_000), ("0.000001", 1), ("0", 0)],
)
def test_what_the_metadata_says_goes_before_the_amount(text: str, microcredits: int):
    session = {**SESSION, "currency": "eur", "metadata": {CREDITS: text}}
    assert bought(session) == microcredits
    assert bought(session, credit_value="0") == microcredits


@pytest.mark.parametrize(
    "text", ["", "-5", "1e3", "0.0000001", "five", "1,000", "9007199255", "\u0665", "5 000"]
)
def test_metadata_that_is_no_amount_of_credits_is_for_a_person(text: str):
    with pytest.raises(NotYet):
        bought({**SESSION, "metadata": {CREDITS: text}})


@pytest.mark.parametrize(
    ("changes", "credit_value", "reason"),
    [
        ({"currency": "eur"}, "0.01", "paid in EUR, and credits have a value in USD"),
        ({"currency": None}, "0.01", "no currency"),
        ({"amount_total": 0}, "0.01", "less than one microcredit"),
        ({"amount_total": None}, "0.01", "less than one microcredit"),
        ({"amount_total": 10**16}, "0.01", "more than"),
        ({}, "0", "WEIGHBRIDGE_CREDIT_VALUE is 0"),
    ],
)
def test_what_cannot_be_told_says_why(changes: dict[str, Any], credit_value: str, reason: str):
    with pytest.raises(NotYet, match=reason):
        bought({**SESSION, **changes}, credit_value=credit_value)


def test_a_currency_of_which_stripe_says_two_things_is_not_guessed():
    with pytest.raises(NotYet, match="ambiguous"):
        bought({**SESSION, "currency": "ugx"}, currency="UGX", credit_value="1")
    with_credits = {**SESSION, "currency": "ugx", "metadata": {CREDITS: "5"}}
    assert bought(with_credits, currency="UGX") == 5_000_000


@pytest.mark.parametrize(
    ("currency", "decimals"), [("USD", 2), ("EUR", 2), ("JPY", 0), ("XOF", 0), ("BHD", 3)]
)
def test_currencies_have_their_decimals(currency: str, decimals: int):
    assert decimals_of(currency) == decimals


@pytest.mark.parametrize(
    ("mode", "status", "paid"),
    [
        ("payment", "paid", True),
        ("payment", "unpaid", False),
        ("payment", "no_payment_required", False),
        ("subscription", "paid", False),
        ("setup", "no_payment_required", False),
        (None, None, False),
    ],
)
def test_only_a_paid_checkout_in_payment_mode_is_a_top_up(mode: str, status: str, paid: bool):
    session = {**SESSION, "mode": mode, "payment_status": status}
    assert read_checkout(session).paid_top_up is paid


def test_a_session_is_read_with_whom_it_names():
    expanded = {**SESSION, "customer": {"id": "cus_2", "object": "customer"}}
    assert read_checkout(expanded).customer_ref == "cus_2"
    guest = read_checkout({**SESSION, "customer": None, "client_reference_id": "acme"})
    assert (guest.customer_ref, guest.named, guest.reference) == ("", "acme", "stripe:cs_test_1")


@pytest.mark.parametrize(
    "changes", [{"id": None}, {"amount_total": "5"}, {"amount_total": 1.5}, {"amount_total": True}]
)
def test_a_session_that_is_not_as_described_is_unreadable(changes: dict[str, Any]):
    with pytest.raises(Unreadable):
        read_checkout({**SESSION, **changes})
