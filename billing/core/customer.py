"""A customer with a time zone and budgets, and the rules for their values. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from billing.core.credits import check_microcredits
from billing.core.errors import InvalidValue, NotFound

_CUSTOMER_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
MAX_TEXT: Final = 200
"""The longest name, note or reference, in characters."""

EVERY_SKU: Final = "*"
"""The name of the budget over all SKUs together; no SKU can be called so."""


class CustomerStatus(StrEnum):
    """Whether new tasks of a customer are admitted."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    """New admissions are denied (``customer_suspended``); what is held may finish and settle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """A party that is billed.

    ``time_zone`` (IANA) is where the customer's months begin and end; ``created_at`` is when
    PostgreSQL took the customer in and has no meaning for billing. ``stripe_deleted_at`` is when
    Stripe reported that its customer was deleted; until another one is linked.
    """

    id: str
    name: str
    status: CustomerStatus
    time_zone: str
    stripe_customer_id: str | None
    created_at: datetime
    stripe_deleted_at: datetime | None = None

    @property
    def suspended(self) -> bool:
        """Whether new tasks are denied."""
        return self.status is CustomerStatus.SUSPENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A ceiling of what a customer may spend in a calendar month of the customer's time zone.

    ``sku`` is a SKU, or ``EVERY_SKU`` for all of them together.
    """

    customer: str
    sku: str
    limit_microcredits: int


def check_customer_id(text: object) -> str:
    """Return ``text`` if it can name a customer.

    Raises:
        InvalidValue: It cannot. The characters left out are those that Redis keys and open holds
            use as separators.
    """
    if not isinstance(text, str) or not _CUSTOMER_ID.fullmatch(text):
        raise InvalidValue(
            "customer",
            text,
            "use letters, digits, '.', '_' and '-', at most 64 of them, a letter or digit first",
        )
    return text


def check_text(text: object, *, field: str, empty: bool = False) -> str:
    """Return ``text`` if it is text that PostgreSQL can keep and a terminal can show.

    Args:
        text: At most ``MAX_TEXT`` printable characters.
        field: The name to use in the error.
        empty: Whether nothing is allowed too.

    Raises:
        InvalidValue: It is something else.
    """
    if (
        isinstance(text, str)
        and len(text) <= MAX_TEXT
        and (empty or text.strip())
        and text.isprintable()
    ):
        return text
    least = "" if empty else "at least one and "
    raise InvalidValue(field, text, f"use {least}at most {MAX_TEXT} printable characters")


def check_status(text: str) -> CustomerStatus:
    """Look up the status of that name.

    Raises:
        InvalidValue: There is none.
    """
    try:
        return CustomerStatus(text)
    except ValueError:
        raise InvalidValue("status", text, "use active or suspended") from None


def check_limit(limit_microcredits: int) -> int:
    """Return a budget's ceiling if it is one; zero stops everything that costs.

    Raises:
        InvalidValue: Not an integer from 0 to 2^53.
    """
    return check_microcredits(limit_microcredits, field="limit_microcredits")


def unknown_customer(customer: str) -> NotFound:
    """Make the error about a customer who is not there."""
    return NotFound("customer", customer, "see billing customers list, or add it: customers add")
