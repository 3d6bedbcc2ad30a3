"""SKUs and prices in PostgreSQL. Prices are only ever added: what was charged stays explainable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import datetime
from enum import StrEnum
from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from billing.core.clock import format_instant, from_ms, to_ms
from billing.core.credits import check_microcredits, format_credits
from billing.core.customer import check_text
from billing.core.errors import AlreadyExists, InvalidValue, NotFound
from billing.core.sku import (
    AdmissionPolicy,
    DenialPolicy,
    FailurePolicy,
    Price,
    Pricing,
    Sku,
    UnavailablePolicy,
    check_sku_id,
    rate,
)
from billing.postgres.schema import prices, skus

MICROCREDIT_DECIMALS: Final = 6
_MAX_ALLOW_LIMIT: Final = 2**31 - 1
_Choice = TypeVar("_Choice", bound=StrEnum)


class SkuStore:
    """The tables of SKUs and prices. Each method is one transaction.

    Args:
        engine: PostgreSQL, as the owner role.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(
        self,
        sku_id: str,
        *,
        unit: str,
        unit_price_microcredits: int,
        effective_from: datetime,
        pricing: str = Pricing.FIXED,
        hold_quantity: int = 1,
        failure_policy: str = FailurePolicy.RELEASE,
        denial_policy: str = DenialPolicy.FAIL,
        unavailable_policy: str = UnavailablePolicy.RETRY,
        allow_limit: int = 0,
        description: str = "",
        meter_decimals: int = MICROCREDIT_DECIMALS,
        admission: str = AdmissionPolicy.EXACT,
    ) -> Sku:
        """Add a SKU with its first price; once more with the same content changes nothing.

        Args:
            sku_id: Its name in tasks and events, for good.
            unit: The word for one of it (``page``).
            unit_price_microcredits: The price of one unit; zero where units are only counted.
            effective_from: From when; the first price also covers what came before.
            pricing: ``fixed`` or ``measured``.
            hold_quantity: Units held when the task does not say; 1 if fixed.
            failure_policy: ``release`` or ``charge``.
            denial_policy: ``fail`` or ``defer``.
            unavailable_policy: ``retry``, ``deny`` or ``allow``.
            allow_limit: Runs that ``allow`` admits; more than zero with it.
            description: For people.
            meter_decimals: Decimals of a credit that the provider's meter counts, 0 to 6; what an
                hour has below that unit goes into a later hour.
            admission: ``exact`` or ``leased``.

        Raises:
            InvalidValue: One of them cannot be right.
            AlreadyExists: There is such a SKU with other content.
        """
        wanted = Sku(
            id=check_sku_id(sku_id),
            unit=check_text(unit, field="unit"),
            pricing=_choice("pricing", pricing, Pricing),
            hold_quantity=hold_quantity,
            failure_policy=_choice("failure_policy", failure_policy, FailurePolicy),
            denial_policy=_choice("denial_policy", denial_policy, DenialPolicy),
            unavailable_policy=_choice("unavailable_policy", unavailable_policy, UnavailablePolicy),
            allow_limit=allow_limit,
            prices=(_price(unit_price_microcredits, effective_from),),
            description=check_text(description, field="description", empty=True),
            meter_decimals=_decimals(meter_decimals),
            admission=_choice("admission", admission, AdmissionPolicy),
        )
        _check_relations(wanted)
        _check_price(wanted, unit_price_microcredits)
        columns = {name: value for name, value in asdict(wanted).items() if name != "prices"}
        new = insert(skus).values(columns).on_conflict_do_nothing().returning(skus.c.id)
        with self._engine.begin() as connection:
            if connection.scalar(new) is None:
                return _same(_read(connection, sku_id), wanted)
            _insert_price(connection, sku_id, wanted.prices[0])
        return wanted

    def get(self, sku_id: str) -> Sku:
        """Read the SKU of that id with all its prices.

        Raises:
            NotFound: There is none.
        """
        with self._engine.connect() as connection:
            return _read(connection, sku_id)

    def list(self) -> list[Sku]:
        """List every SKU with all its prices, by id."""
        return list(self.snapshot().values())

    def snapshot(self) -> dict[str, Sku]:
        """Read every SKU with all its prices, by id, in one snapshot."""
        with self._engine.connect() as connection:
            return _assemble(connection.execute(_query()))

    def set_admission(self, sku_id: str, admission: str) -> Sku:
        """Set whether tasks of a SKU are admitted one by one, or from leased credits.

        Workers know of it after ``catalog_ttl_seconds`` at the latest; existing leases run out by
        themselves.

        Args:
            sku_id: The SKU's id.
            admission: ``exact`` or ``leased``.

        Raises:
            NotFound: There is no such SKU.
            InvalidValue: It is neither.
        """
        wanted = _choice("admission", admission, AdmissionPolicy)
        with self._engine.begin() as connection:
            sku = _read(connection, sku_id)
            connection.execute(sa.update(skus).where(skus.c.id == sku_id).values(admission=wanted))
        return replace(sku, admission=wanted)

    def set_price(
        self,
        sku_id: str,
        unit_price_microcredits: int,
        effective_from: datetime,
        *,
        now: datetime,
    ) -> Sku:
        """Add a price from an instant on; the same price from the same instant again is no change.

        Args:
            sku_id: The SKU's id.
            unit_price_microcredits: The price of one unit from then on.
            effective_from: Not before ``now``, except for the first price. Workers know
                of it after ``catalog_ttl_seconds`` at the latest, so announce a price ahead.
            now: The present instant.

        Returns:
            The SKU with the new price.

        Raises:
            NotFound: There is no such SKU.
            InvalidValue: The price cannot be right, or would change what was charged already.
            AlreadyExists: Another price begins at that very instant.
        """
        with self._engine.begin() as connection:
            # Locked, so that two prices of one SKU are judged one after the other.
            connection.execute(sa.select(skus.c.id).where(skus.c.id == sku_id).with_for_update())
            sku = _read(connection, sku_id)
            _check_price(sku, unit_price_microcredits)
            price = _price(unit_price_microcredits, effective_from)
            if price in sku.prices:
                return sku
            _check_place(sku, price, now)
            _insert_price(connection, sku_id, price)
        in_order = sorted([*sku.prices, price], key=lambda each: each.effective_from)
        return replace(sku, prices=tuple(in_order))

    def set_meter_decimals(self, sku_id: str, meter_decimals: int) -> Sku:
        """Change the scale that the provider's meter counts: from now on it is another meter.

        Whether it may be changed is for ``billing.reporting.rescaling`` to say.

        Raises:
            NotFound: There is no such SKU.
            InvalidValue: Not 0 to 6.
        """
        change = sa.update(skus).where(skus.c.id == sku_id)
        with self._engine.begin() as connection:
            _read(connection, sku_id)
            connection.execute(change.values(meter_decimals=_decimals(meter_decimals)))
            return _read(connection, sku_id)


