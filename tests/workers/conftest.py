"""The fixtures of tests with real workers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from live import Live
from support import add_customer, add_sku

from billing.core.sku import AdmissionPolicy, DenialPolicy, Pricing, UnavailablePolicy
from billing.settings import Settings


@pytest.fixture
def live(
    settings: Settings,
    engine: sa.Engine,
    redis_client: redis.Redis,  # noqa: ARG001 - clears the test's keys
    rabbitmq_url: str,  # noqa: ARG001 - settings name it
    tmp_path: Path,
) -> Iterator[Live]:
    add_sku(engine, "page", price=1)
    add_sku(engine, "pages", price=1, pricing=Pricing.MEASURED, hold_quantity=10)
    add_sku(engine, "deferred", price=1, denial_policy=DenialPolicy.DEFER)
    allow, deny = UnavailablePolicy.ALLOW, UnavailablePolicy.DENY
    add_sku(engine, "allowed", price=1, unavailable_policy=allow, allow_limit=3)
    add_sku(engine, "strict", price=1, unavailable_policy=deny)
    add_sku(engine, "leased", price=1, admission=AdmissionPolicy.LEASED)
    add_customer(engine, "acme", credits=1000)
    add_customer(engine, "globex", credits=1000)
    # What a dead relay was sending is the next one's soon.
    settings = settings.model_copy(update={"relay_lease_seconds": 2})
    live = Live(settings, engine, tmp_path)
    yield live
    live.close()


@pytest.fixture
def caller() -> Callable[..., Any]:
    """Calls something from several threads at once and gives all results."""

    def call(count: int, work: Callable[[int], Any]) -> list[Any]:
        results: list[Any] = [None] * count
        barrier = threading.Barrier(count)

        def run(index: int) -> None:
            barrier.wait()
            results[index] = work(index)

        threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return results

    return call
