"""A log with a reporter behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from reporting_support import Container
from stripe_bench import METER, LocalStripe
from stripe_description import problems_of_requests
from support import NOW

from billing.core.clock import ManualClock
from billing.devtools.stripe_sandbox import SandboxServer
from billing.providers.stripe.provider import StripeProvider


@pytest.fixture
def container(engine: sa.Engine, tmp_path: Path) -> Container:
    """Nothing is logged yet."""
    return Container(engine, tmp_path / "files")


@pytest.fixture(scope="session")
def stripe_server() -> Iterator[SandboxServer]:
    """One server for all these tests, at the instant they are at."""
    with SandboxServer(ManualClock(NOW)) as server:
        yield server


@pytest.fixture
def local(stripe_server: SandboxServer) -> Iterator[LocalStripe]:
    """An empty local Stripe. Whatever a test sends there, Stripe's description has to allow."""
    with httpx.Client(base_url=stripe_server.url, trust_env=False, timeout=10) as http:
        local = LocalStripe(stripe_server, http)
        yield local
        assert problems_of_requests(local.requests()) == []


@pytest.fixture
def provider(local: LocalStripe) -> StripeProvider:
    """An adapter to it; the meter is there."""
    provider = local.adapter()
    provider.ensure_meters([METER])
    return provider


@pytest.fixture
def acme(provider: StripeProvider) -> str:
    """The Stripe customer of acme."""
    return provider.link_customer("acme", "Acme")
