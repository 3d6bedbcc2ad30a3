"""A running local Stripe, its control API, and adapters to it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import httpx
import stripe
from stripe_api import KEY, Control
from support import NOW

from billing.devtools.stripe_sandbox import SandboxServer
from billing.providers.port import InvoiceLine, ProviderMeter, ProviderUnavailable, UsageReport
from billing.providers.stripe.client import client_of
from billing.providers.stripe.provider import StripeProvider

HOUR = NOW.replace(minute=0) - timedelta(hours=3)
METER = ProviderMeter(sku="page-capture", name="test.page-capture", display_name="Pages captured")
EVENTS = "/v1/billing/meter_events"
METERS = "/v1/billing/meters"
CUSTOMERS = "/v1/customers"
INVOICES = "/v1/invoices"
ITEMS = "/v1/invoiceitems"
FINALISE = "/v1/invoices/*/finalize"
TRIES = 4
Result = TypeVar("Result")


class LocalStripe:
    """What tests do to a local Stripe."""

    def __init__(self, server: SandboxServer, http: httpx.Client) -> None:
        self.url = server.url
        self.control = Control(http)
        self.control.post("reset")
        # A client beside the adapter's, as a person at the dashboard.
        self.person = client_of(KEY, self.url).v1

    def adapter(self, *, read_seconds: float = 10.0) -> StripeProvider:
        return StripeProvider(client_of(KEY, self.url, timeout=(3.0, read_seconds)))

    def requests(self, path: str = "") -> list[dict[str, Any]]:
        """What came, to one path or to any."""
        seen: list[dict[str, Any]] = self.control.get("requests")
        return [one for one in seen if path in {"", one["path"]}]

    def count(self, of: str) -> int:
        found = self.control.get("state")[of]
        return sum(found.values()) if isinstance(found, dict) else int(found)


def report(customer_ref: str, number: int = 1, value: int = 1_500_000) -> UsageReport:
    return UsageReport(
        identifier=f"test:r{number}",
        customer_ref=customer_ref,
        meter=METER.name,
        hour=HOUR,
        value=value,
        timestamp=HOUR + timedelta(minutes=30),
    )


def line(number: int, amount: int = 100) -> InvoiceLine:
    return InvoiceLine(
        key=f"sku-{number}",
        description=f"SKU {number}",
        amount_minor=amount,
        period_start=HOUR - timedelta(days=30),
        period_end=HOUR,
    )


def until_answered(ask: Callable[[], Result]) -> tuple[Result, int]:
    """Ask until there is an answer, and how often there was none."""
    for failed in range(TRIES):
        try:
            return ask(), failed
        except ProviderUnavailable:
            continue
    raise AssertionError(f"no answer in {TRIES} tries")


def delete(local: LocalStripe, customer_ref: str) -> None:
    deleted: stripe.Customer = local.person.customers.delete(customer_ref)
    assert deleted.deleted
