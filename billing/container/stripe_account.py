"""The Stripe account of the settings. The one module of the container that needs stripe-python."""

from __future__ import annotations

from collections.abc import Callable

from billing.providers.stripe.client import client_of
from billing.providers.stripe.customers import StripeCustomers
from billing.providers.stripe.provider import StripeProvider
from billing.stripe_webhooks.stripe_reads import StripeReads


class StripeAccount:
    """Requests to one account; nothing connects before it is used.

    Args:
        key: The secret key, checked.
        base: Another address than Stripe's; empty for Stripe itself.
        ours: Whether a meter of that event name is ours.
    """

    def __init__(self, key: str, base: str, ours: Callable[[str], bool]) -> None:
        client = client_of(key, base)
        self.provider = StripeProvider(client, ours=ours)
        self.customers = StripeCustomers(client)
        self.reads = StripeReads(client)
