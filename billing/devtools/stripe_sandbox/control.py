"""The sandbox's own API under ``/_sandbox``: faults, time, state, webhooks, outside events."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from billing.devtools.stripe_sandbox.cycles import Cycle
from billing.devtools.stripe_sandbox.errors import JsonObject, Refusal
from billing.devtools.stripe_sandbox.events import Endpoint, WebhookDelivery, rfc3339
from billing.devtools.stripe_sandbox.faults import Fault, FaultKind
from billing.devtools.stripe_sandbox.gateway import Gateway
from billing.devtools.stripe_sandbox.prices import PRODUCT
from billing.devtools.stripe_sandbox.sandbox import Sandbox

MAX_GRACE_SECONDS: Final = 72 * 3_600
"""The longest grace that an account at Stripe can set."""


class _Order(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FaultOrder(_Order):
    """A fault to order; see ``Fault`` for what each field means."""

    kind: FaultKind
    method: str = "*"
    path: str = "*"
    times: int = Field(default=1, ge=1)
    skip: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0, le=600)
    reason: str = "endpoint-rate"
    effect: bool | None = None


class ClockOrder(_Order):
    """Move the clock: by so many seconds, or to an offset from the machine's."""

    advance_seconds: float | None = None
    offset_seconds: float | None = None


class SettingsOrder(_Order):
    """How late the sandbox is, in seconds of its clock."""

    summary_seconds: float | None = Field(default=None, ge=0)
    judgement_seconds: float | None = Field(default=None, ge=0)
    search_seconds: float | None = Field(default=None, ge=0)
    identifier_seconds: float | None = Field(default=None, ge=0)


class WebhookOrder(_Order):
    """Where to deliver events."""

    url: str
    types: list[str] = ["*"]
    payload: Literal["snapshot", "thin"] = "snapshot"
    secret: str | None = None


class CheckoutOrder(_Order):
    """A checkout that somebody has completed; ``unpaid``: the payment is still under way."""

    customer: str | None
    amount_total: int
    currency: str = "usd"
    metadata: dict[str, str] = {}
    client_reference_id: str | None = None
    payment_status: Literal["paid", "unpaid"] = "paid"


class PaymentOrder(_Order):
    """What became of the payment of a checkout that was unpaid."""

    succeeded: bool = True


class CycleOrder(_Order):
    """A billing cycle to end; see ``Cycle`` for what each field means."""

    customer: str
    period_start: int = Field(ge=0)
    period_end: int = Field(ge=0)
    meters: list[str] | None = None
    unit_amount_decimal: str = Field(default="0.0001", pattern=r"^\d+(\.\d{1,12})?$")
    grace_seconds: int = Field(default=3_600, ge=0, le=MAX_GRACE_SECONDS)
    currency: str = Field(default="usd", pattern="^[a-z]{3}$")


class PriceOrder(_Order):
    """A one-time price that invoice items may name."""

    unit_amount_decimal: str = Field(pattern=r"^-?\d+(\.\d{1,12})?$")
    currency: str = "usd"
    product: str = PRODUCT


class Control:
    """What the control API acts on; ``reset`` puts an empty sandbox in its place."""

    def __init__(self, fresh: Callable[[], Sandbox]) -> None:
        self._fresh = fresh
        self.gateway = Gateway(fresh())
        self.overlaps: Counter[str] = Counter()

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox that is in place."""
        return self.gateway.sandbox

    def reset(self) -> None:
        """Forget everything: objects, events, faults, endpoints, the clock's offset."""
        self.gateway = Gateway(self._fresh())
        self.overlaps.clear()

    def clock(self) -> JsonObject:
        """The sandbox's time."""
        clock = self.sandbox.clock
        return {
            "now": rfc3339(clock.seconds()),
            "now_unix": int(clock.seconds()),
            "offset_seconds": clock.offset.total_seconds(),
        }

    def move(self, order: ClockOrder) -> JsonObject:
        """Move the clock, and do what has become due."""
        clock = self.sandbox.clock
        if order.offset_seconds is not None:
            clock.offset = timedelta(seconds=order.offset_seconds)
        clock.advance(timedelta(seconds=order.advance_seconds or 0))
        self.sandbox.advance()
        return self.clock()

    def settings(self, order: SettingsOrder) -> JsonObject:
        """Set how late the sandbox is; what is not named stays."""
        usage, customers = self.sandbox.usage, self.sandbox.customers
        for name, value in order.model_dump(exclude_none=True).items():
            setattr(customers if name == "search_seconds" else usage, name, value)
        return {
            "summary_seconds": usage.summary_seconds,
            "judgement_seconds": usage.judgement_seconds,
            "search_seconds": customers.search_seconds,
            "identifier_seconds": usage.identifier_seconds,
        }

    def end_cycle(self, order: CycleOrder) -> JsonObject:
        """End a billing cycle, with everything that has become due until now."""
        self.sandbox.advance()
        invoice = self.sandbox.cycles.end(Cycle(**order.model_dump()))
        self.sandbox.advance()
        return invoice

    def state(self) -> JsonObject:
        """Counts of everything."""
        box = self.sandbox
        return {
            "clock": self.clock(),
            "customers": len(box.customers.newest()),
            "meters": len(box.meters.newest(None)),
            "meter_events": Counter(taken.state for taken in box.usage.taken),
            "invoices": Counter(invoice["status"] for invoice in box.invoices.newest()),
            "credit_grants": len(box.grants.newest(None)),
            "events": Counter(event["type"] for event in box.events.all()),
            "requests": self.gateway.answered,
            "overlapping_meter_events": dict(self.overlaps),
            "faults": [dataclasses.asdict(fault) for fault in box.faults.ordered],
        }


