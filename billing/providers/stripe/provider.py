"""Stripe behind the port: meters, customers, usage, invoices of ours, invoices of its own.

A figure is the absolute total of its hour: Stripe counts the last one it took, so that a resend can
never add. A 2xx only says that the event was taken; what the meter makes of it is read back.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta

import stripe

from billing.providers.stripe.billing_cycles import StripeCycles
from billing.providers.stripe.customers import StripeCustomers
from billing.providers.stripe.invoices import StripeInvoices
from billing.providers.stripe.meters import StripeMeters
from billing.providers.stripe.usage import StripeUsage


class StripeProvider:
    """Stripe through its public API: each method of the port is that of one part.

    Args:
        client: From ``client.client_of``. May be used by several threads.
        new_key: Makes the Idempotency-Key of each attempt to report.
        ours: Whether a meter of that event name is ours; see ``StripeCycles``.
    """

    name = "stripe"
    max_age: timedelta | None = timedelta(days=34, hours=12)
    """Stripe's 35 calendar days, less a margin."""

    def __init__(
        self,
        client: stripe.StripeClient,
        *,
        new_key: Callable[[], str] = lambda: uuid.uuid4().hex,
        ours: Callable[[str], bool] = lambda _: True,
    ) -> None:
        meters = StripeMeters(client)
        usage = StripeUsage(client, meters, new_key)
        invoices = StripeInvoices(client)
        cycles = StripeCycles(client, ours)
        self.ensure_meters = meters.ensure
        self.link_customer = StripeCustomers(client).link
        self.report_usage = usage.report
        self.read_back = usage.read_back
        self.open_invoice = invoices.open
        self.finalise_invoice = invoices.finalise
        self.invoices_since = cycles.since
        self.provider_invoice = cycles.one
