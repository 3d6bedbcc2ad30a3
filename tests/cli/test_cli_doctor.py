"""``billing doctor`` and ``migrate`` on real servers, in good health and in bad."""

from __future__ import annotations

from typing import Any

import pytest
import redis
import sqlalchemy as sa
from commandline import Billing
from databases import downgrade
from support import make_event

from billing.container import Container
from billing.core.clock import to_ms
from billing.core.reservation import HoldRequest
from billing.core.usage_event import UsageEvent
from billing.health.doctor import examine
from billing.health.facts import redis_place
from billing.postgres import migrations
from billing.transport.queue_depth import NO_QUEUE, QueueDepth, queue_depth

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


def checks(billing: Billing, code: int = 0) -> dict[str, Any]:
    found = billing.json("doctor", code=code)["checks"]
    return {each["check"]: each for each in found}


def server_of_balances(found: dict[str, Any]) -> str:
    return "Valkey" if "Valkey" in found else "Redis"


@pytest.mark.rabbitmq
def test_healthy_servers_pass_every_check(billing: Billing, container: Container):
    billing.run("relay", "--drain")
    container.publisher().publish([])
    document = billing.json("doctor")
    found = {each["check"]: each for each in document["checks"]}
    redis_name = server_of_balances(found)
    assert set(found) == {
        "PostgreSQL", "Clock of PostgreSQL", "Roles", "Schema", "Partitions", "Dead letters",
        "Provider", "Last reporting run", "Reports", "Unknown reports", "Parked reports",
        "Oldest usage not taken", "Books", "Seals", "Archives",
        "Spool of this node", "Slips of this node",
        redis_name, f"Clock of {redis_name}", "Redis eviction", "Redis persistence",
        "Redis database", "Outbox", "Holds", "RabbitMQ", "Usage queue",
    }  # fmt: skip
    assert all(
        set(each) == {"check", "level", "found", "meaning", "remedy"} for each in found.values()
    )
    # What the machine's own servers may be warned about: their login, their persistence, and that
    # nobody consumes this test's queue.
    allowed = {"Roles", "Redis persistence", "Usage queue"}
    assert {name for name, each in found.items() if each["level"] != "ok"} <= allowed
    assert document["level"] in {"ok", "warn"}


@pytest.mark.rabbitmq
def test_the_table_says_what_a_fault_means_and_how_to_mend_it(
    billing: Billing, container: Container, acme: str
):
    container.writer.write([b"not json"])
    assert acme == "acme"
    table = " ".join(billing.table("doctor").split())
    assert "Dead letters warn 1 open" in table
    assert "remedy: billing dead list, mend the cause, billing dead replay" in table


def test_each_server_that_is_away_fails_by_itself(billing: Billing):
    for setting, server, url in (
        ("DATABASE_URL", "PostgreSQL", "postgresql://nobody:secret@127.0.0.1:1/none"),
        ("REDIS_URL", "Redis", "redis://:secret@127.0.0.1:1/0"),
        ("AMQP_URL", "RabbitMQ", "amqp://nobody:secret@127.0.0.1:1//"),
    ):
        was = billing.environment[f"WEIGHBRIDGE_{setting}"]
        billing.environment[f"WEIGHBRIDGE_{setting}"] = url
        found = checks(billing, code=1)
        billing.environment[f"WEIGHBRIDGE_{setting}"] = was
        assert found[server]["level"] == "fail"
        assert setting in found[server]["remedy"]
        assert "secret" not in str(found)
        assert len(found) > 4


def test_a_database_that_was_never_migrated_is_found_and_migrated(
    billing: Billing, container: Container
):
    url = container.endpoints.database_url
    downgrade(url, "base")
    assert checks(billing, code=1)["Schema"]["remedy"] == "billing migrate"
    assert "Remedy: billing migrate" in billing.error("customers", "list")
    migrated = billing.json("migrate")
    assert migrated["revision_before"] is None
    assert migrated["revision"] == migrations.head()
    assert billing.json("migrate")["partitions_made"] == []
    assert "already" in billing.table("migrate")
    assert billing.json("customers", "list") == []
    assert checks(billing, code=0 if _rabbitmq_answers(container) else 1)["Schema"]["level"] == "ok"


