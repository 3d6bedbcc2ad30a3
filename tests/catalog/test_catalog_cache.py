"""A process's copy of the catalogue: how old it may get, and a PostgreSQL that is away."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from billing.catalog.sku_cache import CatalogUnavailable, SkuCache
from billing.catalog.skus import SkuStore
from billing.core.clock import ManualClock
from billing.core.errors import NotFound
from billing.core.sku import (
    DenialPolicy,
    FailurePolicy,
    Price,
    Pricing,
    Sku,
    UnavailablePolicy,
)

TTL = 30
SECOND = timedelta(seconds=1)


def sku(sku_id: str, now: datetime, price: int = 1) -> Sku:
    return Sku(
        id=sku_id,
        unit="page",
        pricing=Pricing.FIXED,
        hold_quantity=1,
        failure_policy=FailurePolicy.RELEASE,
        denial_policy=DenialPolicy.FAIL,
        unavailable_policy=UnavailablePolicy.RETRY,
        allow_limit=0,
        prices=(Price(price, now),),
    )


class Shelf:
    """A catalogue in memory that counts how often it is asked, and can be away."""

    def __init__(self, *skus: Sku) -> None:
        self.skus = {each.id: each for each in skus}
        self.asked = 0
        self.away = False

    def snapshot(self) -> dict[str, Sku]:
        self.asked += 1
        if self.away:
            raise sa.exc.OperationalError("SELECT", {}, Exception("connection refused"))
        return dict(self.skus)


@pytest.fixture
def shelf(now: datetime) -> Shelf:
    return Shelf(sku("a", now))


@pytest.fixture
def cache(shelf: Shelf, clock: ManualClock) -> SkuCache:
    return SkuCache(shelf, clock, TTL)


def test_nothing_is_asked_until_a_sku_is(cache: SkuCache, shelf: Shelf):
    assert shelf.asked == 0
    assert cache.sku("a") == shelf.skus["a"]
    assert shelf.asked == 1


def test_a_copy_serves_until_it_is_too_old(
    cache: SkuCache, shelf: Shelf, clock: ManualClock, now: datetime
):
    cache.sku("a")
    shelf.skus["a"] = sku("a", now, price=2)
    clock.advance((TTL - 1) * SECOND)
    assert cache.sku("a").prices[0].unit_price_microcredits == 1
    clock.advance(SECOND)
    assert cache.sku("a").prices[0].unit_price_microcredits == 2
    assert shelf.asked == 2


def test_a_new_sku_is_found_before_the_copy_is_too_old(
    cache: SkuCache, shelf: Shelf, clock: ManualClock, now: datetime
):
    cache.sku("a")
    clock.advance(SECOND)
    shelf.skus["b"] = sku("b", now)
    assert cache.sku("b") == shelf.skus["b"]


def test_an_unknown_sku_is_asked_for_at_most_once_a_second(
    cache: SkuCache, shelf: Shelf, clock: ManualClock
):
    for _ in range(100):
        with pytest.raises(NotFound, match="skus list"):
            cache.sku("nothing")
    assert shelf.asked == 1
    clock.advance(SECOND)
    for _ in range(100):
        with pytest.raises(NotFound):
            cache.sku("nothing")
    assert shelf.asked == 2


def test_the_last_copy_serves_while_postgresql_is_away(
    cache: SkuCache, shelf: Shelf, clock: ManualClock, now: datetime
):
    cache.sku("a")
    shelf.away = True
    clock.advance(1000 * TTL * SECOND)
    assert cache.sku("a") == sku("a", now)


def test_while_postgresql_is_away_it_is_asked_at_most_once_a_second(
    cache: SkuCache, shelf: Shelf, clock: ManualClock
):
    cache.sku("a")
    shelf.away = True
    clock.advance(TTL * SECOND)
    for _ in range(100):
        cache.sku("a")
    assert shelf.asked == 2


def test_the_copy_is_renewed_when_postgresql_is_back(
    cache: SkuCache, shelf: Shelf, clock: ManualClock, now: datetime
):
    cache.sku("a")
    shelf.away = True
    clock.advance(TTL * SECOND)
    cache.sku("a")
    shelf.away = False
    shelf.skus["a"] = sku("a", now, price=2)
    clock.advance(SECOND)
    assert cache.sku("a").prices[0].unit_price_microcredits == 2


def test_without_any_copy_an_absent_postgresql_is_an_error_that_can_pass(
    cache: SkuCache, shelf: Shelf, clock: ManualClock
):
    shelf.away = True
    for _ in range(100):
        with pytest.raises(CatalogUnavailable, match="Nothing was held"):
            cache.sku("a")
    assert shelf.asked == 1
    shelf.away = False
    clock.advance(SECOND)
    assert cache.sku("a") == shelf.skus["a"]


def test_a_clock_that_was_set_back_does_not_make_a_copy_eternal(
    cache: SkuCache, shelf: Shelf, clock: ManualClock, now: datetime
):
    cache.sku("a")
    shelf.skus["a"] = sku("a", now, price=2)
    clock.advance(-timedelta(days=1))
    assert cache.sku("a").prices[0].unit_price_microcredits == 2


def test_many_threads_make_one_first_copy(cache: SkuCache, shelf: Shelf):
    together = threading.Barrier(16)

    def ask(_: int) -> Sku:
        together.wait(timeout=60)
        return cache.sku("a")

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(16))) == {shelf.skus["a"]}
    assert shelf.asked == 1


def test_others_go_on_with_the_old_copy_while_one_thread_asks(clock: ManualClock, now: datetime):
    asking, answer = threading.Event(), threading.Event()

    class Slow(Shelf):
        def snapshot(self) -> dict[str, Sku]:
            found = super().snapshot()
            if self.asked > 1:
                asking.set()
                assert answer.wait(timeout=60)
            return found

    slow = Slow(sku("a", now))
    cache = SkuCache(slow, clock, TTL)
    cache.sku("a")
    slow.skus["a"] = sku("a", now, price=2)
    clock.advance(TTL * SECOND)
    with ThreadPoolExecutor(1) as pool:
        renewed = pool.submit(cache.sku, "a")
        assert asking.wait(timeout=60)
        assert cache.sku("a").prices[0].unit_price_microcredits == 1
        answer.set()
        assert renewed.result(timeout=10).prices[0].unit_price_microcredits == 2


@pytest.mark.postgres
def test_a_real_catalogue_can_be_cached(engine: sa.Engine, clock: ManualClock, now: datetime):
    catalog = SkuStore(engine)
    catalog.add("a", unit="page", unit_price_microcredits=1, effective_from=now)
    cache = SkuCache(catalog, clock, TTL)
    assert cache.sku("a") == replace(sku("a", now), description="")


@pytest.mark.postgres
def test_a_real_postgresql_that_is_away_is_an_error_that_can_pass(clock: ManualClock):
    nowhere = sa.create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    cache = SkuCache(SkuStore(nowhere), clock, TTL)
    with pytest.raises(CatalogUnavailable):
        cache.sku("a")
