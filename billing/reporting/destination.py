"""The destination of usage: provider, meters, and the provider's ids of our customers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from billing.providers.port import ProviderMeter
from billing.providers.report_value import CREDIT_DECIMALS


class CustomerIds(StrEnum):
    """The id that a provider knows a customer by; the values are columns of ``customers``."""

    OURS = "id"
    STRIPE = "stripe_customer_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """A SKU's meter at a provider, and the decimals of a credit that it counts."""

    meter: ProviderMeter
    decimals: int = CREDIT_DECIMALS


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """The place that gets usage now.

    ``environment`` tells installations apart that report to one account. ``metered`` gives a SKU's
    meter there, and raises LookupError of a SKU that it does not know (yet). ``max_age``: see
    ``Provider.max_age``.
    """

    environment: str
    provider: str
    customer_ids: CustomerIds
    metered: Callable[[str], Metered]
    max_age: timedelta | None = None
