"""Webhooks: the signature of the raw bytes first, then the effect, and an answer after COMMIT.

Stripe delivers again for three days what is not answered with a 2xx. So a 2xx means: it is written
down, with its effect. A 5xx means: nothing is written, deliver it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import sqlalchemy as sa
import structlog
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from billing.core.clock import Clock
from billing.core.errors import ConfigurationError, WeighbridgeError
from billing.providers.port import ProviderUnavailable
from billing.stripe_webhooks.processor import Received
from billing.stripe_webhooks.signature import Unsigned, check_signature

STRIPE_PATH: Final = "/webhooks/stripe"
MAX_BODY: Final = 2**20
"""Bytes; Stripe's largest events are some tens of kilobytes."""
BODY_SECONDS: Final = 10.0
AT_ONCE: Final = 10
"""Webhooks under way at once, each in a thread with one connection to PostgreSQL; others wait."""

_log = structlog.get_logger(__name__)

_AWAY: Final = (ProviderUnavailable, ConfigurationError, sa.exc.OperationalError)
_AWAY_TOO: Final = (sa.exc.InterfaceError, sa.exc.TimeoutError, sa.exc.InternalError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhooks:
    """The collaborators of the endpoint.

    ``receive`` does what a signed body asks for (``WebhookProcessor.receive``); ``sync`` sends
    Redis the account of a customer whose balance changed.
    """

    secrets: Sequence[str]
    receive: Callable[[bytes], Received]
    sync: Callable[[str], object]
    clock: Clock


class TooLarge(Exception):  # noqa: N818 - the body is too large
    """The body has more bytes than any event has."""


def webhook_router(hooks: Webhooks) -> APIRouter:
    """``POST /webhooks/stripe``."""
    router = APIRouter()
    limiter: list[CapacityLimiter] = []

    @router.post(STRIPE_PATH)
    async def stripe(request: Request) -> Response:
        if not hooks.secrets:
            return _answer(503, error="STRIPE_WEBHOOK_SECRET is not set, nothing can be verified")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await body_of(request)
        except TooLarge:
            return _answer(413, error=f"more than {MAX_BODY} bytes")
        except (TimeoutError, ClientDisconnect):
            return _answer(408, error="the body did not come")
        header = request.headers.get("stripe-signature", "")
        if not limiter:
            # It belongs to the loop that it is made in.
            limiter.append(CapacityLimiter(AT_ONCE))
        return await to_thread.run_sync(partial(_take, hooks, body, header), limiter=limiter[0])

    return router


async def body_of(request: Request) -> bytes:
    """The raw bytes of a request, of which no more are kept than are allowed.

    Raises:
        TooLarge: There are more.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > MAX_BODY:
        raise TooLarge
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise TooLarge
    return bytes(body)


def _take(hooks: Webhooks, body: bytes, header: str) -> Response:
    """Verify and do one webhook. Runs in a thread: Stripe and PostgreSQL are waited for."""
    try:
        check_signature(body, header, hooks.secrets, hooks.clock.now())
    except Unsigned as error:
        # Never the body or the header: they are whoever's.
        _log.warning("webhook_refused", error=error.reason, bytes=len(body))
        return _answer(400, error=error.reason)
    try:
        received = hooks.receive(body)
    except (*_AWAY, *_AWAY_TOO) as error:
        _log.warning("webhook_put_off", error=_first_line(error))
        return _answer(503, error="not done; deliver it again")
    _sync_customers(hooks, received)
    return _answer(200, result=received.reception.value)


def _sync_customers(hooks: Webhooks, received: Received) -> None:
    """Send changed balances to Redis, after the commit; the hourly check repairs one that fails."""
    for customer in sorted(received.customers):
        try:
            hooks.sync(customer)
        except WeighbridgeError as error:
            _log.warning("balance_not_synced", customer=customer, error=_first_line(error))


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def _answer(status: int, **content: str) -> JSONResponse:
    return JSONResponse(content, status_code=status)
