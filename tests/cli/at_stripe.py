"""A local Stripe as the ``billing`` command meets it, with a person at its dashboard beside it."""

from __future__ import annotations

from typing import Any

import httpx
from commandline import Billing
from stripe_api import KEY, Control
from stripe_servers import StripeServer

from billing.providers.stripe.client import client_of
from billing.providers.stripe.customer_link import CUSTOMER_METADATA
from billing.providers.stripe.provider import StripeProvider


class AtStripe:
    """What tests do at a local Stripe."""

    def __init__(self, server: StripeServer, http: httpx.Client) -> None:
        self.url = server.url
        self.control = Control(http)
        self.control.post("reset")
        client = client_of(KEY, self.url)
        self.person = client.v1
        self.provider = StripeProvider(client)

    def used_by(self, billing: Billing, **more: str | None) -> None:
        """The command talks to this one from now on."""
        billing.environment |= {"STRIPE_API_KEY": KEY, "STRIPE_API_BASE": self.url, **more}

    def customer(self, ours: str = "") -> str:
        """A customer that somebody made, by its metadata one of ours or nobody's."""
        metadata = {CUSTOMER_METADATA: ours} if ours else {}
        made: str = self.person.customers.create({"name": "By hand", "metadata": metadata}).id
        return made

    def delete(self, customer: str) -> None:
        """Delete a customer there."""
        assert self.person.customers.delete(customer).deleted

    def meter(self, name: str, **params: Any) -> str:
        """A meter that somebody made; hourly unless said otherwise."""
        given: Any = {
            "display_name": name,
            "event_name": name,
            "default_aggregation": {"formula": "sum"},
            "event_time_window": "hour",
            "value_settings": {"event_payload_key": "value"},
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            **params,
        }
        made: str = self.person.billing.meters.create(
            {name: value for name, value in given.items() if value is not None}
        ).id
        return made

    def count(self, of: str) -> int:
        """How many of something there are."""
        found = self.control.get("state")[of]
        return sum(found.values()) if isinstance(found, dict) else int(found)

    def changes(self) -> list[str]:
        """Every request that could have changed something."""
        seen: list[dict[str, Any]] = self.control.get("requests")
        return [f"{one['method']} {one['path']}" for one in seen if one["method"] != "GET"]
