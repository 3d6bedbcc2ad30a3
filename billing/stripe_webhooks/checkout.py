"""The credits that a paid checkout is worth. Pure; integers and fractions, never a float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from billing.core.credits import MAX_MICROCREDITS, MICROCREDITS_PER_CREDIT, parse_credits
from billing.core.errors import InvalidValue
from billing.reporting.unit_price import minor_digits
from billing.stripe_webhooks.stripe_event import Unreadable, is_name

CREDITS: Final = "weighbridge_credits"
"""The metadata of a session that says how many credits were bought."""

AMBIGUOUS: Final = frozenset({"UGX"})
"""Stripe's page of currencies lists it as without decimals and asks for two of them."""


class NotYet(Exception):  # noqa: N818 - the credits cannot be given yet
    """A paid checkout whose credits cannot be told; ``reason`` says what a person has to do."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """A checkout session, as far as it matters.

    ``amount_minor`` is what was paid for what was bought: without tax and shipping.
    ``customer_ref`` is Stripe's id of who paid and ``named`` our id of it, as the shop gave it with
    ``client_reference_id``; each empty where there is none.
    """

    id: str
    mode: str
    payment_status: str
    customer_ref: str
    named: str
    currency: str
    amount_minor: int
    credits: str | None

    @property
    def paid_top_up(self) -> bool:
        """Whether money has come for something that is bought once."""
        return self.mode == "payment" and self.payment_status == "paid"

    @property
    def reference(self) -> str:
        """The reference of its grant: the same however often and by which event it is told."""
        return f"stripe:{self.id}"


def read_checkout(session: Mapping[str, Any]) -> Checkout:
    """A session as Stripe answers it.

    Raises:
        Unreadable: It lacks its id or an amount.
    """
    if not is_name(session.get("id")):
        raise Unreadable("the session has no id")
    total = _amount(session, "amount_total")
    details = session.get("total_details") or {}
    metadata = session.get("metadata") or {}
    bought = metadata.get(CREDITS)
    return Checkout(
        id=session["id"],
        mode=str(session.get("mode")),
        payment_status=str(session.get("payment_status")),
        customer_ref=_id_of(session.get("customer")),
        named=_id_of(session.get("client_reference_id")),
        currency=str(session.get("currency") or "").upper(),
        amount_minor=total - _amount(details, "amount_tax") - _amount(details, "amount_shipping"),
        credits=None if bought is None else str(bought),
    )


def credits_bought(checkout: Checkout, *, currency: str, credit_value: str) -> int:
    """The microcredits that a checkout has paid for; what its metadata says, else by its amount.

    0 only where the metadata says so: something else was bought.

    Args:
        checkout: A paid one.
        currency: The currency that ``credit_value`` is in.
        credit_value: What one credit is worth, a decimal string.

    Raises:
        NotYet: It cannot be told, or its amount is nothing, or more than a grant can be.
    """
    if checkout.credits is not None:
        try:
            return parse_credits(checkout.credits.strip(), field=CREDITS)
        except InvalidValue as error:
            raise NotYet(f"metadata {error}") from error
    bought = _by_amount(checkout, currency, Fraction(credit_value))
    if bought < 1:
        raise NotYet("what was paid comes to less than one microcredit")
    if bought > MAX_MICROCREDITS:
        raise NotYet("what was paid comes to more than 2^53 microcredits, the most of one grant")
    return bought


def decimals_of(currency: str) -> int:
    """The decimals of Stripe's amounts of a currency.

    Raises:
        NotYet: Stripe says two things about it.
    """
    if currency in AMBIGUOUS:
        raise NotYet(f"amounts in {currency} are ambiguous at Stripe; say {CREDITS} in metadata")
    return minor_digits(currency)


def _by_amount(checkout: Checkout, currency: str, credit_value: Fraction) -> int:
    if checkout.currency != currency:
        raise NotYet(
            f"it was paid in {checkout.currency or 'no currency'}, and credits have a value in "
            f"{currency} only; say {CREDITS} in the session's metadata"
        )
    if not credit_value:
        raise NotYet(f"WEIGHBRIDGE_CREDIT_VALUE is 0; say {CREDITS} in the session's metadata")
    paid = Fraction(checkout.amount_minor, 10 ** decimals_of(currency))
    # Towards zero: nobody is given a microcredit that was not wholly paid.
    return int(paid / credit_value * MICROCREDITS_PER_CREDIT)


def _amount(thing: object, field: str) -> int:
    found = thing.get(field) if isinstance(thing, Mapping) else None
    if found is None:
        return 0
    if not isinstance(found, int) or isinstance(found, bool):
        raise Unreadable(f"the session's {field} is not an integer")
    return found


def _id_of(value: object) -> str:
    # An id, or the object itself where it was expanded.
    if isinstance(value, Mapping):
        value = value.get("id")
    return str(value) if is_name(value) else ""
