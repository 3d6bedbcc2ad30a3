"""Rating: quantity to microcredits. Pure."""

from __future__ import annotations

from billing.core.credits import MAX_MICROCREDITS, check_microcredits
from billing.core.errors import InvalidValue


def rate(quantity: int, unit_price_microcredits: int) -> int:
    """What ``quantity`` units cost, in microcredits.

    Raises:
        InvalidValue: Either is not an integer of zero or more, or the product passes
            ``MAX_MICROCREDITS``.
    """
    check_microcredits(quantity, field="quantity")
    check_microcredits(unit_price_microcredits, field="unit_price_microcredits")
    amount = quantity * unit_price_microcredits
    if amount > MAX_MICROCREDITS:
        raise InvalidValue(
            "quantity",
            quantity,
            f"at {unit_price_microcredits} microcredits a unit this passes 2^53 microcredits; "
            "record it as several tasks",
        )
    return amount
