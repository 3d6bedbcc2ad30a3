"""What one event takes: on PostgreSQL's disk, in RabbitMQ's message, in Redis."""

from __future__ import annotations

import uuid
from typing import Any, Final

import sqlalchemy as sa

from billing.core.reservation import HoldRequest
from billing.postgres.engines import owner_engine
from billing.redis.keys import SHARDS, shard_of
from lab.bench.bulk import Shape, fill, months_before
from lab.bench.events import SKU, add_customers, make_event
from lab.scale.stage import Ground, Say, Stage

_EVENTS: Final = 300_000
_CUSTOMERS: Final = 1_000
_ACCOUNTS: Final = 200
_HOLDS: Final = 2_000
_PARTS: Final = sa.text(
    """
    SELECT coalesce(sum(pg_relation_size(relid)), 0), coalesce(sum(pg_indexes_size(relid)), 0),
        coalesce(sum(pg_total_relation_size(relid)), 0)
    FROM pg_partition_tree(CAST(:name AS regclass)) WHERE isleaf
    """
)
_ROLLUPS: Final = sa.text(
    "SELECT pg_total_relation_size('usage_hourly'), (SELECT count(*) FROM usage_hourly)"
)


def run(ground: Ground, seconds: float, say: Say) -> dict[str, Any]:  # noqa: ARG001 - as every run
    """Load rows, holds and outbox entries, and divide what they take by their number."""
    stage = Stage(ground, "sizes", customers=0, credits_each=1, changed={"relay_in_worker": False})
    return {
        "books": {"lost": 0, "twice": 0, "unknown": 0, "amounts_differ": 0},
        "log_complete": True,
        "postgresql": _disk(ground, say),
        "message_bytes": len(make_event("acme", stage.container.clock.now()).to_wire()),
        "redis": _memory(stage, say),
    }


def _disk(ground: Ground, say: Say) -> dict[str, Any]:
    engine = owner_engine(ground.extra_database("sizes"))
    months = months_before(_now(engine), 2)
    fill(engine, Shape(events=_EVENTS, customers=_CUSTOMERS, months=months), say)
    with engine.connect() as connection:
        rows, indexes, everything = connection.execute(_PARTS, {"name": "usage_events"}).one()
        rollups, buckets = connection.execute(_ROLLUPS).one()
    engine.dispose()
    return {
        "events": _EVENTS,
        "row_bytes": round(rows / _EVENTS),
        "index_bytes": round(indexes / _EVENTS),
        "log_bytes_per_event": round(everything / _EVENTS),
        "rollup_bytes_per_bucket": round(rollups / buckets),
        "rollup_buckets": buckets,
    }


def _now(engine: sa.Engine) -> Any:  # noqa: ANN401 - a datetime, as the driver gives it
    with engine.connect() as connection:
        return connection.execute(sa.text("SELECT now()")).scalar_one()


def _memory(stage: Stage, say: Say) -> dict[str, float]:
    say(f"Redis: {_ACCOUNTS:,} accounts, {_HOLDS:,} holds, settled")
    container = stage.container
    customers = add_customers(container, "sizes", _ACCOUNTS)
    used = [_used(stage)]
    for customer in customers:
        container.account_loader.rebuild(customer)
    used.append(_used(stage))
    tasks = [str(uuid.uuid4()) for _ in range(_HOLDS)]
    owners = [customers[number % len(customers)] for number in range(_HOLDS)]
    for customer, task in zip(owners, tasks, strict=True):
        container.quota.reserve(
            HoldRequest(
                task_id=task, customer=customer, sku=SKU, amount_microcredits=1, ttl_seconds=3600
            )
        )
    used.append(_used(stage))
    for customer, task in zip(owners, tasks, strict=True):
        container.quota.settle(customer, task, [make_event(customer, container.clock.now(), task)])
    used.append(_used(stage))
    for shard in {shard_of(customer) for customer in customers} & set(range(SHARDS)):
        container.redis.delete(container.keys.out(shard))
    used.append(_used(stage))
    script = container.redis.info("commandstats")["cmdstat_evalsha"]
    return {
        "script_microseconds": round(float(script["usec_per_call"]), 1),
        "account_bytes": round((used[1] - used[0]) / len(customers)),
        "open_hold_bytes": round((used[2] - used[1]) / _HOLDS),
        "ended_hold_bytes": round((used[4] - used[1]) / _HOLDS),
        "outbox_entry_bytes": round((used[3] - used[4]) / _HOLDS),
    }


def _used(stage: Stage) -> int:
    return int(stage.container.redis.info("memory")["used_memory"])
