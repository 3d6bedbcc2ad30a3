"""What a unit of a meter costs, exactly, in the words of a price at Stripe."""

from __future__ import annotations

import re
from decimal import Context, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.reporting.unit_price import MAX_PRICE_DECIMALS, minor_digits, unit_price

EXACT = Context(prec=60)
values = st.one_of(
    st.just("0"),
    st.from_regex(r"[0-9]{1,9}(\.[0-9]{1,12})?", fullmatch=True),
)
currencies = st.sampled_from(["USD", "EUR", "JPY", "KWD", "ISK", "UGX"])


@pytest.mark.parametrize(
    ("value", "currency", "decimals", "amount"),
    [
        ("0.01", "USD", 6, "0.000001"),
        ("0.01", "USD", 0, "1"),
        ("0.01", "USD", 2, "0.01"),
        ("1", "EUR", 6, "0.0001"),
        ("150", "EUR", 0, "15000"),
        ("0.010", "USD", 6, "0.000001"),
        ("1", "JPY", 6, "0.000001"),
        ("1", "KWD", 6, "0.001"),
        # Stripe keeps two decimals for these, whatever the currencies have.
        ("1", "ISK", 0, "100"),
        ("1", "UGX", 0, "100"),
        ("0", "USD", 6, "0"),
        ("0.0", "USD", 0, "0"),
        ("999999999.999999999999", "USD", 0, "99999999999.9999999999"),
    ],
)
def test_a_unit_has_its_price_in_minor_units(value: str, currency: str, decimals: int, amount: str):
    price = unit_price(value, currency, decimals)
    assert (price.amount, price.currency) == (amount, currency.lower())
    assert price.fits


@pytest.mark.parametrize(
    ("value", "currency", "decimals", "most"),
    [
        ("0.000000001", "USD", 6, 5),
        ("0.000000000001", "USD", 6, 2),
        ("0.000000000001", "JPY", 1, 0),
        ("0.000000000001", "KWD", 6, 3),
    ],
)
def test_a_price_too_fine_for_stripe_says_which_scale_is_not(
    value: str, currency: str, decimals: int, most: int
):
    price = unit_price(value, currency, decimals)
    assert not price.fits
    assert price.most_decimals == most
    assert unit_price(value, currency, most).fits
    assert not unit_price(value, currency, most + 1).fits


@given(value=values, currency=currencies, decimals=st.integers(0, 6))
def test_a_price_is_exact_and_plain_and_fits_exactly_where_it_has_twelve_decimals(
    value: str, currency: str, decimals: int
):
    price = unit_price(value, currency, decimals)
    assert re.fullmatch(r"\d+(\.\d*[1-9])?", price.amount)
    credit = EXACT.multiply(Decimal(price.amount), Decimal(10) ** decimals)
    assert credit == EXACT.multiply(Decimal(value), Decimal(10) ** minor_digits(currency))
    assert price.fits == (len(price.amount.partition(".")[2]) <= MAX_PRICE_DECIMALS)
    assert unit_price(value, currency, price.most_decimals).fits
