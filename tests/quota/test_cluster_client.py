"""The cluster's client: its URL, what it promises before it connects, and what it tells of all."""

from __future__ import annotations

import pytest
import redis
from redis.exceptions import ClusterDownError, MovedError, SlotNotCoveredError, TryAgainError

from billing.core.errors import ConfigurationError, QuotaUnavailable
from billing.quota.redis_store import RedisQuotaStore
from billing.redis.cluster import ClusterClient, combined, is_cluster, translated
from billing.redis.cluster_url import nodes_of


@pytest.mark.parametrize(
    ("url", "yes"),
    [
        ("redis+cluster://a:1,b:2", True),
        ("rediss+cluster://a", True),
        ("redis://a:1/0", False),
        ("unix:///run/redis.sock", False),
        ("", False),
    ],
)
def test_a_cluster_is_named_by_its_scheme(url: str, yes: bool):
    assert is_cluster(url) is yes


@pytest.mark.parametrize(
    ("url", "nodes", "options"),
    [
        ("redis+cluster://a:1,b:2,c", [("a", 1), ("b", 2), ("c", 6379)], {}),
        (
            "redis+cluster://wb:p%40ss@a:1,b:2/0",
            [("a", 1), ("b", 2)],
            {"username": "wb", "password": "p@ss"},
        ),
        ("rediss+cluster://a:1", [("a", 1)], {"ssl": True}),
        (
            "rediss+cluster://:s@a:1?ssl_ca_certs=/etc/ca.pem",
            [("a", 1)],
            {"password": "s", "ssl": True, "ssl_ca_certs": "/etc/ca.pem"},
        ),
    ],
)
def test_a_url_names_nodes_login_and_options(
    url: str, nodes: list[tuple[str, int]], options: dict[str, object]
):
    assert nodes_of(url) == (nodes, options)


@pytest.mark.parametrize(
    "url",
    ["redis+cluster://a:1/3", "redis+cluster://a:x", "redis+cluster://", "redis+cluster://a,"],
)
def test_a_url_that_cannot_be_one_is_refused_without_its_password(url: str):
    with pytest.raises(ConfigurationError, match="REDIS_URL") as refused:
        nodes_of(url.replace("//", "//:secret@"))
    assert "secret" not in str(refused.value)


def test_nothing_connects_before_it_is_used_and_then_it_is_the_store_that_is_unavailable():
    client = ClusterClient("redis+cluster://127.0.0.1:1,127.0.0.1:2", timeout_seconds=0.2)
    quota = RedisQuotaStore(
        client,  # type: ignore[arg-type]  # it has the part of the interface that is used
        prefix="wb",
        hold_record_ttl_seconds=60,
        quarantine_seconds=0,
    )
    with pytest.raises(QuotaUnavailable):
        quota.account("acme")
    with pytest.raises(QuotaUnavailable):
        quota.open_holds()
    client.close()


@pytest.mark.parametrize(
    "trouble",
    [
        SlotNotCoveredError("slot 7"),
        ClusterDownError("CLUSTERDOWN The cluster is down"),
        MovedError("7 127.0.0.1:1"),
        TryAgainError("TRYAGAIN"),
    ],
)
def test_trouble_of_the_cluster_is_told_as_a_lost_connection(trouble: Exception):
    with pytest.raises(redis.ConnectionError), translated():
        raise trouble


def test_an_error_of_the_question_stays_what_it_is():
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"), translated():
        raise redis.ResponseError("WRONGTYPE")


def test_of_several_nodes_the_worst_is_told():
    good = {"maxmemory_policy": "noeviction", "aof_enabled": 1, "aof_last_write_status": "ok"}
    bad = {"maxmemory_policy": "allkeys-lru", "aof_enabled": 0, "aof_last_write_status": "err"}
    assert combined([good, bad]) == bad
    assert combined([good, good]) == good
    with pytest.raises(redis.ConnectionError):
        combined([])
