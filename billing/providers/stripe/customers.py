"""Customers at Stripe: found by the metadata that names ours, or by an id that a person gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import stripe

from billing.core.errors import NotFound
from billing.providers.stripe.client import (
    PAGE,
    asking,
    failure_of,
    idempotency_key,
    is_missing,
    metadata_of,
    once,
)
from billing.providers.stripe.customer_link import CUSTOMER_METADATA, StripeCustomer


class StripeCustomers:
    """Customers of the key's account.

    Args:
        client: The client of stripe-python. May be used by several threads.
    """

    def __init__(self, client: stripe.StripeClient) -> None:
        self._customers = client.v1.customers

    def link(self, customer: str, name: str, *, dry_run: bool = False) -> str:
        """The id of the Stripe customer whose metadata names ours; created where there is none.

        Returns:
            The id; empty with ``dry_run`` where there is none yet.

        Raises:
            StripeUnanswered: Stripe did not answer.
        """
        quoted = customer.replace("\\", "\\\\").replace("'", "\\'")
        query = f"metadata['{CUSTOMER_METADATA}']:'{quoted}'"
        with asking():
            hits = self._customers.search({"query": query, "limit": PAGE}).data
            if hits:
                return _oldest(hits).id
            if dry_run:
                return ""
            # Search lags behind by a minute or so; the Idempotency-Key bridges that.
            params: Any = {"name": name or customer, "metadata": {CUSTOMER_METADATA: customer}}
            return once(
                idempotency_key("cus", customer),
                lambda options: self._customers.create(params, options),
                lambda: self._listed(customer),
            ).id

    def at(self, ref: str) -> StripeCustomer:
        """The Stripe customer of an id.

        Raises:
            NotFound: There never was one in the account and mode of the key.
            StripeUnanswered: Stripe did not answer.
        """
        with asking():
            try:
                found = self._customers.retrieve(ref)
            except stripe.InvalidRequestError as error:
                if not is_missing(error):
                    raise
                said = f"Stripe: {failure_of(error).message}"
                raise NotFound(
                    "customer at Stripe",
                    ref,
                    f"copy its id (cus_...) from the dashboard of the key's account ({said})",
                ) from None
        if getattr(found, "deleted", False):
            return StripeCustomer(ref=ref, deleted=True)
        ours = metadata_of(found).get(CUSTOMER_METADATA, "")
        return StripeCustomer(ref=found.id, name=found.name or "", ours=ours)

    def _listed(self, customer: str) -> stripe.Customer | None:
        """Look at every customer: search may not know yet, the list does."""
        listed = self._customers.list({"limit": PAGE}).auto_paging_iter()
        hits = [one for one in listed if metadata_of(one).get(CUSTOMER_METADATA) == customer]
        return _oldest(hits) if hits else None


def _oldest(customers: Sequence[stripe.Customer]) -> stripe.Customer:
    # Of several, every process has to take the same.
    return min(customers, key=lambda one: (one.created, one.id))
