"""Whether a Stripe customer may be linked to a customer of ours. Pure; needs no stripe-python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from billing.core.errors import AlreadyExists, NotFound

CUSTOMER_METADATA: Final = "weighbridge_customer"
"""The metadata of a Stripe customer that names ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeCustomer:
    """A customer of Stripe's. ``ours`` is the customer of ours that its metadata names, or empty.

    Of a deleted one only the id is known.
    """

    ref: str
    deleted: bool = False
    name: str = ""
    ours: str = ""


def check_for(customer: str, found: StripeCustomer) -> None:
    """Refuse to bill a customer of ours under a Stripe customer that cannot be its own.

    Raises:
        NotFound: It is deleted.
        AlreadyExists: Its metadata names another customer of ours.
    """
    if found.deleted:
        raise NotFound(
            "customer at Stripe",
            found.ref,
            "it was deleted: Stripe would take figures for it and bill nobody; use another one",
        )
    if found.ours not in ("", customer):
        raise AlreadyExists(
            f"{found.ref} is customer {found.ours!r} by its metadata {CUSTOMER_METADATA!r}: "
            f"{customer!r} would be billed to them; use another one, or correct the metadata"
        )
