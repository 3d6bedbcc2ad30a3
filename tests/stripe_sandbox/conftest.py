"""A running local Stripe, and the ways to talk to it."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
import stripe
from stripe_api import KEY, Api, Control
from support import LONG_AGO

from billing.core.clock import ManualClock
from billing.devtools.stripe_sandbox import Sandbox, SandboxServer
from billing.devtools.stripe_sandbox.gateway import Gateway


@pytest.fixture(scope="session")
def running_stripe() -> Iterator[SandboxServer]:
    """One server for all these tests."""
    with SandboxServer() as server:
        yield server


@pytest.fixture
def control(running_stripe: SandboxServer) -> Iterator[Control]:
    """Its control API, on an empty sandbox."""
    with httpx.Client(base_url=running_stripe.url, trust_env=False, timeout=10) as client:
        control = Control(client)
        control.post("reset")
        yield control
        control.post("reset")


@pytest.fixture
def connect(running_stripe: SandboxServer, control: Control) -> Callable[..., stripe.StripeClient]:
    """Makes clients of stripe-python that talk to it."""
    assert control.get("state")["requests"] == 0
    url = running_stripe.url
    addresses = {"api": url, "meter_events": url, "files": url, "connect": url}

    def connect(key: str = KEY, *, timeout: float = 5, retries: int = 0) -> stripe.StripeClient:
        return stripe.StripeClient(
            key,
            base_addresses=addresses,  # type: ignore[arg-type]  # a TypedDict there
            max_network_retries=retries,
            http_client=stripe.RequestsClient(timeout=timeout),
        )

    return connect


@pytest.fixture
def client(connect: Callable[..., stripe.StripeClient]) -> stripe.StripeClient:
    """stripe-python, without retries."""
    return connect()


@pytest.fixture
def sandbox_clock() -> ManualClock:
    """A clock that stands on a full hour of a UTC day's start, long ago."""
    return ManualClock(LONG_AGO + timedelta(days=100))


@pytest.fixture
def api(sandbox_clock: ManualClock) -> Api:
    """A sandbox of its own without a network, every answer checked against the description."""
    return Api(Gateway(Sandbox(sandbox_clock)))


class Inbox:
    """Webhooks that came: their bodies and signatures; answers with ``status``."""

    def __init__(self) -> None:
        self.received: list[tuple[bytes, str]] = []
        self.statuses: list[int] = []
        inbox = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                inbox.received.append((body, self.headers["Stripe-Signature"]))
                self.send_response(inbox.statuses.pop(0) if inbox.statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    """A receiver of webhooks."""
    inbox = Inbox()
    thread = threading.Thread(target=inbox.server.serve_forever, daemon=True)
    thread.start()
    yield inbox
    inbox.server.shutdown()
    inbox.server.server_close()
    thread.join(timeout=60)
