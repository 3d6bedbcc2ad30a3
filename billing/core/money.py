"""What credits are worth and what is left of them after provider costs. Pure; exact decimals."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from billing.core.credits import MICROCREDITS_PER_CREDIT

_MICROS: Final = Decimal(1_000_000)
_CENTS_OF_CENTS: Final = Decimal("0.0001")


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """Revenue and provider cost of some usage, in units of the currency."""

    revenue: Decimal
    cost: Decimal
    currency: str

    @property
    def margin(self) -> Decimal:
        """What is left; negative where usage costs more than it earns."""
        return self.revenue - self.cost


def margin_of(
    amount_microcredits: int, cost_micros: int, *, credit_value: str, currency: str
) -> Margin:
    """The margin of an amount charged and what it cost us.

    Args:
        amount_microcredits: What was charged.
        cost_micros: Provider cost, in millionths of the currency.
        credit_value: What one credit is worth, a decimal string (``WEIGHBRIDGE_CREDIT_VALUE``).
        currency: ISO 4217 code of both.
    """
    revenue = Decimal(amount_microcredits) / MICROCREDITS_PER_CREDIT * Decimal(credit_value)
    return Margin(revenue=revenue, cost=Decimal(cost_micros) / _MICROS, currency=currency)


def format_money(amount: Decimal, currency: str) -> str:
    """An amount for people, to a hundredth of a cent: ``1,234.5000 USD``."""
    return f"{amount.quantize(_CENTS_OF_CENTS):,} {currency}"


def format_cost(cost_micros: int, currency: str) -> str:
    """Provider cost for people: ``0.0005 USD``, with as many decimals as it has, four at least."""
    cost = Decimal(cost_micros) / _MICROS
    text = f"{cost:,.6f}"
    return f"{text.removesuffix('00')} {currency}"
