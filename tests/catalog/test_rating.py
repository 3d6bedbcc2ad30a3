"""Rating: quantity times unit price, exact or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.core.credits import MAX_MICROCREDITS
from billing.core.errors import InvalidValue
from billing.core.sku import rate

amounts = st.integers(0, MAX_MICROCREDITS)


@pytest.mark.parametrize(
    ("quantity", "unit_price", "amount"),
    [
        (0, 0, 0),
        (0, 1_000_000, 0),
        (3, 0, 0),
        (1, 250_000, 250_000),
        (7, 1_500_000, 10_500_000),
        (1, MAX_MICROCREDITS, MAX_MICROCREDITS),
        (MAX_MICROCREDITS, 1, MAX_MICROCREDITS),
        (2**26, 2**27, 2**53),
    ],
)
def test_an_amount_is_quantity_times_unit_price(quantity: int, unit_price: int, amount: int):
    assert rate(quantity, unit_price) == amount


@pytest.mark.parametrize(
    ("quantity", "unit_price"), [(2, 2**53 - 1), (2**53, 2), (2**27, 2**27), (2**53, 2**53)]
)
def test_an_amount_past_two_to_the_53_is_refused(quantity: int, unit_price: int):
    with pytest.raises(InvalidValue, match="record it as several tasks") as caught:
        rate(quantity, unit_price)
    assert caught.value.field == "quantity"


@pytest.mark.parametrize("value", [-1, 2**53 + 1, 1.0, "1", True, None])
def test_only_integers_from_zero_to_two_to_the_53_are_rated(value: int):
    with pytest.raises(InvalidValue, match=r"^quantity="):
        rate(value, 1)
    with pytest.raises(InvalidValue, match=r"^unit_price_microcredits="):
        rate(1, value)


@given(amounts, amounts)
def test_every_amount_is_exact_or_refused(quantity: int, unit_price: int):
    exact = quantity * unit_price
    if exact <= MAX_MICROCREDITS:
        assert rate(quantity, unit_price) == exact
    else:
        with pytest.raises(InvalidValue):
            rate(quantity, unit_price)


@given(st.integers(0, 2**25), st.integers(0, 2**25), st.integers(0, 2**26))
def test_a_quantity_in_two_parts_costs_what_it_costs_in_one(one: int, other: int, price: int):
    assert rate(one, price) + rate(other, price) == rate(one + other, price)
