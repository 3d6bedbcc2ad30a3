"""Events on a real PostgreSQL, a provider whose invoices are to order, and a look at the books."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import sqlalchemy as sa
from support import NOW, add_customer, add_sku

from billing.core.clock import ManualClock
from billing.core.errors import NotFound
from billing.postgres import schema as tables
from billing.providers.port import (
    MeteredLine,
    Provider,
    ProviderCause,
    ProviderInvoice,
    ProviderUnavailable,
)
from billing.reporting.confirmations import ConfirmationStore
from billing.reporting.destination import CustomerIds
from billing.stripe_webhooks.handlers import EventHandlers, StripeAccess
from billing.stripe_webhooks.processor import Received, WebhookProcessor
from billing.stripe_webhooks.topups import TopupTerms

METER = "weighbridge_main_page-capture"
START = NOW.replace(day=1, hour=0, minute=0) - timedelta(days=31)
END = NOW.replace(day=1, hour=0, minute=0)


def an_invoice(status: str = "draft", ref: str = "in_1", **changes: Any) -> ProviderInvoice:
    """An invoice of acme's for one metered line."""
    final = status not in {"draft", "deleted"}
    invoice = ProviderInvoice(
        provider_id=ref,
        customer_ref="cus_acme",
        status=status,
        currency="USD",
        total_minor=500,
        period_start=START,
        period_end=END,
        finalised_at=END + timedelta(hours=1) if final else None,
        payment_failed=False,
        lines=(MeteredLine(meter=METER, period_start=START, period_end=END, value=7),),
    )
    return replace(invoice, **changes)


class Unanswered(ProviderUnavailable):
    """Stripe says why it does not answer."""

    def __init__(self, cause: ProviderCause | None = None) -> None:
        self.cause = cause
        super().__init__(f"to order: {cause}")


class InvoiceBook:
    """The invoices of a provider; every read of it is what the book says then."""

    name = "stripe"

    def __init__(self) -> None:
        self.book: dict[str, ProviderInvoice] = {}
        self.failing: Exception | None = None
        self.asked = 0

    def has(self, *invoices: ProviderInvoice) -> None:
        for one in invoices:
            self.book[one.provider_id] = one

    def provider_invoice(self, provider_id: str) -> ProviderInvoice:
        self.asked += 1
        if self.failing is not None:
            raise self.failing
        if provider_id not in self.book:
            raise NotFound("invoice", provider_id, "")
        return self.book[provider_id]

    def invoices_since(self, created: datetime) -> Sequence[ProviderInvoice]:
        del created
        if self.failing is not None:
            raise self.failing
        return list(self.book.values())

    def as_provider(self) -> Provider:
        return cast("Provider", self)


class Told:
    """Notices of one installation with two customers, of whom Stripe knows acme."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.clock = ManualClock(NOW)
        self.invoices = InvoiceBook()
        for customer in ("acme", "globex"):
            add_customer(engine, customer, credits=0)
        add_sku(engine, "page-capture")
        self.link("acme", "cus_acme")
        self.sessions: dict[str, dict[str, Any]] = {}
        self.notices = self.new_notices()

    def new_notices(self, *, live: bool = False) -> WebhookProcessor:
        def stripe() -> StripeAccess:
            access = SimpleNamespace(provider=self.invoices.as_provider(), reads=_Reads(self))
            return cast("StripeAccess", access)

        return WebhookProcessor(
            self.engine,
            EventHandlers(
                stripe=stripe,
                confirmations=ConfirmationStore(self.engine),
                terms=TopupTerms(currency="USD", credit_value="0.01"),
            ),
            live=live,
            customer_ids={"stripe": CustomerIds.STRIPE, "ledger": CustomerIds.OURS},
            clock=self.clock,
        )

    def link(self, customer: str, ref: str | None) -> None:
        update = tables.customers.update().where(tables.customers.c.id == customer)
        with self.engine.begin() as connection:
            connection.execute(update.values(stripe_customer_id=ref))

    def tell(self, event: Mapping[str, Any]) -> Received:
        return self.notices.receive(json.dumps(event).encode())

    def about(self, kind: str, thing: str, event_id: str = "evt_1", **changes: Any) -> Received:
        return self.tell(an_event(kind, thing, event_id, **changes))

    def rows(self, table: sa.Table) -> list[sa.RowMapping]:
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(table)).mappings())

    def events(self) -> dict[str, tuple[str, str]]:
        """Result and detail of every event by its id."""
        rows = self.rows(tables.webhook_events)
        return {row["event_id"]: (row["result"], row["detail"]) for row in rows}

    def granted(self, customer: str = "acme") -> int:
        """What the customer was given, after checking that the fence says the same."""
        grants = sum(
            row["amount_microcredits"]
            for row in self.rows(tables.grants)
            if row["customer_id"] == customer
        )
        [fence] = [row for row in self.rows(tables.quota_fences) if row["customer_id"] == customer]
        assert fence["granted_microcredits"] == grants
        return int(grants)

    def add_report(self, state: str, number: int, **changes: Any) -> None:
        """A report in some state, of an hour of its own."""
        hour = NOW.replace(minute=0) - timedelta(hours=number)
        values: dict[str, Any] = {
            "customer_id": "acme", "sku_id": "page-capture", "hour": hour, "revision": 1,
            "latest": True, "provider": "stripe", "meter": METER, "overwrites": True,
            "identifier": f"main:r{number}", "customer_ref": "cus_acme", "value": 5,
            "event_at": hour + timedelta(minutes=1), "total_microcredits": 5,
            "held_microcredits": 5, "state": state, "next_at": NOW, "created_at": NOW,
            "claim": None if state != "sending" else "00000000-0000-7000-8000-000000000000",
            "cause": "by_hand" if state == "parked" else "",
            "first_sent_at": NOW - timedelta(minutes=2), "answered_at": NOW - timedelta(minutes=2),
            "confirm_at": NOW + timedelta(hours=1) if state == "accepted" else None,
        }  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(tables.usage_reports.insert().values({**values, **changes}))


class _Reads:
    """Stripe's answers, to order."""

    def __init__(self, told: Told) -> None:
        self._told = told

    def checkout(self, session_id: str) -> Mapping[str, Any]:
        if session_id not in self._told.sessions:
            raise NotFound("checkout session", session_id, "")
        return self._told.sessions[session_id]


def an_event(kind: str, thing: str, event_id: str = "evt_1", **changes: Any) -> dict[str, Any]:
    """A snapshot event. What its object says beside the id must not matter."""
    return {
        "id": event_id,
        "object": "event",
        "type": kind,
        "created": int(NOW.timestamp()),
        "livemode": False,
        "data": {"object": {"id": thing, "status": "a lie", "payment_status": "a lie"}},
        **changes,
    }
