"""Faults planted in Redis and PostgreSQL, each found, and nothing found where all is well."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, timedelta, timezone, tzinfo
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from small_system import SmallSystem
from support import NOW, add_customer, add_sku, make_event

from billing.core.clock import ManualClock, from_ms
from billing.core.errors import DenialReason, QuotaUnavailable
from billing.core.event_ids import event_id
from billing.core.periods import hour_floor
from billing.core.reservation import ReleaseCause
from billing.core.sku import Pricing
from billing.core.usage_event import FIELDS, Outcome, denied_line
from billing.postgres.schema import grants, quota_fences, usage_events, usage_hourly
from billing.quota.redis_store import RedisQuotaStore
from billing.reconciliation.checks import SWEEP_GRACE, InvariantChecks
from billing.reconciliation.invariants import Discrepancy, DiscrepancyKind
from billing.redis.keys import RedisKeys
from billing.settings import Settings

CREDIT = 1_000_000
SINCE = NOW - timedelta(days=2)


@pytest.fixture
def container(
    engine: sa.Engine,
    database_url: str,
    redis_client: redis.Redis,
    settings: Settings,
    clock: ManualClock,
) -> Iterator[SmallSystem]:
    """Two customers with some history of every kind, drained."""
    add_sku(engine, "page-capture")
    add_sku(engine, "crawl", price="0.25", pricing=Pricing.MEASURED, hold_quantity=8)
    add_customer(engine, "acme", credits=20)
    add_customer(engine, "globex", credits=3)
    with SmallSystem.on_redis(engine, database_url, redis_client, settings, clock) as container:
        give_history(container)
        container.drain()
        yield container


def give_history(container: SmallSystem) -> None:
    for number in range(5):
        container.bill(f"acme-{number}")
        container.bill(f"globex-{number}", customer="globex")
    crawl = container.admit("crawl", sku="crawl")
    recorder = container.meter.recorder(crawl.sku)
    recorder.record(quantity=30, cost_micros=77, subject="https://a.example/")
    container.meter.settle(crawl, recorder)
    failed = container.admit("failed")
    recorder = container.meter.recorder(failed.sku)
    recorder.record(cost_micros=11)
    container.meter.fail(failed, recorder, ReleaseCause.EXCEPTION)
    container.admit("still-running")


def run(container: SmallSystem) -> list[Discrepancy]:
    return container.invariant_checks.run(SINCE)


def kinds(found: list[Discrepancy]) -> set[DiscrepancyKind]:
    return {discrepancy.kind for discrepancy in found}


def plant_line(engine: sa.Engine, **fields: object) -> None:
    """Write a line into the log as no writer would: without its rollup."""
    event = make_event(**fields)
    names = {"customer": "customer_id", "sku": "sku_id"}
    row = {names.get(name, name): getattr(event, name) for name in FIELDS if name != "outcome"}
    with engine.begin() as connection:
        connection.execute(
            usage_events.insert().values(
                **row, outcome=event.outcome.value, fingerprint=event.fingerprint()
            )
        )


def test_a_healthy_system_has_no_discrepancy(container: SmallSystem):
    assert run(container) == []


def test_the_history_is_one_that_could_have_gone_wrong(container: SmallSystem):
    with container.engine.connect() as connection:
        outcomes = set(connection.scalars(sa.select(usage_hourly.c.outcome)))

    assert outcomes == {"succeeded", "failed", "denied"}
    assert len(container.quota.open_holds()) == 1


def test_what_is_not_drained_shows_until_it_is(container: SmallSystem):
    container.bill("on-its-way")

    on_its_way = run(container)
    container.drain()

    assert kinds(on_its_way) == {DiscrepancyKind.SETTLED, DiscrepancyKind.AVAILABLE}
    assert run(container) == []


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("settled", {DiscrepancyKind.SETTLED, DiscrepancyKind.AVAILABLE}),
        ("held", {DiscrepancyKind.AVAILABLE}),
        ("granted", {DiscrepancyKind.GRANTED, DiscrepancyKind.AVAILABLE}),
    ],
)
@pytest.mark.parametrize("by", [1, -1])
def test_a_balance_off_by_one_microcredit_is_found(
    container: SmallSystem, redis_client: redis.Redis, settings: Settings,
    field: str, by: int, expected: set[DiscrepancyKind],
):  # fmt: skip
    redis_client.hincrby(RedisKeys(settings.redis_prefix).account("acme"), field, by)

    found = run(container)

    assert kinds(found) == expected
    assert {discrepancy.customer for discrepancy in found} == {"acme"}
    assert all(abs(discrepancy.found - discrepancy.expected) == 1 for discrepancy in found)


def test_a_forced_rebuild_mends_what_redis_had_wrong(
    container: SmallSystem, redis_client: redis.Redis, settings: Settings
):
    account = RedisKeys(settings.redis_prefix).account("acme")
    for field in ("settled", "held", "granted"):
        redis_client.hincrby(account, field, 5)
    assert run(container)

    container.account_loader.rebuild("acme", force=True)

    assert run(container) == []


def test_a_balance_below_zero_is_found(
    container: SmallSystem, redis_client: redis.Redis, settings: Settings
):
    redis_client.hset(RedisKeys(settings.redis_prefix).account("globex"), "granted", 2 * CREDIT)

    negative = [d for d in run(container) if d.kind is DiscrepancyKind.NEGATIVE]

    assert [(d.customer, d.found) for d in negative] == [("globex", -CREDIT)]


def test_a_customer_whose_balance_redis_lost_is_no_discrepancy(
    container: SmallSystem, redis_client: redis.Redis, settings: Settings
):
    redis_client.delete(RedisKeys(settings.redis_prefix).account("globex"))

    assert run(container) == []


@pytest.mark.parametrize(
    "column", ["events", "quantity", "amount_microcredits", "shortfall_microcredits", "cost_micros"]
)
def test_a_rollup_edited_by_hand_is_found(container: SmallSystem, column: str):
    c = usage_hourly.c
    with container.engine.begin() as connection:
        edited = connection.execute(
            sa.update(usage_hourly)
            .where(c.customer_id == "acme", c.sku_id == "crawl")
            .values({column: c[column] + 1})
        )
    assert edited.rowcount == 1

    found = run(container)

    assert kinds(found) == {DiscrepancyKind.ROLLUP}
    assert any("crawl succeeded" in discrepancy.detail for discrepancy in found)


def test_a_rollup_that_vanished_and_one_that_was_invented_are_found(container: SmallSystem):
    c = usage_hourly.c
    with container.engine.begin() as connection:
        connection.execute(sa.delete(usage_hourly).where(c.sku_id == "crawl"))
        connection.execute(
            usage_hourly.insert().values(
                customer_id="globex", hour=hour_floor(NOW), sku_id="page-capture",
                outcome="failed", reason="exception", events=1, quantity=0,
                amount_microcredits=0, shortfall_microcredits=0, cost_micros=0,
            )
        )  # fmt: skip

    details = [discrepancy.detail for discrepancy in run(container)]

    assert any("crawl" in detail and "rollup None" in detail for detail in details)
    assert any("failed exception" in detail and "log None" in detail for detail in details)


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5, minutes=45))])
def test_rollups_are_compared_by_whole_hours_even_if_asked_from_within_one(
    container: SmallSystem, zone: tzinfo
):
    since = (NOW - timedelta(minutes=20)).astimezone(zone)

    assert container.invariant_checks.run(since) == []


def test_a_task_billed_twice_is_found(container: SmallSystem):
    later = NOW + timedelta(seconds=1)
    plant_line(
        container.engine, task_id="acme-0", metered_at=later,
        id=event_id("acme-0", "page-capture", later),
    )  # fmt: skip

    duplicates = [d for d in run(container) if d.kind is DiscrepancyKind.DUPLICATE]

    assert [(d.customer, d.expected, d.found) for d in duplicates] == [("acme", 1, 2)]
    assert duplicates[0].detail == "task acme-0, line page-capture"
    assert {DiscrepancyKind.ROLLUP, DiscrepancyKind.SETTLED} <= kinds(run(container))


@pytest.mark.parametrize("figures", [{"cost_micros": 4}, {"quantity": 4}])
def test_a_refused_task_that_left_something_behind_is_found(
    container: SmallSystem, figures: dict[str, int]
):
    fields: dict[str, Any] = {
        "task_id": "refused",
        "line": denied_line("page-capture", DenialReason.BUDGET_EXCEEDED),
        "outcome": Outcome.DENIED,
        "reason": DenialReason.BUDGET_EXCEEDED.value,
        "quantity": 0,
        "amount_microcredits": 0,
    }
    plant_line(container.engine, **(fields | figures))

    ran = [d for d in run(container) if d.kind is DiscrepancyKind.DENIED_BUT_RAN]

    assert [(d.customer, d.found, d.detail) for d in ran] == [("acme", 4, "task refused")]


def test_a_line_from_before_the_asked_instant_is_left_to_the_totals(container: SmallSystem):
    plant_line(
        container.engine, metered_at=NOW - timedelta(days=3), outcome=Outcome.DENIED, cost_micros=4,
        quantity=0, amount_microcredits=0,
    )  # fmt: skip

    assert run(container) == []
    assert DiscrepancyKind.DENIED_BUT_RAN in kinds(
        container.invariant_checks.run(NOW - timedelta(days=4))
    )


def overdue_at(container: SmallSystem, instant_ms: int) -> list[Discrepancy]:
    return InvariantChecks(container.engine, container.quota, ManualClock(from_ms(instant_ms))).run(
        SINCE
    )


def test_no_question_reads_the_log_from_before_the_asked_instant(container: SmallSystem):
    asked: list[str] = []

    def remember(*arguments: Any) -> None:
        asked.append(arguments[2])

    sa.event.listen(container.engine, "before_cursor_execute", remember)
    try:
        run(container)
    finally:
        sa.event.remove(container.engine, "before_cursor_execute", remember)

    of_the_log = [statement for statement in asked if "FROM usage_events" in statement]
    assert len(of_the_log) > 3
    assert all("usage_events.id >=" in statement for statement in of_the_log)


def test_a_hold_that_outlived_its_time_and_a_sweep_is_found(container: SmallSystem):
    (hold,) = container.quota.open_holds()
    due_ms = hold.expires_at_ms + SWEEP_GRACE // timedelta(milliseconds=1)

    assert overdue_at(container, due_ms) == []
    (overdue,) = overdue_at(container, due_ms + 1)

    assert (overdue.kind, overdue.customer) == (DiscrepancyKind.OVERDUE_HOLD, "acme")
    assert overdue.found == CREDIT
    assert "task still-running" in overdue.detail


def test_grants_that_the_fence_has_not_counted_are_found(container: SmallSystem):
    with container.engine.begin() as connection:
        connection.execute(
            grants.insert().values(customer_id="acme", amount_microcredits=7, reference="by hand")
        )

    found = run(container)

    assert kinds(found) == {DiscrepancyKind.GRANTED, DiscrepancyKind.AVAILABLE}
    assert {(d.expected, d.found) for d in found if d.kind is DiscrepancyKind.GRANTED} == {
        (20 * CREDIT + 7, 20 * CREDIT)
    }


def test_a_fence_edited_by_hand_is_found(container: SmallSystem):
    c = quota_fences.c
    with container.engine.begin() as connection:
        connection.execute(
            sa.update(quota_fences)
            .where(c.customer_id == "globex")
            .values(granted_microcredits=c.granted_microcredits - 1)
        )

    (discrepancy,) = run(container)

    assert (discrepancy.kind, discrepancy.customer) == (DiscrepancyKind.GRANTED, "globex")


def test_looking_changes_nothing(
    container: SmallSystem, redis_client: redis.Redis, settings: Settings
):
    def everything() -> dict[bytes, bytes | None]:
        keys = redis_client.scan_iter(match=f"{settings.redis_prefix}:*", count=1000)
        return {key: redis_client.dump(key) for key in sorted(keys)}

    before = everything()
    run(container)

    assert everything() == before


def test_redis_away_is_said_and_not_taken_for_a_discrepancy(
    container: SmallSystem, settings: Settings
):
    nowhere = redis.Redis(port=1, socket_connect_timeout=0.2, retry=None)
    quota = RedisQuotaStore(
        nowhere, prefix=settings.redis_prefix, hold_record_ttl_seconds=1, quarantine_seconds=0
    )

    with pytest.raises(QuotaUnavailable):
        InvariantChecks(container.engine, quota, container.clock).run(SINCE)
