"""The name of a SKU's meter at a provider. Pure."""

from __future__ import annotations

from typing import Final

from billing.core.sku import Sku
from billing.providers.port import ProviderMeter
from billing.providers.report_value import CREDIT_DECIMALS

MAX_METER_NAME: Final = 100
"""Characters; Stripe's limit of an event name."""
_LONGEST_ENVIRONMENT: Final = 20
_LONGEST_SKU: Final = 64
assert (  # noqa: S101 - a relation between constants
    len("weighbridge__") + _LONGEST_ENVIRONMENT + _LONGEST_SKU + len(".d0") <= MAX_METER_NAME
)


def meter_prefix(environment: str) -> str:
    """The prefix of this installation's meters and of no other's."""
    return f"weighbridge_{environment}_"


def meter_of(sku: Sku, environment: str) -> ProviderMeter:
    """The meter of a SKU: ``weighbridge_{environment}_{sku}``.

    A meter counts microcredits, or at a coarser scale ``10^-decimals`` of a credit; its name then
    ends in ``.d{decimals}``, for figures of two scales must never meet in one meter.
    """
    name = f"{meter_prefix(environment)}{sku.id}"
    if sku.meter_decimals != CREDIT_DECIMALS:
        name += f".d{sku.meter_decimals}"
    return ProviderMeter(sku=sku.id, name=name, display_name=sku.description or sku.id)
