"""Credits: exact decimals in, integers inside, exact decimals out."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.core.credits import (
    MAX_MICROCREDITS,
    MICROCREDITS_PER_CREDIT,
    check_microcredits,
    format_credits,
    parse_credits,
)
from billing.core.errors import InvalidValue

amounts = st.integers(min_value=0, max_value=MAX_MICROCREDITS)


@given(microcredits=amounts)
def test_what_is_formatted_is_parsed_back(microcredits: int):
    assert parse_credits(format_credits(microcredits).replace(",", "")) == microcredits


@given(microcredits=amounts)
def test_the_text_is_the_exact_decimal_without_trailing_zeros(microcredits: int):
    text = format_credits(microcredits).replace(",", "")
    assert Decimal(text) * MICROCREDITS_PER_CREDIT == microcredits
    assert not ("." in text and text.endswith(("0", ".")))


@given(microcredits=amounts.filter(bool))
def test_a_negative_amount_differs_in_its_sign_only(microcredits: int):
    assert format_credits(-microcredits) == "-" + format_credits(microcredits)


@pytest.mark.parametrize(
    ("text", "microcredits"),
    [
        ("0", 0),
        ("12", 12_000_000),
        ("0.25", 250_000),
        ("0.000001", 1),
        ("1.500000", 1_500_000),
        ("007", 7_000_000),
        ("9007199254.740992", MAX_MICROCREDITS),
    ],
)
def test_credits_are_parsed_exactly(text: str, microcredits: int):
    assert parse_credits(text) == microcredits


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1",
        "1 ",
        "-1",
        "+1",
        "1.",
        ".5",
        "1e3",
        "1,000",
        "0.0000001",
        "NaN",
        "Infinity",
        "٣",
        "12345678901",
        "1\n",
    ],
)
def test_anything_else_is_refused_with_the_field_it_came_from(text: str):
    with pytest.raises(InvalidValue, match="price"):
        parse_credits(text, field="price")


def test_one_microcredit_beyond_the_ceiling_is_refused():
    with pytest.raises(InvalidValue, match="2\\^53"):
        parse_credits("9007199254.740993")


@pytest.mark.parametrize(
    ("microcredits", "text"),
    [
        (0, "0"),
        (1, "0.000001"),
        (1_250_000, "1.25"),
        (1_000_000, "1"),
        (-1_500_000, "-1.5"),
        (1_234_567_000_000, "1,234,567"),
        (MAX_MICROCREDITS, "9,007,199,254.740992"),
    ],
)
def test_credits_are_formatted_shortly(microcredits: int, text: str):
    assert format_credits(microcredits) == text


@given(value=amounts)
def test_an_amount_in_range_is_returned(value: int):
    assert check_microcredits(value, field="amount") == value


@pytest.mark.parametrize("value", [-1, MAX_MICROCREDITS + 1, True, 1.0, "1", None, Decimal(1)])
def test_what_is_not_an_amount_is_refused(value: object):
    with pytest.raises(InvalidValue, match="amount"):
        check_microcredits(value, field="amount")


def test_every_amount_is_exact_as_a_double_which_redis_scripts_compute_in():
    assert float(MAX_MICROCREDITS) == MAX_MICROCREDITS
    assert float(MAX_MICROCREDITS - 1) == MAX_MICROCREDITS - 1
    assert float(MAX_MICROCREDITS + 1) != MAX_MICROCREDITS + 1
