"""The stores that the contract suite runs on."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
import redis
from stores import MemoryStore, RedisStore, Store, StoreMaker


@pytest.fixture
def in_memory() -> StoreMaker:
    """The store in memory; tests of leases have one of their own."""
    return MemoryStore


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
def make_store(request: pytest.FixtureRequest, in_memory: StoreMaker) -> Iterator[StoreMaker]:
    """Makes a store; what it left in Redis is deleted afterwards."""
    if request.param == "memory":
        yield in_memory
        return
    made: list[RedisStore] = []

    def make(**options: int) -> Store:
        made.append(RedisStore(client, f"wbtest.{secrets.token_hex(4)}", **options))
        return made[-1]

    # Not the fixture redis_client: that comes with a database, which these tests have no use for.
    with redis.Redis.from_url(request.getfixturevalue("redis_url")) as client:
        yield make
        for store in made:
            store.lose_everything()


@pytest.fixture
def store(make_store: StoreMaker) -> Store:
    """A store without a quarantine."""
    return make_store()


@pytest.fixture
def redis_store(redis_url: str) -> Iterator[RedisStore]:
    """The store on Redis alone."""
    with redis.Redis.from_url(redis_url) as client:
        store = RedisStore(client, f"wbtest.{secrets.token_hex(4)}")
        yield store
        store.lose_everything()
