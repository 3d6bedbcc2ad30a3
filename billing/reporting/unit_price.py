"""The price of one unit of a meter, as Stripe takes it. Pure; exact decimals."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Final

from billing.providers.report_value import CREDIT_DECIMALS

MAX_PRICE_DECIMALS: Final = 12
"""Of a price's ``unit_amount_decimal``, which is in minor units (cents)."""

# https://docs.stripe.com/currencies: amounts of ISK and UGX have two decimals at Stripe, whatever
# the currencies themselves have.
_NO_MINOR: Final = "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF"
_THOUSANDTHS: Final = "BHD JOD KWD OMR TND"
_MINOR_DIGITS: Final = {
    **dict.fromkeys(_NO_MINOR.split(), 0),
    **dict.fromkeys(_THOUSANDTHS.split(), 3),
}
_USUAL_MINOR_DIGITS: Final = 2

# A credit's value has at most 21 digits; nothing is ever rounded.
_EXACT: Final = Context(prec=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrice:
    """The price of one unit of a meter.

    ``amount`` is a decimal string in minor units of ``currency`` (lower case, as Stripe writes it).
    ``decimals`` are those of a credit that the meter counts; ``most_decimals`` is the finest scale
    whose price Stripe takes: where ``decimals`` is more, it does not take this one.
    """

    amount: str
    currency: str
    decimals: int
    most_decimals: int

    @property
    def fits(self) -> bool:
        """Whether Stripe takes it."""
        return self.decimals <= self.most_decimals


def minor_digits(currency: str) -> int:
    """The decimals of an amount of a currency (such as ``USD``) at Stripe: 2 are cents."""
    return _MINOR_DIGITS.get(currency.upper(), _USUAL_MINOR_DIGITS)


def unit_price(credit_value: str, currency: str, decimals: int) -> UnitPrice:
    """The price of ``10^-decimals`` of a credit.

    Args:
        credit_value: What one credit is worth, a decimal string in units of the currency
            (``WEIGHBRIDGE_CREDIT_VALUE``).
        currency: ISO 4217 code.
        decimals: Of a credit that the meter counts, 0 to 6.
    """
    credit = Decimal(credit_value).scaleb(minor_digits(currency), _EXACT)
    unit = credit.scaleb(-decimals, _EXACT)
    return UnitPrice(
        amount=_plain(unit),
        currency=currency.lower(),
        decimals=decimals,
        most_decimals=min(CREDIT_DECIMALS, MAX_PRICE_DECIMALS - _places(credit)),
    )


def _places(value: Decimal) -> int:
    """The number of decimals; below zero where it ends in zeros before the point."""
    shortest = value.normalize(_EXACT)
    exponent = shortest.as_tuple().exponent
    # Of a finite number it is an integer; zero has none that matters.
    return -exponent if shortest and isinstance(exponent, int) else -MAX_PRICE_DECIMALS


def _plain(value: Decimal) -> str:
    text = format(value.normalize(_EXACT), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
