"""The words of a customer: ids, texts, statuses, limits."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from billing.core.customer import (
    Customer,
    CustomerStatus,
    check_customer_id,
    check_limit,
    check_status,
    check_text,
)
from billing.core.errors import InvalidValue


@pytest.mark.parametrize("text", ["a", "A", "7", "acme", "acme-2.eu_west", "x" * 64])
def test_these_name_a_customer(text: str):
    assert check_customer_id(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "-a", ".a", "a|b", "a:b", "a{b}", "a b", "é", "x" * 65, "a\n", "a\x00", "٣", None, 7],
)
def test_these_cannot_name_a_customer(text: object):
    with pytest.raises(InvalidValue) as caught:
        check_customer_id(text)
    assert caught.value.field == "customer"
    assert caught.value.value == text
    assert "at most 64" in caught.value.remedy


@pytest.mark.parametrize("text", ["Acme", "Äcme & Söhne", "x" * 200, "日本"])
def test_these_are_names(text: str):
    assert check_text(text, field="name") == text


@pytest.mark.parametrize("text", ["", "   ", "a\nb", "a\x00", "a\x1b[31m", "x" * 201, None, 5])
def test_these_are_not_names(text: object):
    with pytest.raises(InvalidValue, match=r"^name="):
        check_text(text, field="name")


def test_a_note_may_be_empty_and_a_name_may_not():
    assert check_text("", field="note", empty=True) == ""
    with pytest.raises(InvalidValue, match="at least one"):
        check_text("", field="name")


def test_a_status_is_active_or_suspended():
    assert check_status("active") is CustomerStatus.ACTIVE
    assert check_status("suspended") is CustomerStatus.SUSPENDED
    with pytest.raises(InvalidValue, match="use active or suspended"):
        check_status("paused")


@pytest.mark.parametrize(
    ("limit", "right"), [(0, True), (2**53, True), (-1, False), (2**53 + 1, False)]
)
def test_a_limit_is_from_zero_to_two_to_the_53(limit: int, right: bool):
    if right:
        assert check_limit(limit) == limit
    else:
        with pytest.raises(InvalidValue, match=r"^limit_microcredits="):
            check_limit(limit)


def test_a_limit_is_an_integer():
    for value in (1.5, "1", True):
        with pytest.raises(InvalidValue, match="use an integer"):
            check_limit(value)  # type: ignore[arg-type] - what a caller without types may send


def test_only_a_suspended_customer_is_suspended():
    def customer(status: CustomerStatus) -> Customer:
        return Customer(
            id="acme",
            name="Acme",
            status=status,
            time_zone="UTC",
            stripe_customer_id=None,
            created_at=datetime(2026, 11, 21, tzinfo=UTC),
        )

    assert customer(CustomerStatus.SUSPENDED).suspended
    assert not customer(CustomerStatus.ACTIVE).suspended