def unknown_sku(sku_id: str) -> NotFound:
    """Make the error about a SKU that is not there."""
    return NotFound("SKU", sku_id, "see billing skus list, or add it: billing skus add")


def _query() -> sa.Select[tuple[object, ...]]:
    price = (prices.c.unit_price_microcredits, prices.c.effective_from)
    joined = skus.outerjoin(prices, prices.c.sku_id == skus.c.id)
    query = sa.select(*skus.c, *price).select_from(joined)
    return query.order_by(skus.c.id, prices.c.effective_from)


def _assemble(rows: Iterable[sa.Row[tuple[object, ...]]]) -> dict[str, Sku]:
    found: dict[str, Sku] = {}
    for row in rows:
        sku = found.get(row.id) or _sku(row)
        if row.effective_from is not None:
            price = Price(row.unit_price_microcredits, row.effective_from)
            sku = replace(sku, prices=(*sku.prices, price))
        found[sku.id] = sku
    return found


def _sku(row: sa.Row[tuple[object, ...]]) -> Sku:
    return Sku(
        id=row.id,
        unit=row.unit,
        pricing=Pricing(row.pricing),
        hold_quantity=row.hold_quantity,
        failure_policy=FailurePolicy(row.failure_policy),
        denial_policy=DenialPolicy(row.denial_policy),
        unavailable_policy=UnavailablePolicy(row.unavailable_policy),
        allow_limit=row.allow_limit,
        prices=(),
        description=row.description,
        meter_decimals=row.meter_decimals,
        admission=AdmissionPolicy(row.admission),
    )