def _endpoint(endpoint: Endpoint) -> JsonObject:
    return dataclasses.asdict(endpoint)


def _delivery(delivery: WebhookDelivery) -> JsonObject:
    return {
        "event": delivery.event,
        "type": delivery.type,
        "endpoint": delivery.endpoint.id,
        "statuses": list(delivery.statuses),
        "delivered": delivery.delivered,
    }


def control_router(control: Control) -> APIRouter:
    """The routes of the control API."""
    router = APIRouter(prefix="/_sandbox")
    _add_faults(router, control)
    _add_world(router, control)
    _add_events(router, control)
    _add_money(router, control)
    return router


def _add_faults(router: APIRouter, control: Control) -> None:
    @router.post("/faults")
    async def order_fault(order: FaultOrder) -> JsonObject:
        control.sandbox.faults.order(Fault(**order.model_dump()))
        return order.model_dump()

    @router.get("/faults")
    async def list_faults() -> list[JsonObject]:
        return [dataclasses.asdict(fault) for fault in control.sandbox.faults.ordered]

    @router.delete("/faults")
    async def clear_faults() -> JsonObject:
        control.sandbox.faults.ordered.clear()
        return {"faults": 0}


def _add_world(router: APIRouter, control: Control) -> None:
    @router.get("/clock")
    async def tell_time() -> JsonObject:
        return control.clock()

    @router.post("/clock")
    async def move_clock(order: ClockOrder) -> JsonObject:
        return control.move(order)

    @router.post("/settings")
    async def set_delays(order: SettingsOrder) -> JsonObject:
        return control.settings(order)

    @router.post("/reset")
    async def reset() -> JsonObject:
        control.reset()
        return control.state()

    @router.get("/state")
    async def state() -> JsonObject:
        return control.state()

    @router.get("/meter_events")
    async def meter_events(event_name: str | None = None) -> list[JsonObject]:
        taken = control.sandbox.usage.taken
        return [dataclasses.asdict(one) for one in taken if event_name in {None, one.event_name}]

    @router.get("/requests")
    async def requests() -> list[JsonObject]:
        return [dataclasses.asdict(seen) for seen in control.gateway.seen]


def _add_events(router: APIRouter, control: Control) -> None:
    @router.post("/webhooks")
    async def register(order: WebhookOrder) -> JsonObject:
        return _endpoint(control.sandbox.events.register(**order.model_dump()))

    @router.get("/webhooks")
    async def endpoints() -> list[JsonObject]:
        return [_endpoint(one) for one in control.sandbox.events.endpoints.values()]

    @router.delete("/webhooks/{endpoint_id}")
    async def unregister(endpoint_id: str) -> JsonObject:
        removed = control.sandbox.events.endpoints.pop(endpoint_id, None)
        return {"removed": removed is not None}

    @router.get("/deliveries")
    async def deliveries() -> list[JsonObject]:
        return [_delivery(one) for one in control.sandbox.events.deliveries]

    @router.get("/events")
    async def events() -> list[JsonObject]:
        return control.sandbox.events.all()

    @router.post("/events/{event_id}/resend")
    async def resend(event_id: str) -> JsonObject:
        return {"deliveries": control.sandbox.events.again(event_id)}


def _add_money(router: APIRouter, control: Control) -> None:
    @router.post("/cycles")
    async def end_cycle(order: CycleOrder) -> JsonObject:
        return control.end_cycle(order)

    @router.post("/checkouts")
    async def complete_checkout(order: CheckoutOrder) -> JsonObject:
        return control.sandbox.checkouts.complete(**order.model_dump())

    @router.post("/checkouts/{session_id}/payment")
    async def end_payment(session_id: str, order: PaymentOrder) -> JsonObject:
        return control.sandbox.checkouts.end_payment(session_id, succeeded=order.succeeded)

    @router.post("/prices")
    async def add_price(order: PriceOrder) -> JsonObject:
        return control.sandbox.prices.one_time(**order.model_dump())


async def refused(_: Any, refusal: Exception) -> JSONResponse:  # noqa: ANN401 - FastAPI's signature
    """A ``Refusal`` from the control API, as the API's own error body."""
    if not isinstance(refusal, Refusal):  # pragma: no cover - registered for refusals only
        raise refusal
    return JSONResponse(refusal.body(), status_code=refusal.status)
