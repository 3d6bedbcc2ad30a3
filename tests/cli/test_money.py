"""Margins: exact, in the currency."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.core.money import format_cost, format_money, margin_of


@pytest.mark.parametrize(
    ("microcredits", "cost_micros", "value", "revenue", "margin"),
    [
        (0, 0, "0.01", "0", "0"),
        (1_000_000, 0, "0.01", "0.01", "0.01"),
        (3_000_000, 1_000, "0.01", "0.03", "0.029"),
        (1_000_000, 20_000, "0.01", "0.01", "-0.01"),
        (0, 500, "0.01", "0", "-0.0005"),
        (1, 0, "0.000000000001", "1E-18", "1E-18"),
    ],
)
def test_a_margin_is_revenue_less_cost(
    microcredits: int, cost_micros: int, value: str, revenue: str, margin: str
):
    found = margin_of(microcredits, cost_micros, credit_value=value, currency="EUR")
    assert found.revenue == Decimal(revenue)
    assert found.margin == Decimal(margin)
    assert found.currency == "EUR"


@given(st.integers(0, 2**53), st.integers(0, 2**53))
def test_margins_of_parts_add_up_to_the_margin_of_the_whole(amount: int, cost: int):
    def margin(microcredits: int, cost_micros: int) -> Decimal:
        return margin_of(microcredits, cost_micros, credit_value="0.01", currency="USD").margin

    parts = margin(amount // 3, cost // 7) + margin(amount - amount // 3, cost - cost // 7)
    assert parts == margin(amount, cost)


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "0.0000 USD"),
        (500, "0.0005 USD"),
        (1_234, "0.001234 USD"),
        (1_000_000, "1.0000 USD"),
        (1_234_567_890_000, "1,234,567.8900 USD"),
    ],
)
def test_a_cost_is_shown_exactly(micros: int, text: str):
    assert format_cost(micros, "USD") == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [("0", "0.0000 USD"), ("-0.01", "-0.0100 USD"), ("1234.56785", "1,234.5678 USD")],
)
def test_money_is_shown_to_a_hundredth_of_a_cent(amount: str, text: str):
    assert format_money(Decimal(amount), "USD") == text