def _decimals(value: int) -> int:
    if not 0 <= value <= MICROCREDIT_DECIMALS:
        raise InvalidValue("meter_decimals", value, f"use 0 to {MICROCREDIT_DECIMALS}")
    return value


def _read(connection: sa.Connection, sku_id: str) -> Sku:
    # PostgreSQL cannot even compare with a NUL; no SKU has one.
    if "\x00" in sku_id:
        raise unknown_sku(sku_id)
    found = _assemble(connection.execute(_query().where(skus.c.id == sku_id)))
    if sku_id not in found:
        raise unknown_sku(sku_id)
    return found[sku_id]


def _insert_price(connection: sa.Connection, sku_id: str, price: Price) -> None:
    connection.execute(sa.insert(prices).values(sku_id=sku_id, **asdict(price)))


def _same(existing: Sku, wanted: Sku) -> Sku:
    """Return ``existing`` if adding ``wanted`` would have made it."""
    for field in asdict(wanted):
        is_there, is_wanted = getattr(existing, field), getattr(wanted, field)
        if field == "prices":
            field = "unit_price_microcredits"  # noqa: PLW2901 - its name in the arguments
            is_there = is_there[0].unit_price_microcredits if is_there else None
            is_wanted = is_wanted[0].unit_price_microcredits
        if is_there != is_wanted:
            raise AlreadyExists(
                f"SKU {wanted.id!r} is there with {field}={is_there!r}, not {is_wanted!r}: "
                "use another id, or billing skus price or admission to change these"
            )
    return existing


def _check_relations(sku: Sku) -> None:
    check_microcredits(sku.hold_quantity, field="hold_quantity")
    check_microcredits(sku.allow_limit, field="allow_limit")
    if sku.hold_quantity == 0:
        raise InvalidValue("hold_quantity", 0, "hold at least one unit")
    if sku.pricing is Pricing.FIXED and sku.hold_quantity != 1:
        raise InvalidValue(
            "hold_quantity", sku.hold_quantity, "a fixed SKU holds 1; use pricing=measured for more"
        )
    if sku.allow_limit > _MAX_ALLOW_LIMIT:
        raise InvalidValue("allow_limit", sku.allow_limit, f"use at most {_MAX_ALLOW_LIMIT}")
    if sku.unavailable_policy is UnavailablePolicy.ALLOW and sku.allow_limit == 0:
        raise InvalidValue(
            "allow_limit", 0, "unavailable_policy=allow needs a limit of one or more unheld runs"
        )


def _price(unit_price_microcredits: int, effective_from: datetime) -> Price:
    # To the millisecond, as an event's instant is, and as an operator reads and repeats it.
    return Price(unit_price_microcredits, from_ms(to_ms(effective_from)))


def _check_price(sku: Sku, unit_price_microcredits: int) -> None:
    check_microcredits(unit_price_microcredits, field="unit_price_microcredits")
    try:
        rate(sku.hold_quantity, unit_price_microcredits)
    except InvalidValue:
        raise InvalidValue(
            "unit_price_microcredits",
            unit_price_microcredits,
            f"a hold of {sku.hold_quantity} units would pass 2^53 microcredits; lower one of them",
        ) from None


def _check_place(sku: Sku, price: Price, now: datetime) -> None:
    for other in sku.prices:
        if other.effective_from == price.effective_from:
            raise AlreadyExists(
                f"SKU {sku.id!r} costs {format_credits(other.unit_price_microcredits)} credits "
                f"from {format_instant(other.effective_from)} on: prices never change; "
                "add one from another instant"
            )
    if sku.prices and price.effective_from < from_ms(to_ms(now)):
        raise InvalidValue(
            "effective_from",
            format_instant(price.effective_from),
            f"prices already used never change; use {format_instant(now)} or later",
        )


def _choice(field: str, text: str, choices: type[_Choice]) -> _Choice:
    try:
        return choices(text)
    except ValueError:
        raise InvalidValue(field, text, f"use one of {', '.join(choices)}") from None
