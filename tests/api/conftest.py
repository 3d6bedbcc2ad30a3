"""A running API on real servers, with a local Stripe that knows its customer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest
import redis
import stripe_servers
from pydantic import SecretStr
from stripe_api import KEY
from stripe_description import problems_of_requests
from stripe_servers import StripeServer
from support import add_customer, add_sku
from webhook_bench import SECRET, Books, LocalStripe, Shop

from billing.api.app import app_of
from billing.api.server import ApiServer
from billing.container import Container
from billing.settings import Settings


@pytest.fixture(scope="session")
def stripe_server() -> Iterator[StripeServer]:
    """One server for all these tests, on the machine's clock, as signatures are."""
    with stripe_servers.stripe_server() as server:
        yield server


@pytest.fixture
def local_stripe(stripe_server: StripeServer) -> Iterator[LocalStripe]:
    """An empty local Stripe. Whatever a test sends there, Stripe's description has to allow."""
    with httpx.Client(base_url=stripe_server.url, trust_env=False, timeout=10) as http:
        local = LocalStripe(stripe_server, http)
        yield local
        assert problems_of_requests(local.control.get("requests")) == []
        # What is still to be delivered is not delivered to the next test's API.
        http.post("/_sandbox/reset")


@pytest.fixture
def stripe_settings(
    settings: Settings,
    local_stripe: LocalStripe,
    redis_client: redis.Redis,  # noqa: ARG001 - deletes the keys
) -> Settings:
    """The test's settings, with this Stripe."""
    return settings.model_copy(
        update={
            "stripe_api_key": SecretStr(KEY),
            "stripe_api_base": local_stripe.url,
            "stripe_webhook_secret": SecretStr(SECRET),
        }
    )


@pytest.fixture
def open_shop(
    stripe_settings: Settings, local_stripe: LocalStripe
) -> Iterator[Callable[..., Shop]]:
    """Starts an API, with settings changed as the test likes."""
    with ExitStack() as opened:
        # The books are looked at past whatever a test does to the API's way to PostgreSQL.
        own = opened.enter_context(Container(stripe_settings))
        add_customer(own.engine, "acme", credits=0)
        add_customer(own.engine, "globex", credits=0)
        add_sku(own.engine, "page-capture")
        books = Books(own.engine)
        ref = local_stripe.customer()
        books.link("acme", ref)

        def open_shop(**changes: object) -> Shop:
            container = Container(stripe_settings.model_copy(update=changes))
            opened.enter_context(container)
            server = opened.enter_context(ApiServer(app_of(container), "127.0.0.1", 0))
            return Shop(server.url, container, local_stripe, books, ref)

        yield open_shop


@pytest.fixture
def shop(open_shop: Callable[..., Shop]) -> Shop:
    """A running API; Stripe does not deliver to it yet."""
    return open_shop()


@pytest.fixture
def told_shop(shop: Shop) -> Shop:
    """A running API that gets every event of both kinds."""
    shop.stripe.deliver_to(shop.url)
    shop.stripe.deliver_to(shop.url, payload="thin")
    return shop
