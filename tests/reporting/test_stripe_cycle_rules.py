"""What lines and prices of Stripe's invoices mean, without asking anybody."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from billing.providers.port import MeteredLine
from billing.providers.stripe.billing_cycles import (
    check_undivided,
    meter_of_price,
    price_of,
    quantity_of,
    summed,
)
from billing.providers.stripe.client import StripeUnanswered


def line_of(quantity: str | None, *, whole: int | None = None, **more: Any) -> Any:
    data = {
        "id": "il_1",
        "object": "line_item",
        "quantity": whole,
        "quantity_decimal": None if quantity is None else Decimal(quantity),
        "period": {"start": 0, "end": 3_600},
        "pricing": None,
        **more,
    }
    return stripe.InvoiceLineItem.construct_from(data, "sk_test_1")


@pytest.mark.parametrize(
    ("quantity", "whole", "value"),
    [
        ("1500000", 1_500_000, 1_500_000),
        ("7.000000000000", 7, 7),
        ("1E+3", None, 1_000),
        ("999999999999999999999", None, 999_999_999_999_999_999_999),
        ("0", 0, 0),
        (None, 12, 12),
        ("0.5", 0, None),
        ("1.000000000001", 1, None),
        (None, None, None),
    ],
)
def test_a_quantity_is_an_integer_or_an_error(
    quantity: str | None, whole: int | None, value: int | None
):
    billed_line = line_of(quantity, whole=whole)
    if value is None:
        with pytest.raises(StripeUnanswered, match="in_1"):
            quantity_of(billed_line, "in_1", "pages")
    else:
        assert quantity_of(billed_line, "in_1", "pages") == value


@given(
    found=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(0, 10**15)), max_size=12
    )
)
def test_lines_of_a_meter_and_period_are_added_up(found: list[tuple[str, int, int]]):
    lines = [
        (meter, line_of(str(value), period={"start": month, "end": month + 1}))
        for meter, month, value in found
    ]
    expected: dict[tuple[str, int], int] = {}
    for meter, month, value in found:
        expected[meter, month] = expected.get((meter, month), 0) + value
    assert summed("in_1", lines) == [
        MeteredLine(
            meter=meter,
            period_start=datetime.fromtimestamp(month, UTC),
            period_end=datetime.fromtimestamp(month + 1, UTC),
            value=value,
        )
        for (meter, month), value in expected.items()
    ]


@pytest.mark.parametrize(
    ("pricing", "price"),
    [
        (None, ""),
        ({"type": "price_details"}, ""),
        (
            {"type": "price_details", "price_details": {"price": "price_1", "product": "p"}},
            "price_1",
        ),
        (
            {
                "type": "price_details",
                "price_details": {"price": {"id": "price_2", "object": "price"}, "product": "p"},
            },
            "price_2",
        ),
    ],
    ids=str,
)
def test_a_line_has_a_price_by_its_id_or_expanded_or_none(pricing: Any, price: str):
    assert price_of(line_of("1", pricing=pricing)) == price


def price_with(recurring: Any, transform_quantity: Any = None) -> stripe.Price:
    data = {
        "id": "price_1",
        "object": "price",
        "recurring": recurring,
        "transform_quantity": transform_quantity,
    }
    return stripe.Price.construct_from(data, "sk_test_1")


METERED = {"interval": "month", "interval_count": 1, "usage_type": "metered", "meter": "mtr_1"}
LICENSED = {**METERED, "usage_type": "licensed", "meter": None}
PACKAGES = {"divide_by": 1_000, "round": "up"}


@pytest.mark.parametrize(
    ("recurring", "divided", "meter"),
    [
        (METERED, None, "mtr_1"),
        (LICENSED, None, None),
        (LICENSED, PACKAGES, None),
        (None, None, None),
    ],
    ids=str,
)
def test_a_price_reads_a_meter_or_none(recurring: Any, divided: Any, meter: str | None):
    assert meter_of_price(price_with(recurring, divided)) == meter


def test_a_price_that_divides_usage_cannot_be_compared():
    with pytest.raises(StripeUnanswered, match="price_1 divides usage"):
        check_undivided(price_with(METERED, PACKAGES))
    check_undivided(price_with(METERED, None))
