"""The figure of a usage report: its unit, its exact range, its text in a request. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from billing.core.errors import InvalidValue

MAX_IDENTIFIER: Final = 100
"""Characters of a report's identifier; the shortest limit among the providers (Stripe's)."""

MAX_DIGITS: Final = 15
"""Most significant digits of a value and of a period's total: totals are read back as doubles."""

CREDIT_DECIMALS: Final = 6
"""Decimals of a credit that the log keeps; the finest scale of a meter."""

LARGEST_VALUE: Final = 10**MAX_DIGITS - 1

_HOURS_OF_A_MONTH: Final = 31 * 24

MAX_HOUR_VALUE: Final = LARGEST_VALUE // _HOURS_OF_A_MONTH
"""Most that is sent for one hour: a month of such hours is still exact at a provider."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """``value`` in a meter's smallest unit, and the remainder of the amount below that unit."""

    value: int
    remainder_microcredits: int


def scaled(amount_microcredits: int, decimals: int = CREDIT_DECIMALS) -> Scaled:
    """Scale an amount to units of 10^-decimals of a credit: towards zero, with its remainder.

    Args:
        amount_microcredits: Any sign.
        decimals: Of a credit that the meter counts: 6 are microcredits (nothing remains), 0
            credits.

    Raises:
        InvalidValue: ``decimals`` is not within 0 to 6.
    """
    if not 0 <= decimals <= CREDIT_DECIMALS:
        raise InvalidValue("decimals", decimals, f"use 0 to {CREDIT_DECIMALS}")
    size, rest = divmod(abs(amount_microcredits), microcredits_per_unit(decimals))
    sign = -1 if amount_microcredits < 0 else 1
    return Scaled(sign * size, sign * rest)


def microcredits_per_unit(decimals: int) -> int:
    """Microcredits of one unit of a meter that counts so many decimals of a credit."""
    unit: int = 10 ** (CREDIT_DECIMALS - decimals)
    return unit


def fits_an_hour(value: int) -> bool:
    """Whether an hour's figure leaves a month's total exact at a provider."""
    return abs(value) <= MAX_HOUR_VALUE


def fits(value: int) -> bool:
    """Whether a value has at most 15 digits, so that a provider's double gives it back exactly."""
    return abs(value) <= LARGEST_VALUE


def value_text(value: int) -> str:
    """Write a value for a request: decimal digits, never an exponent.

    Raises:
        InvalidValue: More than 15 digits.
    """
    if not fits(value):
        raise InvalidValue("value", value, f"at most {MAX_DIGITS} digits are exact at a provider")
    return str(value)
