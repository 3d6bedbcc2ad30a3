"""Prices: what one unit costs, and which meter a metered price reads. Made by others, read here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from billing.devtools.stripe_sandbox import errors
from billing.devtools.stripe_sandbox.clock import MovableClock
from billing.devtools.stripe_sandbox.errors import JsonObject
from billing.devtools.stripe_sandbox.ids import Ids
from billing.devtools.stripe_sandbox.paging import within
from billing.devtools.stripe_sandbox.params import plain_decimal

PRODUCT: Final = "prod_sandbox"


class Prices:
    """The prices of this sandbox. There is no API to make one."""

    def __init__(self, clock: MovableClock, ids: Ids) -> None:
        self._clock = clock
        self._ids = ids
        self._by_id: dict[str, JsonObject] = {}
        self._metered: dict[tuple[str, str, str], str] = {}

    def one_time(
        self,
        unit_amount_decimal: str,
        currency: str,
        product: str = PRODUCT,
        *,
        active: bool = True,
    ) -> JsonObject:
        """A one-time price, which invoice items may name.

        Stripe makes one for every item that names none; such a price is not ``active``.
        """
        return self._add(unit_amount_decimal, currency, product, active=active, recurring=None)

    def metered(self, meter: str, unit_amount_decimal: str, currency: str) -> JsonObject:
        """The monthly price of a meter at this unit amount; the same one each time."""
        key = (meter, unit_amount_decimal, currency)
        if key not in self._metered:
            recurring: JsonObject = {
                "interval": "month",
                "interval_count": 1,
                "meter": meter,
                "usage_type": "metered",
            }
            made = self._add(
                unit_amount_decimal, currency, PRODUCT, active=True, recurring=recurring
            )
            self._metered[key] = made["id"]
        return self._by_id[self._metered[key]]

    def retrieve(self, price_id: str) -> JsonObject:
        """The price.

        Raises:
            Refusal: There is none.
        """
        if price_id not in self._by_id:
            raise errors.no_such("price", price_id, param="price")
        return self._by_id[price_id]

    def given(self, price_id: str, param: str) -> JsonObject:
        """The price a parameter names.

        Raises:
            Refusal: There is none.
        """
        if price_id not in self._by_id:
            raise errors.no_such("price", price_id, param=param, in_path=False)
        return self._by_id[price_id]

    def newest(self, wanted: Mapping[str, Any]) -> list[JsonObject]:
        """The prices that fit the parameters of a list, newest first."""
        return [price for price in reversed(self._by_id.values()) if _fits(price, wanted)]

    def _add(
        self,
        unit_amount_decimal: str,
        currency: str,
        product: str,
        *,
        active: bool,
        recurring: JsonObject | None,
    ) -> JsonObject:
        unit = plain_decimal(unit_amount_decimal)
        whole = unit is not None and unit == unit.to_integral_value()
        price: JsonObject = {
            "id": self._ids.new("price"),
            "object": "price",
            "active": active,
            "billing_scheme": "per_unit",
            "created": int(self._clock.seconds()),
            "currency": currency,
            "custom_unit_amount": None,
            "livemode": False,
            "lookup_key": None,
            "metadata": {},
            "nickname": None,
            "product": product,
            "recurring": recurring,
            "tax_behavior": "unspecified",
            "tiers_mode": None,
            "transform_quantity": None,
            "type": "one_time" if recurring is None else "recurring",
            "unit_amount": int(unit) if unit is not None and whole else None,
            "unit_amount_decimal": unit_amount_decimal,
        }
        self._by_id[price["id"]] = price
        return price


def _fits(price: JsonObject, wanted: Mapping[str, Any]) -> bool:
    if not within(price["created"], wanted.get("created")):
        return False
    recurring = price["recurring"] or {}
    of_recurring = wanted.get("recurring", {})
    return all(recurring.get(name) == value for name, value in of_recurring.items()) and all(
        price[name] == wanted[name]
        for name in ("active", "currency", "product", "type")
        if name in wanted
    )
