"""Credit grants and completed checkouts: money a customer has given in advance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from billing.devtools.stripe_sandbox import errors
from billing.devtools.stripe_sandbox.clock import MovableClock
from billing.devtools.stripe_sandbox.customers import Customers
from billing.devtools.stripe_sandbox.errors import JsonObject
from billing.devtools.stripe_sandbox.events import Events
from billing.devtools.stripe_sandbox.ids import Ids

A_DAY = 86_400


class CreditGrants:
    """The credit grants of this sandbox; they are kept, never burnt down here."""

    def __init__(self, clock: MovableClock, ids: Ids, events: Events, customers: Customers) -> None:
        self._clock = clock
        self._ids = ids
        self._events = events
        self._customers = customers
        self._by_id: dict[str, JsonObject] = {}

    def create(self, params: dict[str, Any]) -> JsonObject:
        """A new grant.

        Raises:
            Refusal: No such customer, or it expires before it is effective.
        """
        customer = self._customers.given(params["customer"])
        instant = int(self._clock.seconds())
        effective = params.get("effective_at", instant)
        expires = params.get("expires_at")
        if expires is not None and expires <= effective:
            raise errors.failed("expires_at must be after effective_at.", param="expires_at")
        grant: JsonObject = {
            "id": self._ids.new("credgr_test"),
            "object": "billing.credit_grant",
            "amount": params["amount"],
            "applicability_config": params["applicability_config"],
            "category": params.get("category", "paid"),
            "created": instant,
            "customer": customer["id"],
            "customer_account": None,
            "effective_at": effective,
            "expires_at": expires,
            "livemode": False,
            "metadata": params.get("metadata", {}),
            "name": params.get("name"),
            "priority": params.get("priority", 50),
            "test_clock": None,
            "updated": instant,
            "voided_at": None,
        }
        self._by_id[grant["id"]] = grant
        self._events.snapshot("billing.credit_grant.created", grant)
        return grant

    def retrieve(self, grant_id: str) -> JsonObject:
        """The grant.

        Raises:
            Refusal: There is none.
        """
        if grant_id not in self._by_id:
            raise errors.no_such("credit grant", grant_id)
        return self._by_id[grant_id]

    def newest(self, customer: str | None) -> list[JsonObject]:
        """The grants of a customer, or all, newest first."""
        grants = reversed(self._by_id.values())
        return [grant for grant in grants if customer in {None, grant["customer"]}]


class Checkouts:
    """Completed checkout sessions. There is no API to make one: they are a source of events."""

    def __init__(self, clock: MovableClock, ids: Ids, events: Events, customers: Customers) -> None:
        self._clock = clock
        self._ids = ids
        self._events = events
        self._customers = customers
        self._by_id: dict[str, JsonObject] = {}

    def complete(
        self,
        *,
        customer: str | None,
        amount_total: int,
        currency: str,
        metadata: Mapping[str, str],
        client_reference_id: str | None,
        payment_status: str = "paid",
    ) -> JsonObject:
        """Somebody has checked out: the session, and ``checkout.session.completed``.

        Args:
            customer: Who; None for a guest.
            amount_total: In minor units of ``currency``.
            currency: In lower case.
            metadata: What the page that made the session put there.
            client_reference_id: The same.
            payment_status: ``unpaid`` where the payment takes days and is still under way.
        """
        if customer is not None:
            self._customers.given(customer)
        instant = int(self._clock.seconds())
        session: JsonObject = {
            "id": self._ids.new("cs_test"),
            "object": "checkout.session",
            "amount_subtotal": amount_total,
            "amount_total": amount_total,
            "automatic_tax": {
                "enabled": False,
                "liability": None,
                "provider": None,
                "status": None,
            },
            "client_reference_id": client_reference_id,
            "created": instant,
            "currency": currency,
            "custom_fields": [],
            "custom_text": {
                "after_submit": None,
                "shipping_address": None,
                "submit": None,
                "terms_of_service_acceptance": None,
            },
            "customer": customer,
            "expires_at": instant + A_DAY,
            "livemode": False,
            "metadata": dict(metadata),
            "mode": "payment",
            "payment_method_types": ["card"],
            "payment_status": payment_status,
            "shipping_options": [],
            "status": "complete",
            "url": None,
        }
        self._by_id[session["id"]] = session
        self._events.snapshot("checkout.session.completed", session)
        return session

    def end_payment(self, session_id: str, *, succeeded: bool) -> JsonObject:
        """The payment of a session that was unpaid has come, or has failed.

        Raises:
            Refusal: There is no such session, or it is paid.
        """
        session = self.retrieve(session_id)
        if session["payment_status"] == "paid":
            raise errors.failed(f"The checkout session {session_id} is paid already.")
        if succeeded:
            session["payment_status"] = "paid"
        outcome = "succeeded" if succeeded else "failed"
        self._events.snapshot(f"checkout.session.async_payment_{outcome}", session)
        return session

    def retrieve(self, session_id: str) -> JsonObject:
        """The session.

        Raises:
            Refusal: There is none.
        """
        if session_id not in self._by_id:
            raise errors.no_such("checkout.session", session_id)
        return self._by_id[session_id]
