"""Customers: made, changed, deleted, listed, and searched by metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from billing.devtools.stripe_sandbox import errors
from billing.devtools.stripe_sandbox.clock import MovableClock
from billing.devtools.stripe_sandbox.errors import JsonObject
from billing.devtools.stripe_sandbox.events import Events
from billing.devtools.stripe_sandbox.ids import Ids

_CLAUSE: Final = re.compile(
    r"""\s*(?:(?P<field>email|name)|metadata\[(?P<q>["'])(?P<key>[^"']+)(?P=q)\])"""
    r"""\s*:\s*(?P<p>["'])(?P<value>[^"']*)(?P=p)\s*\Z"""
)


class Customers:
    """The customers of this sandbox. A deleted one is remembered as deleted.

    ``search_seconds`` is how long a new customer is not found by search, which Stripe calls
    eventually consistent.
    """

    def __init__(self, clock: MovableClock, ids: Ids, events: Events) -> None:
        self._clock = clock
        self._ids = ids
        self._events = events
        self._by_id: dict[str, JsonObject] = {}
        self._deleted: set[str] = set()
        self.search_seconds = 0.0

    def create(self, params: dict[str, Any]) -> JsonObject:
        """A new customer."""
        customer: JsonObject = {
            "id": self._ids.new("cus"),
            "object": "customer",
            "address": None,
            "balance": 0,
            "created": int(self._clock.seconds()),
            "currency": None,
            "default_source": None,
            "delinquent": False,
            "description": params.get("description"),
            "email": params.get("email"),
            "invoice_settings": {
                "custom_fields": None,
                "default_payment_method": None,
                "footer": None,
                "rendering_options": None,
            },
            "livemode": False,
            "metadata": _merged({}, params.get("metadata")),
            "name": params.get("name"),
            "next_invoice_sequence": 1,
            "phone": params.get("phone"),
            "preferred_locales": [],
            "shipping": None,
            "tax_exempt": "none",
            "test_clock": None,
        }
        self._by_id[customer["id"]] = customer
        self._events.snapshot("customer.created", customer)
        return customer

    def retrieve(self, customer_id: str) -> JsonObject:
        """The customer, or the stub that is left of a deleted one.

        Raises:
            Refusal: There never was one.
        """
        if customer_id in self._deleted:
            return {"id": customer_id, "object": "customer", "deleted": True}
        return self._living(customer_id)

    def update(self, customer_id: str, params: dict[str, Any]) -> JsonObject:
        """Change it; metadata is merged, an empty value removes its key."""
        customer = self._living(customer_id)
        changes = dict(params)
        if "metadata" in changes:
            changes["metadata"] = _merged(customer["metadata"], changes["metadata"])
        previous = {name: customer[name] for name in changes}
        customer.update(changes)
        self._events.snapshot("customer.updated", customer, previous=previous)
        return customer

    def delete(self, customer_id: str) -> JsonObject:
        """Delete it for good."""
        customer = self._living(customer_id)
        del self._by_id[customer_id]
        self._deleted.add(customer_id)
        self._events.snapshot("customer.deleted", customer)
        return self.retrieve(customer_id)

    def lives(self, customer_id: str) -> bool:
        """Whether there is such a customer and it is not deleted."""
        return customer_id in self._by_id

    def given(self, customer_id: str) -> JsonObject:
        """The customer a parameter names.

        Raises:
            Refusal: There is none, or it is deleted.
        """
        if customer_id not in self._by_id:
            raise errors.no_such("customer", customer_id, param="customer", in_path=False)
        return self._by_id[customer_id]

    def newest(self, email: str | None = None) -> list[JsonObject]:
        """The living customers, newest first."""
        customers = reversed(self._by_id.values())
        return [customer for customer in customers if email in {None, customer["email"]}]

    def search(self, query: str) -> list[JsonObject]:
        """Those that fit ``metadata['k']:'v'``, ``email:'…'`` and ``name:'…'``, joined by AND.

        Raises:
            Refusal: The query is none of these.
        """
        clauses = [_CLAUSE.match(part) for part in re.split(r"\s+AND\s+", query)]
        seen_by = self._clock.seconds() - self.search_seconds
        found = [one for one in self.newest() if one["created"] <= seen_by]
        for clause in clauses:
            if clause is None:
                raise errors.parameter(
                    f"We were unable to parse your search query: {query}", "query"
                )
            found = [one for one in found if _fits(one, clause)]
        return found

    def _living(self, customer_id: str) -> JsonObject:
        if customer_id not in self._by_id:
            raise errors.no_such("customer", customer_id)
        return self._by_id[customer_id]


def _fits(customer: JsonObject, clause: re.Match[str]) -> bool:
    if clause["key"]:
        return bool(customer["metadata"].get(clause["key"]) == clause["value"])
    return bool(customer[clause["field"]] == clause["value"])


def _merged(old: Mapping[str, str], new: Mapping[str, str] | None) -> dict[str, str]:
    if not new:
        # Nothing given leaves it alone; an empty map is what unsets every key.
        return {} if new is not None else dict(old)
    return {key: value for key, value in {**old, **new}.items() if value != ""}
