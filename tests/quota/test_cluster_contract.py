"""The whole contract of the quota store again, on a Redis Cluster of three nodes."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import RECORD_TTL_SECONDS, RedisStore, Store, StoreMaker
from test_lease_contract import *  # noqa: F403 - of leases too
from test_quota_contract import *  # noqa: F403 - every test of the contract
from test_quota_load import *  # noqa: F403 - and of loading

from billing.quota.redis_store import RedisQuotaStore
from billing.redis.cluster import ClusterClient
from lab.scale.redis_nodes import RedisNodes

pytestmark = [pytest.mark.redis, pytest.mark.process]


class ClusterStore(RedisStore):
    """The quota store goes through ``ClusterClient``; the test looks with redis-py's own."""

    def __init__(self, client: ClusterClient, prefix: str, *, quarantine_seconds: int = 0) -> None:
        super().__init__(client.cluster, prefix, quarantine_seconds=quarantine_seconds)
        self.quota = RedisQuotaStore(
            client,  # type: ignore[arg-type]  # it has the part of the interface that is used
            prefix=prefix,
            hold_record_ttl_seconds=RECORD_TTL_SECONDS,
            quarantine_seconds=quarantine_seconds,
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterClient]:
    nodes = RedisNodes(_folder(tmp_path_factory), replicas=0)
    try:
        nodes.start()
        client = ClusterClient(nodes.url, timeout_seconds=10)
        yield client
        client.close()
    finally:
        nodes.remove()


def _folder(factory: pytest.TempPathFactory) -> Path:
    return factory.mktemp("cluster") / "nodes"


@pytest.fixture
def make_store(cluster: ClusterClient) -> Iterator[StoreMaker]:
    """In place of the contract's own fixture."""
    made: list[ClusterStore] = []

    def make(**options: int) -> Store:
        made.append(ClusterStore(cluster, f"wbtest.{secrets.token_hex(4)}", **options))
        return made[-1]

    yield make
    for store in made:
        store.lose_everything()
