"""Customers at Stripe as a person names them: is there such a one, and is it ours to bill?"""

from __future__ import annotations

from dataclasses import dataclass

import stripe

from billing.core.errors import AlreadyExists, NotFound
from billing.providers.stripe.client import asking, is_missing, metadata_of
from billing.providers.stripe.errors import failure_of
from billing.providers.stripe.provider import CUSTOMER_METADATA


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeCustomer:
    """A customer of Stripe's. ``ours`` is the customer of ours that its metadata names, or empty.

    Of a deleted one only the id is known.
    """

    ref: str
    deleted: bool = False
    name: str = ""
    ours: str = ""


def customer_at(client: stripe.StripeClient, ref: str) -> StripeCustomer:
    """The Stripe customer of an id.

    Raises:
        NotFound: There never was one in the account and mode of the key.
        ProviderUnavailable: Stripe did not answer.
    """
    with asking():
        try:
            found = client.v1.customers.retrieve(ref)
        except stripe.InvalidRequestError as error:
            if not is_missing(error):
                raise
            raise NotFound(
                "customer at Stripe",
                ref,
                f"copy its id (cus_...) from the dashboard of the key's account ({_said(error)})",
            ) from None
    if getattr(found, "deleted", False):
        return StripeCustomer(ref=ref, deleted=True)
    return StripeCustomer(
        ref=found.id, name=found.name or "", ours=metadata_of(found).get(CUSTOMER_METADATA, "")
    )


def check_for(customer: str, found: StripeCustomer) -> None:
    """Refuse to bill a customer of ours under a Stripe customer that cannot be its own. Pure.

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


def _said(error: stripe.StripeError) -> str:
    return f"Stripe: {failure_of(error).message}"
