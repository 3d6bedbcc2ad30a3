"""The outbox on a real Redis: leases, reading fairly, removing, and what cannot be read."""

from __future__ import annotations

import time
from collections import Counter

import pytest
import redis
from kombu.utils.url import parse_url
from support import TcpProxy, eventually, make_event
from usage_support import Store

from billing.core.usage_event import UsageEvent
from billing.redis.keys import SHARDS, RedisKeys, shard_of
from billing.transport.outbox import OutboxUnavailable, RedisOutbox

ALL = list(range(SHARDS))


def test_a_relay_alone_gets_every_shard_and_keeps_them(store: Store):
    assert store.outbox.claim("a", 10_000) == ALL
    assert store.outbox.claim("a", 10_000) == ALL


def test_what_one_relay_has_another_does_not_get(store: Store):
    store.outbox.claim("a", 10_000)
    assert store.outbox.claim("b", 10_000) == []


def test_shards_that_are_given_back_are_free_at_once(store: Store):
    store.outbox.claim("a", 10_000)
    store.outbox.give_back("a")
    assert store.outbox.claim("b", 10_000) == ALL


def test_nobody_gives_back_what_is_not_theirs(store: Store):
    store.outbox.claim("a", 10_000)
    store.outbox.give_back("b")
    assert store.outbox.claim("b", 10_000) == []


def test_the_shards_of_a_dead_relay_are_free_when_its_leases_run_out(store: Store):
    started = time.monotonic()
    store.outbox.claim("dead", 300)
    assert eventually(lambda: store.outbox.claim("b", 10_000)) == ALL
    assert time.monotonic() - started >= 0.25


def test_a_renewed_lease_lasts_from_its_renewal(store: Store):
    store.outbox.claim("a", 300)
    store.outbox.claim("a", 60_000)
    lease = f"{store.keys.out(7)}:lease"
    assert store.client.pttl(lease) > 50_000


def test_an_entry_is_the_event_with_the_figures_that_were_decided(store: Store):
    event = make_event(amount_microcredits=900)
    entry_id = store.put(event, amount=700, shortfall=200, epoch=3)
    (entry,) = store.outbox.read(ALL, 100)
    assert entry.event == event.settled(amount=700, shortfall=200, quota_epoch=3)
    assert (entry.shard, entry.entry_id) == (shard_of("acme"), entry_id)


def test_a_client_that_decodes_answers_reads_the_same(store: Store, redis_url: str):
    event = make_event(subject="Zürich, Straße 1")
    store.put(event)
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        (entry,) = RedisOutbox(client, store.keys).read(ALL, 10)
        assert entry.event == event


def test_entries_come_in_the_order_they_were_put_in(store: Store):
    put = [make_event() for _ in range(10)]
    for event in put:
        store.put(event)
    outbox = store.outbox
    outbox.read(ALL, 100)
    assert [entry.event for entry in outbox.read(ALL, 100)] == put


def test_reading_takes_nothing_out(store: Store):
    store.put(make_event())
    assert store.outbox.read(ALL, 10) == store.outbox.read(ALL, 10)
    assert store.outbox.length() == 1


def test_only_the_asked_shards_are_read(store: Store):
    store.put(make_event(customer="acme"))
    store.put(make_event(customer="other"))
    assert shard_of("acme") != shard_of("other")
    (entry,) = store.outbox.read([shard_of("other")], 10)
    assert entry.event.customer == "other"
    assert store.outbox.read([], 10) == []


def test_one_busy_customer_gets_whole_batches_and_starves_nobody(store: Store):
    for _ in range(300):
        store.put(make_event(customer="busy"))
    for _ in range(2):
        store.put(make_event(customer="quiet"))
    outbox = store.outbox
    first = Counter(entry.event.customer for entry in outbox.read(ALL, 200))
    second = Counter(entry.event.customer for entry in outbox.read(ALL, 200))
    assert first["quiet"] == second["quiet"] == 2
    assert second["busy"] == 200


def test_a_backlog_everywhere_is_read_in_batches_of_about_the_asked_size(store: Store):
    for number in range(1500):
        store.put(make_event(customer=f"c{number % 100}"))
    outbox = store.outbox
    outbox.read(ALL, 320)
    assert 300 <= len(outbox.read(ALL, 320)) <= 400


