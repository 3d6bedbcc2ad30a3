"""Stripe behind the port: meters, customers, usage, invoices of ours, invoices of its own.

A figure is the absolute total of its hour: Stripe counts the last one it took, so that a resend can
never add. A 2xx only says that the event was taken; what the meter makes of it is read back.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta

import stripe

from billing.providers.port import (
    Invoice,
    InvoiceLine,
    MeterCheck,
    ProviderAnswer,
    ProviderInvoice,
    ProviderMeter,
    UsageReport,
)
from billing.providers.stripe.billing_cycles import StripeCycles
from billing.providers.stripe.customers import StripeCustomers
from billing.providers.stripe.invoices import StripeInvoices
from billing.providers.stripe.meters import StripeMeters
from billing.providers.stripe.usage import StripeUsage


class StripeProvider:
    """Stripe through its public API.

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
        self._meters = StripeMeters(client)
        self._customers = StripeCustomers(client)
        self._usage = StripeUsage(client, self._meters, new_key)
        self._invoices = StripeInvoices(client)
        self._cycles = StripeCycles(client, ours)

    def ensure_meters(
        self, meters: Sequence[ProviderMeter], *, dry_run: bool = False
    ) -> list[MeterCheck]:
        """Create what is missing and compare what is there; see ``StripeMeters.ensure``."""
        return self._meters.ensure(meters, dry_run=dry_run)

    def link_customer(self, customer: str, name: str, *, dry_run: bool = False) -> str:
        """The id of a customer of ours; see ``StripeCustomers.link``."""
        return self._customers.link(customer, name, dry_run=dry_run)

    def report_usage(self, report: UsageReport) -> ProviderAnswer:
        """Send one figure; see ``StripeUsage.report``."""
        return self._usage.report(report)

    def read_back(self, customer_ref: str, meter: str, day: date) -> Mapping[datetime, int]:
        """The figures of a UTC day; see ``StripeUsage.read_back``."""
        return self._usage.read_back(customer_ref, meter, day)

    def open_invoice(
        self, key: str, customer_ref: str, currency: str, lines: Sequence[InvoiceLine]
    ) -> Invoice:
        """Open a draft with exactly these lines; see ``StripeInvoices.open``."""
        return self._invoices.open(key, customer_ref, currency, lines)

    def finalise_invoice(self, provider_id: str) -> Invoice:
        """Make a draft final; see ``StripeInvoices.finalise``."""
        return self._invoices.finalise(provider_id)

    def invoices_since(self, created: datetime) -> Sequence[ProviderInvoice]:
        """Invoices of subscriptions, newest first; see ``StripeCycles.since``."""
        return self._cycles.since(created)

    def provider_invoice(self, provider_id: str) -> ProviderInvoice:
        """One invoice of a subscription as it stands now; see ``StripeCycles.one``."""
        return self._cycles.one(provider_id)
