"""The ``billing`` command as a test runs it: in this process, on the test's own servers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import redis
import stripe_servers
import structlog
from at_stripe import AtStripe
from commandline import Billing, environment_of
from stripe_description import problems_of_requests
from stripe_servers import StripeServer
from support import add_customer, add_sku

from billing.container import Container
from billing.settings import Settings


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """Commands that run for long configure logs for their process, which here is the tests' own."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def billing(settings: Settings, redis_client: redis.Redis) -> Billing:  # noqa: ARG001 - deletes the keys
    """The command, on this test's servers."""
    return Billing(environment_of(settings))


@pytest.fixture
def container(settings: Settings, redis_client: redis.Redis) -> Iterator[Container]:  # noqa: ARG001 - as above
    """The same servers, for what a test sets up and looks at."""
    with Container(settings) as container:
        yield container


@pytest.fixture
def moment() -> datetime:
    """A moment ago, by the real clock, which the command reads."""
    return datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=5)


@pytest.fixture
def acme(container: Container) -> str:
    """A customer with 100 credits, and the SKU ``page-capture`` at one credit."""
    add_sku(container.engine, "page-capture")
    return add_customer(container.engine, "acme")


@pytest.fixture(scope="session")
def stripe_server() -> Iterator[StripeServer]:
    """One server for all these tests, on the machine's clock, as the command is."""
    with stripe_servers.stripe_server() as server:
        yield server


@pytest.fixture
def at_stripe(stripe_server: StripeServer) -> Iterator[AtStripe]:
    """An empty local Stripe. Whatever a test sends there, Stripe's description has to allow."""
    with httpx.Client(base_url=stripe_server.url, trust_env=False, timeout=10) as http:
        there = AtStripe(stripe_server, http)
        yield there
        assert problems_of_requests(there.control.get("requests")) == []
