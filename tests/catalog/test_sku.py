"""A SKU: its id, and its price at an instant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.core.errors import InvalidValue, NotFound
from billing.core.sku import (
    DenialPolicy,
    FailurePolicy,
    Price,
    Pricing,
    Sku,
    UnavailablePolicy,
    check_sku_id,
)

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def sku(*prices: Price) -> Sku:
    return Sku(
        id="page-capture",
        unit="page",
        pricing=Pricing.FIXED,
        hold_quantity=1,
        failure_policy=FailurePolicy.RELEASE,
        denial_policy=DenialPolicy.FAIL,
        unavailable_policy=UnavailablePolicy.RETRY,
        allow_limit=0,
        prices=prices,
    )


@pytest.mark.parametrize("text", ["a", "7", "page-capture", "a.b_c-d", "x" * 64])
def test_these_name_a_sku(text: str):
    assert check_sku_id(text) == text


@pytest.mark.parametrize(
    "text", ["", "*", "Page", "a:b", "-a", "a b", "x" * 65, "a\n", "é", "a\x00", None, 5]
)
def test_these_cannot_name_a_sku(text: object):
    with pytest.raises(InvalidValue) as caught:
        check_sku_id(text)
    assert (caught.value.field, caught.value.value) == ("sku", text)


@pytest.mark.parametrize(
    ("after_noon", "price"),
    [
        (-1000 * HOUR, 1),
        (-timedelta(microseconds=1), 1),
        (timedelta(0), 1),
        (HOUR - timedelta(microseconds=1), 1),
        (HOUR, 2),
        (2 * HOUR - timedelta(microseconds=1), 2),
        (2 * HOUR, 3),
        (1000 * HOUR, 3),
    ],
)
def test_a_price_holds_from_its_instant_until_the_next_and_the_first_before_too(
    after_noon: timedelta, price: int
):
    priced = sku(Price(1, NOON), Price(2, NOON + HOUR), Price(3, NOON + 2 * HOUR))
    assert priced.unit_price_at(NOON + after_noon) == price


def test_a_sku_without_a_price_says_how_to_set_one():
    with pytest.raises(NotFound, match="billing skus price page-capture"):
        sku().unit_price_at(NOON)


def test_a_price_may_be_zero():
    assert sku(Price(0, NOON)).unit_price_at(NOON) == 0


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8, unique=True), st.integers(0, 1001))
def test_the_price_in_force_is_the_last_one_begun(hours: list[int], at: int):
    begun = sorted(hours)
    priced = sku(*(Price(hour, NOON + hour * HOUR) for hour in begun))
    expected = max([hour for hour in begun if hour <= at], default=begun[0])
    assert priced.unit_price_at(NOON + at * HOUR) == expected
