"""The hourly job on real servers: every fault that was planted is found, repaired, and counted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from support import add_customer, add_sku, open_member

from billing.container import Container
from billing.core.admission import Admission, TaskFacts
from billing.core.credit_lease import LEASE_PREFIX, LeaseOutcome, LeaseRequest
from billing.health.prometheus import exposition
from billing.postgres.schema import usage_hourly
from billing.reconciliation.discrepancies import DiscrepancyState, DiscrepancyStore
from billing.redis.keys import SHARDS, shard_of
from billing.settings import Settings
from workers.app import make_app

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis, pytest.mark.postgres]

CREDIT = 1_000_000
LEASE = f"{LEASE_PREFIX}of-a-process"
CUSTOMERS = ("off-by-one", "lost-settle", "orphan", "edited", "removed")


@dataclass
class Plant:
    """A whole installation in one process: relay, consumer, and the job as a worker runs it."""

    app: Any
    container: Container
    client: redis.Redis

    def admit(self, customer: str, task_id: str) -> Admission:
        facts = TaskFacts(task_id=task_id, customer=customer, metered_at=self.container.clock.now())
        return self.container.meter.admit(facts, "page", None)

    def bill(self, customer: str, task_id: str) -> None:
        admission = self.admit(customer, task_id)
        self.container.meter.settle(admission, self.container.meter.recorder(admission.sku))

    def relay(self) -> None:
        relay = self.container.relay()
        while relay.run_once():
            pass

    def logged(self) -> int:
        with self.container.engine.connect() as connection:
            return int(connection.exec_driver_sql("SELECT count(*) FROM usage_events").scalar_one())

    def wait_until_logged(self, count: int) -> None:
        wait = threading.Event()
        for _ in range(600):
            if self.logged() == count:
                return
            wait.wait(0.05)
        raise AssertionError(f"{self.logged()} of {count} logged")

    def check(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.app.tasks["billing.check_balances"].apply().get()
        return found

    def figures(self) -> dict[str, float]:
        lines = exposition(self.container).decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}


@pytest.fixture
def plant(settings: Settings, engine: sa.Engine, redis_client: redis.Redis) -> Iterator[Plant]:
    """Five customers with three tasks each in the log, and work under way."""
    add_sku(engine, "page", price=1)
    for customer in CUSTOMERS:
        add_customer(engine, customer, credits=1000)
    app = make_app(settings)
    app.loader.import_default_modules()
    container: Container = app.metering.container
    plant = Plant(app, container, redis_client)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        consuming = pool.submit(container.consumer().run, stop)
        try:
            for customer in CUSTOMERS:
                for number in range(3):
                    plant.bill(customer, f"{customer}-{number}")
            plant.relay()
            plant.wait_until_logged(3 * len(CUSTOMERS))
            yield plant
        finally:
            stop.set()
            consuming.result(timeout=30)
    container.close()
    app.close()


def lease(plant: Plant, customer: str) -> None:
    request = LeaseRequest(
        customer=customer, sku="page", lease_id=LEASE, number=1, keep_microcredits=0,
        wish_microcredits=20 * CREDIT, least_microcredits=CREDIT, ttl_seconds=600,
    )  # fmt: skip
    grant = plant.container.quota.lease(request)
    assert (grant.outcome, grant.granted_microcredits) == (LeaseOutcome.GRANTED, 20 * CREDIT)


def forget_the_settle_of(plant: Plant, customer: str, task_id: str) -> None:
    """Bill a task, let its event be logged, and give Redis back what it had before the settle."""
    admission, keys = plant.admit(customer, task_id), plant.container.keys
    names = [
        keys.account(customer),
        keys.hold(customer, task_id),
        keys.customer_holds(customer),
    ]
    kept = {name: plant.client.dump(name) for name in names}
    member, shard = open_member(customer, task_id), keys.open(shard_of(customer))
    due_ms = plant.client.zscore(shard, member)
    plant.container.meter.settle(admission, plant.container.meter.recorder(admission.sku))
    plant.relay()
    plant.wait_until_logged(3 * len(CUSTOMERS) + 1)
    for name, value in kept.items():
        assert value is not None
        plant.client.restore(name, 0, value, replace=True)
    assert due_ms is not None
    plant.client.zadd(shard, {member: due_ms})


def remove_from_the_outbox(plant: Plant, customer: str, task_id: str) -> None:
    plant.bill(customer, task_id)
    entries = [
        entry
        for entry in plant.container.outbox.read(range(SHARDS), 1000)
        if entry.event.task_id == task_id
    ]
    assert len(entries) == 1
    plant.container.outbox.remove(entries)


def test_the_hourly_check_finds_and_repairs_every_planted_fault(plant: Plant):
    container, keys = plant.container, plant.container.keys
    before = plant.figures()
    assert plant.check() == []
    plant.admit("off-by-one", "still-running")
    lease(plant, "off-by-one")

    plant.client.hincrby(keys.account("off-by-one"), "settled", 1)
    forget_the_settle_of(plant, "lost-settle", "forgotten")
    plant.admit("orphan", "vanished")
    plant.client.delete(keys.hold("orphan", "vanished"))
    with container.engine.begin() as connection:
        connection.execute(
            sa.update(usage_hourly)
            .where(usage_hourly.c.customer_id == "edited")
            .values(amount_microcredits=usage_hourly.c.amount_microcredits + 5)
        )
    remove_from_the_outbox(plant, "removed", "never-sent")

    # Looking alone tells, and counts, and changes nothing.
    assert {f.state for f in container.repair.run(since(), repair=False)} == {
        DiscrepancyState.FOUND
    }
    figures = plant.figures()
    for kind in ("settled", "available", "rollup", "lost_event"):
        assert figures[open_of(kind)] > 0
        assert before[open_of(kind)] == 0

    found = plant.check()

    assert {each["state"] for each in found} == {"repaired"}
    causes = {(each["customer"], each["kind"]): each["cause"] for each in found}
    assert causes["off-by-one", "settled"] == "redis_ahead"
    assert causes["lost-settle", "settled"] == "redis_behind"
    assert ("orphan", "available") in causes
    assert causes["edited", "rollup"] == "edited"
    assert causes["removed", "lost_event"] == "event_lost"
    assert causes["removed", "settled"] == "event_lost"
    assert container.invariant_checks.run(since()) == []
    assert plant.check() == []


def test_work_under_way_keeps_its_holds_and_leases_through_a_repair(plant: Plant):
    container = plant.container
    running = plant.admit("off-by-one", "still-running")
    lease(plant, "off-by-one")
    plant.client.hincrby(container.keys.account("off-by-one"), "settled", 1)

    assert {each["state"] for each in plant.check()} == {"repaired"}

    account = container.quota.account("off-by-one")
    assert account is not None
    assert account.epoch == 2
    assert account.held_microcredits == 21 * CREDIT
    assert {hold.task_id for hold in container.quota.open_holds("off-by-one")} == {
        "still-running",
        LEASE,
    }
    container.meter.settle(running, container.meter.recorder(running.sku))
    plant.relay()
    plant.wait_until_logged(3 * len(CUSTOMERS) + 1)
    assert plant.check() == []


def test_a_lease_whose_record_was_lost_is_an_orphan_like_any_hold(plant: Plant):
    container = plant.container
    lease(plant, "orphan")
    plant.client.delete(container.keys.hold("orphan", LEASE))

    found = plant.check()

    assert {each["state"] for each in found} == {"repaired"}
    assert f"orphan hold of task {LEASE}" in found[0]["note"]
    assert plant.client.hget(container.keys.account("orphan"), "leases") == b"0"
    assert plant.check() == []


def test_each_discrepancy_is_a_row_and_a_figure_that_an_operator_can_read(plant: Plant):
    plant.client.hincrby(plant.container.keys.account("off-by-one"), "settled", 1)
    ever = "weighbridge_discrepancies_total"
    assert plant.figures()[f'{ever}{{kind="settled"}}'] == 0

    plant.container.repair.run(since(), repair=False)

    figures = plant.figures()
    assert figures[open_of("settled")] == figures[f'{ever}{{kind="settled"}}'] == 1
    assert figures["weighbridge_discrepancy_oldest_open_seconds"] > 0
    plant.check()
    figures = plant.figures()
    assert figures[open_of("settled")] == 0
    assert figures[f'{ever}{{kind="settled"}}'] == 1
    assert figures["weighbridge_discrepancy_oldest_open_seconds"] == 0
    (row, *_) = DiscrepancyStore(plant.container.engine).list(ended=True)
    assert (row.customer, row.state) == ("off-by-one", DiscrepancyState.REPAIRED)


def since() -> datetime:
    return datetime.now(UTC) - timedelta(days=2)


def open_of(kind: str) -> str:
    return f'weighbridge_discrepancies_open{{kind="{kind}"}}'
