"""A running API, a local Stripe that delivers to it, and a look at the books behind both."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import httpx
import sqlalchemy as sa
import stripe
from stripe_api import KEY, Control
from stripe_servers import StripeServer
from support import eventually

from billing.container import Container
from billing.postgres import schema as tables
from billing.providers.stripe.client import client_of

SECRET = "whsec_of_the_tests"
WEBHOOK = "/webhooks/stripe"


def signed(body: bytes, *, secret: str = SECRET, seconds: int = 0) -> dict[str, str]:
    """The headers of a webhook that was signed ``seconds`` from now."""
    at = int(time.time()) + seconds
    made = stripe.WebhookSignature.generate_signature_header(body.decode(), secret, at)
    return {"Stripe-Signature": str(made), "Content-Type": "application/json; charset=utf-8"}


class LocalStripe:
    """What tests do at a local Stripe."""

    def __init__(self, server: StripeServer, http: httpx.Client) -> None:
        self.url = server.url
        self.control = Control(http)
        self.control.post("reset")
        self.person = client_of(KEY, self.url).v1

    def deliver_to(self, url: str, *, payload: str = "snapshot", secret: str = SECRET) -> None:
        """Deliver every event of a kind there from now on."""
        self.control.post("webhooks", url=url + WEBHOOK, payload=payload, secret=secret)

    def customer(self) -> str:
        made: str = self.person.customers.create({"name": "Somebody"}).id
        return made

    def buy(self, customer: str | None, amount: int = 500, **more: Any) -> str:
        """Complete a checkout; returns its id."""
        order = {"customer": customer, "amount_total": amount, **more}
        made: str = self.control.post("checkouts", **order)["id"]
        return made

    def event_of(self, kind: str) -> str:
        """The newest event of a type."""
        found: list[str] = [one["id"] for one in self.control.get("events") if one["type"] == kind]
        return found[-1]

    def body_of(self, event_id: str) -> bytes:
        """The event as it is delivered."""
        [event] = [one for one in self.control.get("events") if one["id"] == event_id]
        if event["object"] == "v2.core.event":
            event.pop("data")
        return json.dumps(event, indent=2).encode()

    def resend(self, event_id: str) -> None:
        self.control.post(f"events/{event_id}/resend")

    def statuses(self, event_id: str) -> list[list[int]]:
        """The answers to each delivery of an event."""
        found: list[dict[str, Any]] = self.control.get("deliveries")
        return [one["statuses"] for one in found if one["event"] == event_id]

    def until_delivered(self, event_id: str, *, deliveries: int = 1, timeout: float = 60) -> None:
        """Wait until so many deliveries of an event are answered with 200."""
        eventually(
            lambda: [200] * deliveries == [each[-1] for each in self.statuses(event_id) if each],
            timeout=timeout,
            message=f"{event_id} is delivered",
        )


@dataclass
class Books:
    """What PostgreSQL has."""

    engine: sa.Engine

    def rows(self, table: sa.Table) -> list[sa.RowMapping]:
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(table)).mappings())

    def events(self) -> dict[str, str]:
        """The result of every event by its id."""
        return {row["event_id"]: row["result"] for row in self.rows(tables.webhook_events)}

    def granted(self, customer: str = "acme") -> int:
        """Whole credits; asserts that the fence says the same."""
        [fence] = [one for one in self.rows(tables.quota_fences) if one["customer_id"] == customer]
        given = [one for one in self.rows(tables.grants) if one["customer_id"] == customer]
        total = sum(one["amount_microcredits"] for one in given)
        assert fence["granted_microcredits"] == total
        return int(total // 1_000_000)

    def add_accepted(
        self, meter: str, number: int, sent_at: datetime, *, confirm_at: datetime
    ) -> None:
        """A report of acme's that Stripe took at ``sent_at``."""
        hour = sent_at.replace(minute=0, second=0, microsecond=0) - timedelta(hours=number)
        values = {
            "customer_id": "acme", "sku_id": "page-capture", "hour": hour, "revision": 1,
            "latest": True, "provider": "stripe", "meter": meter, "overwrites": True,
            "identifier": f"main:r{number}", "customer_ref": "cus_gone", "value": 5,
            "event_at": hour + timedelta(minutes=1), "total_microcredits": 5,
            "held_microcredits": 5, "state": "accepted", "next_at": sent_at,
            "created_at": sent_at, "first_sent_at": sent_at, "answered_at": sent_at,
            "confirm_at": confirm_at,
        }  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(tables.usage_reports.insert().values(values))

    def link(self, customer: str, ref: str) -> None:
        link = tables.customers.update().where(tables.customers.c.id == customer)
        with self.engine.begin() as connection:
            connection.execute(link.values(stripe_customer_id=ref))


@dataclass
class Shop:
    """All of it. ``ref`` is the Stripe customer of acme."""

    url: str
    container: Container
    stripe: LocalStripe
    books: Books
    ref: str

    def post(self, body: bytes, headers: Mapping[str, str], **more: Any) -> httpx.Response:
        return httpx.post(
            self.url + WEBHOOK, content=body, headers=dict(headers), trust_env=False, timeout=30,
            **more,
        )  # fmt: skip

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, trust_env=False, timeout=30)

    def a_top_up(self) -> bytes:
        """The body of an event about a paid checkout; nobody has delivered it."""
        self.stripe.buy(self.ref)
        return self.stripe.body_of(self.stripe.event_of("checkout.session.completed"))
