"""A SKU: its measure, its prices, and its policies for failure, denial and outage. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from billing.core.credits import MAX_MICROCREDITS, check_microcredits
from billing.core.errors import InvalidValue, NotFound

_SKU_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)


class Pricing(StrEnum):
    """The way in which a task's quantity is known."""

    FIXED = "fixed"
    """One unit per task, known before it runs."""
    MEASURED = "measured"
    """Only the body knows; a ceiling (``hold_quantity``) is held before, the measure settled."""


class FailurePolicy(StrEnum):
    """The charge for a task that failed."""

    RELEASE = "release"
    """Nothing; the hold is given back. The failure is logged with amount 0 and provider cost."""
    CHARGE = "charge"
    """The usage up to the failure: the recorded quantity, or one unit of a fixed SKU."""


class DenialPolicy(StrEnum):
    """The reaction of a task to its denial."""

    FAIL = "fail"
    """Fails with ``QuotaExceeded``."""
    DEFER = "defer"
    """Comes back later, until it is admitted or its deferrals are used up."""


class UnavailablePolicy(StrEnum):
    """The reaction of a task while the quota store does not answer."""

    RETRY = "retry"
    """Comes back later; nothing runs unheld."""
    DENY = "deny"
    """Fails with ``QuotaExceeded(quota_unavailable)``."""
    ALLOW = "allow"
    """Runs unheld, up to ``allow_limit`` times per worker process and outage; always recorded."""


class AdmissionPolicy(StrEnum):
    """The way in which a task's credits are held."""

    EXACT = "exact"
    """Each task asks the quota store: one hold per task."""
    LEASED = "leased"
    """A process that runs many leases credits in one call and admits from them; see
    ``billing/quota/README.md`` for what a leased SKU gives up."""


@dataclass(frozen=True, slots=True)
class Price:
    """The price of one unit from an instant on."""

    unit_price_microcredits: int
    effective_from: datetime


@dataclass(frozen=True, slots=True)
class Sku:
    """One thing that is sold.

    ``unit`` is the word for one of it (``page``); ``hold_quantity`` is how many units are held when
    the task does not say (always 1 for a fixed SKU); ``prices`` are in order of ``effective_from``;
    ``meter_decimals`` are those of a credit that the provider's meter counts (6: microcredits);
    ``admission`` says whether each task asks the quota store or a lease is asked for many.
    """

    id: str
    unit: str
    pricing: Pricing
    hold_quantity: int
    failure_policy: FailurePolicy
    denial_policy: DenialPolicy
    unavailable_policy: UnavailablePolicy
    allow_limit: int
    prices: tuple[Price, ...]
    description: str = ""
    meter_decimals: int = 6
    admission: AdmissionPolicy = AdmissionPolicy.EXACT

    def unit_price_at(self, instant: datetime) -> int:
        """Find the price of one unit, in microcredits, in force at ``instant``.

        The first price also covers the time before it: a task can be stamped a moment before its
        SKU's first price is, and refusing it would lose work over a clock's tick.

        Raises:
            NotFound: The SKU has no price at all.
        """
        if not self.prices:
            raise NotFound("price", self.id, f"set one with: billing skus price {self.id} 1.5")
        current = self.prices[0]
        for price in self.prices[1:]:
            if price.effective_from > instant:
                break
            current = price
        return current.unit_price_microcredits


def check_sku_id(text: object) -> str:
    """Return ``text`` if it can name a SKU.

    Raises:
        InvalidValue: It cannot. A colon would make two lines of one task look alike.
    """
    if not isinstance(text, str) or not _SKU_ID.fullmatch(text):
        raise InvalidValue("sku", text, "use a-z, 0-9, '.', '_' and '-', at most 64 of them")
    return text


def rate(quantity: int, unit_price_microcredits: int) -> int:
    """Price ``quantity`` units, in microcredits.

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
