"""Sending webhooks: signed as Stripe signs, again until answered with a 2xx."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx

from billing.core.clock import Clock
from billing.devtools.stripe_sandbox.events import WebhookDelivery, sign
from billing.devtools.stripe_sandbox.sandbox import Sandbox

RETRY_SECONDS: Sequence[float] = (0.2, 1.0, 5.0, 30.0)
"""Waits between attempts. Stripe's reach over three days; these are for tests and laptops."""


class Deliverer:
    """Sends what is due, each delivery on its own.

    Args:
        wall: The machine's time, which a signature tells; receivers compare it with their own, and
            the sandbox's clock may be moved.
    """

    def __init__(self, wall: Clock, *, retry_seconds: Sequence[float] = RETRY_SECONDS) -> None:
        self._wall = wall
        self._retry_seconds = retry_seconds
        self._client = httpx.AsyncClient(timeout=10, trust_env=False)
        self._running: set[asyncio.Task[None]] = set()

    def send_due(self, sandbox: Sandbox) -> None:
        """Start every delivery that is due."""
        while sandbox.events.due:
            task = asyncio.create_task(self._deliver(sandbox.events.due.popleft()))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Give up what is still running."""
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._client.aclose()

    async def _deliver(self, delivery: WebhookDelivery) -> None:
        for wait in (*self._retry_seconds, None):
            delivery.statuses.append(await self._attempt(delivery))
            if delivery.delivered or wait is None:
                return
            await asyncio.sleep(wait)

    async def _attempt(self, delivery: WebhookDelivery) -> int:
        at = int(self._wall.now().timestamp())
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
            "Stripe-Signature": sign(delivery.body, delivery.endpoint.secret, at),
        }
        try:
            answer = await self._client.post(
                delivery.endpoint.url, content=delivery.body, headers=headers
            )
        except httpx.HTTPError:
            return 0
        return answer.status_code