def test_what_is_removed_is_gone_and_the_rest_is_not(store: Store):
    for number in range(20):
        store.put(make_event(customer=f"c{number}"))
    outbox = store.outbox
    entries = outbox.read(ALL, 100)
    outbox.remove(entries[:15])
    assert outbox.read(ALL, 100) == entries[15:]
    assert outbox.length() == 5
    outbox.remove(entries)
    outbox.remove([])
    assert outbox.length() == 0


def test_the_oldest_entry_tells_the_outboxs_age(store: Store):
    assert store.outbox.oldest_ms() is None
    first = store.put(make_event(customer="a"))
    eventually(lambda: store.client.time()[0] * 1000 > int(first.partition("-")[0]) - 1000)
    store.put(make_event(customer="b"))
    assert store.outbox.oldest_ms() == int(first.partition("-")[0])


@pytest.mark.parametrize(
    "fields",
    [
        {"e": b"not json", "a": 1, "s": 0, "p": 1},
        {"e": make_event().to_wire(), "a": "1.5", "s": 0, "p": 1},
        {"e": make_event().to_wire(), "a": 1},
        {"other": "thing"},
        {"e": b"\xff\xfe", "a": 1, "s": 0, "p": 1},
    ],
    ids=["not json", "fractional amount", "missing figures", "no event", "not text"],
)
def test_what_cannot_be_read_is_put_aside_once_and_its_neighbours_are_read(
    store: Store, fields: dict[str, object]
):
    event = make_event()
    store.put(event)
    stream = store.keys.out(shard_of("acme"))
    store.client.xadd(stream, fields)  # type: ignore[arg-type]  # bytes, int and str are fine
    outbox = store.outbox
    assert [entry.event for entry in outbox.read(ALL, 10)] == [event]
    assert [entry.event for entry in outbox.read(ALL, 10)] == [event]
    assert outbox.length() == 1
    assert outbox.bad_length() == 1
    ((_, kept),) = store.client.xrange(f"{stream}:bad")
    assert {name.decode(): value for name, value in kept.items() if name != b"error"} == {
        name: value if isinstance(value, bytes) else str(value).encode()
        for name, value in fields.items()
    }
    assert kept[b"error"]


def test_the_generation_stays_while_the_data_stays(store: Store):
    assert store.outbox.generation() == store.outbox.generation()


def test_the_generation_changes_when_the_data_is_lost(store: Store):
    before = store.outbox.generation()
    for key in store.client.scan_iter(match=f"{store.keys.prefix}:*"):
        store.client.delete(key)
    after = store.outbox.generation()
    assert after != before
    assert store.outbox.generation() == after


def test_a_redis_that_is_away_is_said_to_be(store: Store, redis_url: str):
    parts = parse_url(redis_url)
    host, port = parts["hostname"], parts["port"]
    with TcpProxy(host, port) as proxy:
        client = redis.Redis.from_url(
            redis_url.replace(f"{host}:{port}", f"127.0.0.1:{proxy.port}"),
            socket_timeout=0.3,
            retry=None,
        )
        outbox = RedisOutbox(client, RedisKeys(store.keys.prefix))
        assert outbox.length() == 0
        for trouble in (proxy.silence, proxy.cut):
            trouble()
            for ask in (
                lambda: outbox.claim("a", 1000),
                lambda: outbox.give_back("a"),
                lambda: outbox.read(ALL, 10),
                outbox.length,
                outbox.bad_length,
                outbox.oldest_ms,
                outbox.generation,
            ):
                with pytest.raises(OutboxUnavailable):
                    ask()
        proxy.restore()
        assert outbox.claim("a", 1000) == ALL
        client.close()


def test_the_scripts_survive_a_script_flush(private_store: Store):
    outbox = private_store.outbox
    assert outbox.claim("a", 10_000) == ALL
    private_store.client.script_flush()
    assert outbox.claim("a", 10_000) == ALL


def test_an_event_keeps_every_field_on_its_way_through(store: Store):
    event: UsageEvent = make_event(
        subject="s",
        dimensions={"region": "eu"},
        reason="x",
        root_id="r",
        parent_id="p",
        group_id="g",
        attempt=2,
        degraded=True,
        cost_micros=17,
        currency="EUR",
        quota_epoch=5,
    )
    store.put(event)
    (entry,) = store.outbox.read(ALL, 10)
    assert entry.event == event
