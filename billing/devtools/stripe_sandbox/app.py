"""The HTTP face: Stripe's paths, the control API, and faults that need a network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Final
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response

from billing.core.clock import Clock, SystemClock
from billing.devtools.stripe_sandbox import errors
from billing.devtools.stripe_sandbox.control import Control, control_router, refused
from billing.devtools.stripe_sandbox.delivery import Deliverer
from billing.devtools.stripe_sandbox.gateway import Incoming
from billing.devtools.stripe_sandbox.idempotency import Reply
from billing.devtools.stripe_sandbox.sandbox import Sandbox

TICK_SECONDS: Final = 0.05
METER_EVENTS: Final = "/v1/billing/meter_events"

DROP: ContextVar[Callable[[], None] | None] = ContextVar("drop", default=None)
"""Closes the connection of the request at hand; set by the server that holds it."""


Prepare = Callable[[Sandbox], None]
"""Gives an empty sandbox what it is to begin with."""


def nothing(_: Sandbox) -> None:
    """Begin with an empty sandbox."""


class Traffic:
    """Requests under way: which keys are in use, which meter and customer have two at once."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._keys: set[str] = set()
        self._metering: set[str] = set()

    async def answer(self, request: Incoming) -> Reply | None:
        """The answer, or None where the connection is to be dropped without one."""
        if request.key is not None and request.key in self._keys:
            return self._control.gateway.refuse(request, errors.key_in_use(request.key))
        with self._under_way(request):
            return await self._answer(request)

    async def _answer(self, request: Incoming) -> Reply | None:
        gateway = self._control.gateway
        fault = gateway.sandbox.faults.take(request.method, request.path)
        if fault is not None and fault.kind == "latency":
            await asyncio.sleep(fault.seconds)
        if fault is None or fault.kind != "timeout":
            return gateway.answer(request, fault)
        if fault.carried_out:
            gateway.answer(request, fault)
        await asyncio.sleep(fault.seconds)
        return None

    @contextlib.contextmanager
    def _under_way(self, request: Incoming) -> Iterator[None]:
        keys = {request.key} if request.key is not None else set()
        metering = _metering(request)
        if metering & self._metering:
            self._control.overlaps.update(metering)
        self._keys |= keys
        self._metering |= metering
        try:
            yield
        finally:
            self._keys -= keys
            self._metering -= metering


def create_app(
    clock: Clock | None = None,
    *,
    wall: Clock | None = None,
    prepare: Prepare = nothing,
) -> FastAPI:
    """A local Stripe.

    Args:
        clock: The time its objects live in; the machine's if not given. The control API moves it.
        wall: The time that signatures of webhooks tell; the machine's if not given.
        prepare: What an empty sandbox gets, also after a reset, such as webhooks.
    """
    base = clock or SystemClock()

    def fresh() -> Sandbox:
        box = Sandbox(base)
        prepare(box)
        return box

    control = Control(fresh)
    traffic = Traffic(control)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        deliverer = Deliverer(wall or SystemClock())
        ticking = asyncio.create_task(_tick(control, deliverer))
        yield
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
        await deliverer.close()

    app = FastAPI(title="Local Stripe", lifespan=lifespan)
    app.include_router(control_router(control))
    app.add_exception_handler(errors.Refusal, refused)
    app.state.control = control

    @app.api_route("/{path:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
    async def stripe(request: Request) -> Response:
        reply = await traffic.answer(await _incoming(request))
        if reply is None:
            return _dropped()
        return Response(reply.content, status_code=reply.status, headers=reply.headers)

    return app


async def _tick(control: Control, deliverer: Deliverer) -> None:
    while True:
        control.sandbox.advance()
        deliverer.send_due(control.sandbox)
        await asyncio.sleep(TICK_SECONDS)


async def _incoming(request: Request) -> Incoming:
    return Incoming(
        method=request.method,
        path=request.url.path,
        query=request.url.query,
        headers={name.lower(): value for name, value in request.headers.items()},
        body=await request.body(),
    )


def _dropped() -> Response:
    drop = DROP.get()
    if drop is not None:
        drop()
    # Nobody reads this: the connection is gone. A server that cannot drop says so instead.
    return Response("the connection was to be dropped", status_code=599)


def _metering(request: Incoming) -> set[str]:
    if request.method != "POST" or request.path != METER_EVENTS:
        return set()
    form = parse_qs(request.body.decode(errors="replace"))
    customer = form.get("payload[stripe_customer_id]", [""])[0]
    return {f"{form.get('event_name', [''])[0]}|{customer}"}
