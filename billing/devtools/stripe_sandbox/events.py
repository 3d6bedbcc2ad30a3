"""Events: what happened, as snapshots (v1) and thin notifications (v2), and where they are sent."""

from __future__ import annotations

import copy
import fnmatch
import hashlib
import hmac
import json
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

from billing.devtools.stripe_sandbox import errors
from billing.devtools.stripe_sandbox.clock import MovableClock
from billing.devtools.stripe_sandbox.errors import JsonObject
from billing.devtools.stripe_sandbox.ids import Ids

API_VERSION: Final = "2026-05-27.dahlia"
"""The version of Stripe's description that the sandbox is written against."""


def rfc3339(seconds: float) -> str:
    """The instant as v2 writes it."""
    instant = datetime.fromtimestamp(seconds, UTC)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def sign(body: str, secret: str, at: int) -> str:
    """The ``Stripe-Signature`` header: HMAC-SHA256 over ``t.body``, scheme v1."""
    mac = hmac.new(secret.encode(), f"{at}.{body}".encode(), hashlib.sha256).hexdigest()
    return f"t={at},v1={mac}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where events are delivered. ``payload`` is which kind it takes, ``types`` are patterns."""

    id: str
    url: str
    secret: str
    types: Sequence[str]
    payload: Literal["snapshot", "thin"]

    def takes(self, event: JsonObject) -> bool:
        """Whether this event goes there."""
        thin = event["object"] == "v2.core.event"
        kind: str = event["type"]
        return thin == (self.payload == "thin") and any(
            fnmatch.fnmatchcase(kind, pattern) for pattern in self.types
        )


@dataclass(slots=True, kw_only=True)
class WebhookDelivery:
    """One event on its way to one endpoint; ``statuses`` are the answers, 0 where none came."""

    event: str
    type: str
    endpoint: Endpoint
    body: str
    statuses: list[int] = field(default_factory=list)

    @property
    def delivered(self) -> bool:
        """Whether the last answer was a 2xx."""
        return bool(self.statuses) and self.statuses[-1] // 100 == 2  # noqa: PLR2004 - 2xx


class Events:
    """Every event of this sandbox, and the deliveries that are due.

    ``secret`` signs for endpoints that are registered without one; if empty, each gets its own.
    """

    def __init__(self, clock: MovableClock, ids: Ids) -> None:
        self._clock = clock
        self._ids = ids
        self._snapshots: dict[str, JsonObject] = {}
        self._thin: dict[str, JsonObject] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.deliveries: list[WebhookDelivery] = []
        self.due: deque[WebhookDelivery] = deque()
        self.secret = ""

    def register(
        self,
        url: str,
        *,
        types: Sequence[str] = ("*",),
        payload: Literal["snapshot", "thin"] = "snapshot",
        secret: str | None = None,
    ) -> Endpoint:
        """Deliver events of these types to ``url``, signed with ``secret`` (or the default one)."""
        endpoint = Endpoint(
            id=self._ids.new("we"),
            url=url,
            secret=secret or self.secret or f"whsec_{secrets.token_hex(16)}",
            types=tuple(types),
            payload=payload,
        )
        self.endpoints[endpoint.id] = endpoint
        return endpoint

    def snapshot(
        self, kind: str, subject: JsonObject, *, previous: JsonObject | None = None
    ) -> str:
        """Something happened to ``subject``, which is copied as it is at this instant."""
        data: JsonObject = {"object": copy.deepcopy(subject)}
        if previous is not None:
            data["previous_attributes"] = previous
        event: JsonObject = {
            "id": self._ids.new("evt"),
            "object": "event",
            "api_version": API_VERSION,
            "created": int(self._clock.seconds()),
            "data": data,
            "livemode": False,
            "pending_webhooks": 0,
            "request": {"id": None, "idempotency_key": None},
            "type": kind,
        }
        self._snapshots[event["id"]] = event
        event["pending_webhooks"] = self._deliver(event, event)
        return str(event["id"])

    def thin(self, kind: str, data: JsonObject, *, related: Mapping[str, str] | None = None) -> str:
        """A v2 event: what is sent has no ``data``, what is fetched has."""
        event: JsonObject = {
            "id": self._ids.new("evt_test"),
            "object": "v2.core.event",
            "created": rfc3339(self._clock.seconds()),
            "livemode": False,
            "type": kind,
        }
        if related is not None:
            event["related_object"] = dict(related)
        self._thin[event["id"]] = {**event, "data": data}
        self._deliver(event, event)
        return str(event["id"])

    def again(self, event_id: str) -> int:
        """Deliver an event once more; returns to how many endpoints.

        Raises:
            Refusal: There is no such event.
        """
        if event_id in self._snapshots:
            event = self._snapshots[event_id]
            return self._deliver(event, event)
        fetched = self.fetch(event_id)
        return self._deliver(fetched, {k: v for k, v in fetched.items() if k != "data"})

    def retrieve(self, event_id: str) -> JsonObject:
        """A snapshot event, as ``GET /v1/events/{id}``."""
        if event_id not in self._snapshots:
            raise errors.no_such("event", event_id)
        return self._snapshots[event_id]

    def fetch(self, event_id: str) -> JsonObject:
        """A thin event with its data, as ``GET /v2/core/events/{id}``."""
        if event_id not in self._thin:
            raise errors.Refusal(
                status=404, message=f"No such event: {event_id}.", code="not_found", stored=True
            )
        return self._thin[event_id]

    def all(self) -> list[JsonObject]:
        """Every event, snapshots first, oldest first."""
        return [*self._snapshots.values(), *self._thin.values()]

    def newest(self) -> list[JsonObject]:
        """The snapshot events, newest first."""
        return list(reversed(self._snapshots.values()))

    def _deliver(self, event: JsonObject, payload: JsonObject) -> int:
        body = json.dumps(payload, indent=2)
        takers = [endpoint for endpoint in self.endpoints.values() if endpoint.takes(event)]
        for endpoint in takers:
            delivery = WebhookDelivery(
                event=event["id"], type=event["type"], endpoint=endpoint, body=body
            )
            self.deliveries.append(delivery)
            self.due.append(delivery)
        return len(takers)
