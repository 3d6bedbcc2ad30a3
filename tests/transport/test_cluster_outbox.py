"""The outbox on a Redis Cluster: a node away stops its own shards only, and a failover is seen."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import pytest
from redis.crc import key_slot
from support import eventually, make_event

from billing.core.usage_event import UsageEvent
from billing.redis.cluster import ClusterClient
from billing.redis.keys import SHARDS, RedisKeys, shard_of
from billing.transport.cluster_outbox import ClusterOutbox
from billing.transport.outbox import OutboxUnavailable
from lab.scale.redis_nodes import RedisNodes

pytestmark = [pytest.mark.redis, pytest.mark.process]
ALL = list(range(SHARDS))
CUSTOMERS = [f"customer{number}" for number in range(200)]


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisNodes]:
    """Three primaries, each with a replica."""
    nodes = RedisNodes(tmp_path_factory.mktemp("cluster") / "nodes")
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.remove()


@pytest.fixture
def client(nodes: RedisNodes) -> Iterator[ClusterClient]:
    client = ClusterClient(nodes.url, timeout_seconds=5)
    yield client
    client.close()


@pytest.fixture
def keys() -> RedisKeys:
    return RedisKeys(f"wbtest.{secrets.token_hex(4)}")


def _put(client: ClusterClient, keys: RedisKeys, event: UsageEvent) -> None:
    fields = {"e": event.to_wire(), "a": event.amount_microcredits, "s": 0, "p": 1}
    client.cluster.xadd(keys.out(shard_of(event.customer)), fields)


def _ids(events: list[UsageEvent]) -> set[object]:
    return {event.id for event in events}


def _shards_on(nodes: RedisNodes, keys: RedisKeys, port: int) -> set[int]:
    return {
        shard for shard in ALL if nodes.primary_of(key_slot(keys.out(shard).encode())).port == port
    }


def test_what_one_redis_promises_a_cluster_keeps(client: ClusterClient, keys: RedisKeys):
    outbox = ClusterOutbox(client, keys)
    put = [make_event(customer=customer) for customer in CUSTOMERS]
    for event in put:
        _put(client, keys, event)
    assert outbox.claim("a", 10_000) == ALL
    assert outbox.claim("b", 10_000) == []
    assert outbox.length() == len(put)
    assert outbox.oldest_ms() is not None
    outbox.read(ALL, 1000)
    entries = outbox.read(ALL, 1000)
    assert _ids([entry.event for entry in entries]) == _ids(put)
    outbox.remove(entries)
    assert outbox.length() == 0
    outbox.give_back("a")
    assert outbox.claim("b", 10_000) == ALL


def test_what_is_no_event_is_put_aside_within_its_shard(client: ClusterClient, keys: RedisKeys):
    outbox = ClusterOutbox(client, keys)
    client.cluster.xadd(keys.out(7), {"e": b"not json"})
    assert outbox.read(ALL, 100) == []
    assert (outbox.length(), outbox.bad_length()) == (0, 1)


def test_a_generation_stays_until_data_may_have_been_lost(client: ClusterClient, keys: RedisKeys):
    outbox = ClusterOutbox(client, keys)
    before = outbox.generation()
    assert ClusterOutbox(client, keys).generation() == before
    client.cluster.delete(f"{keys.out(7)}:marker")
    assert outbox.generation() != before


def test_a_lost_node_costs_its_shards_until_its_replica_takes_over_and_that_is_a_new_generation(
    nodes: RedisNodes, client: ClusterClient, keys: RedisKeys
):
    outbox = ClusterOutbox(client, keys)
    put = [make_event(customer=customer) for customer in CUSTOMERS]
    for event in put:
        _put(client, keys, event)
    before = outbox.generation()
    client.cluster.wait(1, 1000, target_nodes=client.cluster.PRIMARIES)
    victim = nodes.primary_of(key_slot(keys.out(7).encode()))
    lost = _shards_on(nodes, keys, victim.port)
    nodes.kill(victim)

    killed_at = time.monotonic()
    assert set(outbox.claim("a", 60_000)) == set(ALL) - lost
    assert outbox.generation() == before
    with pytest.raises(OutboxUnavailable):
        outbox.oldest_ms()
    assert time.monotonic() - killed_at < 1.5, "the replica may have taken over meanwhile"

    eventually(lambda: outbox.claim("a", 60_000) == ALL, timeout=30)
    assert outbox.generation() != before
    outbox.read(ALL, 1000)
    assert _ids([entry.event for entry in outbox.read(ALL, 1000)]) == _ids(put)


def test_a_cluster_that_is_away_as_a_whole_is_an_outbox_that_is(
    nodes: RedisNodes, client: ClusterClient, keys: RedisKeys
):
    outbox = ClusterOutbox(client, keys)
    outbox.claim("a", 1000)
    for node in nodes.nodes:
        nodes.kill(node)
    for question in (lambda: outbox.claim("a", 1000), outbox.generation, outbox.length):
        with pytest.raises(OutboxUnavailable):
            question()
