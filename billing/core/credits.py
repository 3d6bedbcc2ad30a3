"""Credits: whole accounting units, exact to six decimals, stored as integer microcredits.

The ceiling is 2**53, because Redis scripts compute in IEEE doubles: up to there every integer is
exact (https://redis.io/docs/latest/develop/programmability/lua-api/, "Number type conversion").
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from billing.core.errors import InvalidValue

MICROCREDITS_PER_CREDIT: Final = 1_000_000
MAX_MICROCREDITS: Final = 2**53
"""The largest amount, balance or budget. Also the largest quantity of one usage line."""

_DECIMAL = re.compile(r"\d{1,10}(\.\d{1,6})?", re.ASCII)


def parse_credits(text: str, *, field: str = "credits") -> int:
    """Parse a decimal string into microcredits, such as ``"12"`` or ``"0.25"``.

    Args:
        text: Digits, optionally a point and one to six more digits. No sign, no exponent.
        field: The name to use in the error.

    Raises:
        InvalidValue: The text is anything else, or more than ``MAX_MICROCREDITS``.
    """
    if not _DECIMAL.fullmatch(text):
        raise InvalidValue(
            field, text, "write credits as digits with at most six decimals, for example 12 or 0.25"
        )
    microcredits = int(Decimal(text).scaleb(6))
    return check_microcredits(microcredits, field=field)


def format_credits(microcredits: int) -> str:
    """Format an amount as the shortest decimal string: ``1_250_000`` -> ``"1.25"``; sign kept."""
    sign = "-" if microcredits < 0 else ""
    whole, fraction = divmod(abs(microcredits), MICROCREDITS_PER_CREDIT)
    decimals = f"{fraction:06d}".rstrip("0")
    return f"{sign}{whole:,}{'.' + decimals if decimals else ''}"


def check_microcredits(value: object, *, field: str) -> int:
    """Return ``value`` if it is an integer in ``0..MAX_MICROCREDITS``.

    Raises:
        InvalidValue: It is a bool, not an integer, negative, or too large.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidValue(field, value, "use an integer")
    if value < 0:
        raise InvalidValue(field, value, "use zero or more")
    if value > MAX_MICROCREDITS:
        raise InvalidValue(field, value, f"use at most {MAX_MICROCREDITS} (2^53)")
    return value