def _rabbitmq_answers(container: Container) -> bool:
    document = checks_of(container)
    return all(each.level.value != "fail" for each in document)


def checks_of(container: Container) -> list[Any]:
    return examine(container)


def test_a_missing_partition_is_found_and_made_by_migrate(billing: Billing, container: Container):
    last = "SELECT max(relname) FROM pg_class WHERE relname ~ '^usage_events_\\d{4}_\\d{2}$'"
    with container.engine.begin() as connection:
        name = connection.exec_driver_sql(last).scalar_one()
        connection.execute(sa.text(f"DROP TABLE {name}"))
    found = {each.check: each for each in checks_of(container)}["Partitions"]
    assert found.level.value == "warn"
    assert name.removeprefix("usage_events_").replace("_", "-") in found.found
    assert billing.json("migrate")["partitions_made"] == [name]


def test_an_outbox_that_nobody_drains_is_told(
    container: Container, redis_client: redis.Redis, acme: str
):
    event: UsageEvent = make_event(customer=acme)
    an_hour_ago = to_ms(container.clock.now()) - 3_700_000
    redis_client.xadd(
        container.keys.out(7), {"e": event.to_wire(), "a": 1, "s": 0, "p": 1}, id=f"{an_hour_ago}-1"
    )
    found = {each.check: each for each in checks_of(container)}["Outbox"]
    assert found.level.value == "fail"
    assert found.found.startswith("1 waiting, oldest 3,7")


def test_a_hold_past_its_time_and_a_sweep_is_told(
    container: Container, redis_client: redis.Redis, acme: str
):
    container.account_loader.rebuild(acme)
    container.quota.reserve(
        HoldRequest(
            task_id="t-1",
            customer=acme,
            sku="page-capture",
            amount_microcredits=2_500_000,
            ttl_seconds=60,
        )
    )
    (hold,) = container.quota.open_holds()
    long_ago = hold.expires_at_ms - 1_000_000
    for key in redis_client.scan_iter(match=f"{container.settings.redis_prefix}:*:open"):
        (member,) = redis_client.zrange(key, 0, -1)
        redis_client.zadd(key, {member: long_ago})
    redis_client.hset(container.keys.hold(acme, "t-1"), "expires_ms", str(long_ago))
    found = {each.check: each for each in checks_of(container)}["Holds"]
    assert found.level.value == "warn"
    assert found.found == "1 of 1 open holds are overdue: 2.5 credits"


def test_balances_that_share_a_database_with_results_are_told(billing: Billing):
    billing.environment["WEIGHBRIDGE_RESULT_URL"] = billing.environment["WEIGHBRIDGE_REDIS_URL"]
    assert checks(billing, code=1)["Redis database"]["level"] == "fail"


@pytest.mark.rabbitmq
def test_events_that_wait_unread_are_told(billing: Billing, container: Container, acme: str):
    container.publisher().publish([make_event(customer=acme)])
    found = checks(billing, code=1)["Usage queue"]
    assert found["level"] == "fail"
    assert "1 waiting, 0 consumers" in found["found"]
    url, queue = container.endpoints.amqp_url or "", container.settings.usage_queue
    assert queue_depth(url, queue) == QueueDepth(ready=1, consumers=0)
    assert queue_depth(url, f"{queue}.of-nobody") == NO_QUEUE


def test_the_depth_of_a_queue_that_cannot_be_asked_is_unknown():
    assert queue_depth("amqp://nobody:secret@127.0.0.1:1//", "usage.log") is None


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://localhost:6379/0", "127.0.0.1:6379/0"),
        ("redis://127.0.0.1", "127.0.0.1:6379/0"),
        ("redis://:secret@host:7000/3", "host:7000/3"),
        ("unix:///tmp/valkey.sock?db=2", "/tmp/valkey.sock/2"),
        ("redis+socket:///tmp/valkey.sock?virtual_host=1", "/tmp/valkey.sock/1"),
        ("amqp://guest:guest@127.0.0.1:5672//", ""),
        ("", ""),
    ],
)
def test_a_redis_database_is_known_however_its_url_is_written(url: str, place: str):
    assert redis_place(url) == place
