"""Meters: what is counted, how, and under which event name. Immutable but for the display name."""

from __future__ import annotations

from typing import Any, Final, Literal

from billing.devtools.stripe_sandbox import errors
from billing.devtools.stripe_sandbox.clock import MovableClock
from billing.devtools.stripe_sandbox.errors import JsonObject
from billing.devtools.stripe_sandbox.events import Events
from billing.devtools.stripe_sandbox.ids import Ids

WINDOW_SECONDS: Final = {"hour": 3_600, "day": 86_400}
CUSTOMER_KEY: Final = "stripe_customer_id"
VALUE_KEY: Final = "value"


class Meters:
    """The meters of this sandbox. One event name belongs to at most one active meter."""

    def __init__(self, clock: MovableClock, ids: Ids, events: Events) -> None:
        self._clock = clock
        self._ids = ids
        self._events = events
        self._by_id: dict[str, JsonObject] = {}
        self._active: dict[str, str] = {}
        self._named: dict[str, str] = {}

    def create(self, params: dict[str, Any]) -> JsonObject:
        """A new, active meter.

        Raises:
            Refusal: Another active meter has that event name.
        """
        self._must_be_free(params["event_name"])
        instant = int(self._clock.seconds())
        meter: JsonObject = {
            "id": self._ids.new("mtr_test"),
            "object": "billing.meter",
            "created": instant,
            "customer_mapping": params.get(
                "customer_mapping", {"event_payload_key": CUSTOMER_KEY, "type": "by_id"}
            ),
            "default_aggregation": params["default_aggregation"],
            "display_name": params["display_name"],
            "event_name": params["event_name"],
            "event_time_window": params.get("event_time_window"),
            "livemode": False,
            "status": "active",
            "status_transitions": {"deactivated_at": None},
            "updated": instant,
            "value_settings": params.get("value_settings", {"event_payload_key": VALUE_KEY}),
        }
        self._by_id[meter["id"]] = meter
        self._active[meter["event_name"]] = self._named[meter["event_name"]] = meter["id"]
        self._events.snapshot("billing.meter.created", meter)
        return meter

    def retrieve(self, meter_id: str) -> JsonObject:
        """The meter with this id.

        Raises:
            Refusal: There is none.
        """
        if meter_id not in self._by_id:
            raise errors.no_such("billing meter", meter_id)
        return self._by_id[meter_id]

    def update(self, meter_id: str, params: dict[str, Any]) -> JsonObject:
        """Change the display name, the one thing that can change."""
        meter = self.retrieve(meter_id)
        meter.update(params, updated=int(self._clock.seconds()))
        self._events.snapshot("billing.meter.updated", meter)
        return meter

    def turn(self, meter_id: str, status: Literal["active", "inactive"]) -> JsonObject:
        """Deactivate or reactivate.

        Raises:
            Refusal: It is that already, or its event name belongs to another active meter.
        """
        meter = self.retrieve(meter_id)
        if meter["status"] == status:
            raise errors.failed(f"The meter {meter_id} is already {status}.")
        instant = int(self._clock.seconds())
        if status == "active":
            self._must_be_free(meter["event_name"])
            self._active[meter["event_name"]] = self._named[meter["event_name"]] = meter_id
        else:
            del self._active[meter["event_name"]]
        meter["status"] = status
        meter["updated"] = instant
        meter["status_transitions"] = {"deactivated_at": instant if status == "inactive" else None}
        verb = "reactivated" if status == "active" else "deactivated"
        self._events.snapshot(f"billing.meter.{verb}", meter)
        return meter

    def newest(self, status: str | None) -> list[JsonObject]:
        """The meters with this status, or all, newest first."""
        meters = reversed(self._by_id.values())
        return [meter for meter in meters if status in {None, meter["status"]}]

    def listening_to(self, event_name: str) -> JsonObject | None:
        """The active meter with this event name, else the last one that had it, else None."""
        meter_id = self._active.get(event_name) or self._named.get(event_name)
        return self._by_id[meter_id] if meter_id else None

    def _must_be_free(self, event_name: str) -> None:
        holder = self._active.get(event_name)
        if holder is not None:
            raise errors.failed(
                f"An active meter ({holder}) already exists with event name {event_name}.",
                param="event_name",
            )
