"""Beat's jobs: fired twice, at once or late, they do what is due and no harm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from celery import Celery
from celery.beat import Scheduler
from celery.schedules import crontab
from support import add_customer, add_sku, make_event

from billing.container import Container
from billing.core.admission import TaskFacts
from billing.core.reservation import HoldRequest, HoldState, ReserveOutcome
from billing.core.usage_event import Outcome
from billing.postgres.locks import AdvisoryLock, session_lock
from billing.postgres.partitions import existing_partitions
from billing.postgres.schema import usage_hourly
from billing.reconciliation.invariants import Discrepancy
from billing.redis.keys import SHARDS, shard_of
from billing.settings import Settings
from workers.app import make_app
from workers.beat_jobs import SWEEP_LIMIT
from workers.beat_schedule import BEAT_SCHEDULE

CREDIT = 1_000_000
AT_ONCE = 4


class Bench:
    """Several workers' worth of apps on the same servers; jobs run eagerly in this process."""

    def __init__(self, settings: Settings, client: redis.Redis) -> None:
        self.apps: list[Celery] = [make_app(settings) for _ in range(AT_ONCE)]
        for app in self.apps:
            app.loader.import_default_modules()
        self.client = client
        self.container: Container = self.container_of(self.apps[0])

    @staticmethod
    def container_of(app: Any) -> Container:
        container: Container = app.metering.container
        return container

    def fire(self, job: str, app: Celery | None = None) -> Any:
        """One run of a job, as a worker would; what it returned."""
        return (app or self.apps[0]).tasks[f"billing.{job}"].apply().get()

    def fire_at_once(self, job: str) -> list[Any]:
        """The job in several workers in the same moment."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda app: self.fire(job, app), self.apps))

    def hold(self, task_id: str, customer: str = "acme") -> None:
        """Open a hold of one credit."""
        facts = TaskFacts(task_id=task_id, customer=customer, metered_at=self.container.clock.now())
        assert self.container.meter.admit(facts, "page", None).admitted

    def bill(self, task_id: str) -> None:
        """The way of one task up to the outbox."""
        facts = TaskFacts(task_id=task_id, customer="acme", metered_at=self.container.clock.now())
        admission = self.container.meter.admit(facts, "page", None)
        self.container.meter.settle(admission, self.container.meter.recorder(admission.sku))

    def log(self) -> None:
        """Log what is in the outbox, as relay and consumer do."""
        while entries := self.container.outbox.read(range(SHARDS), 1000):
            result = self.container.writer.write([entry.event.to_wire() for entry in entries])
            assert not result.dead
            self.container.outbox.remove(entries)

    def let_time_pass(self, *task_ids: str) -> None:
        """As if the lives of these holds were over."""
        key = self.container.keys.open(shard_of("acme"))
        self.client.zadd(key, {f"acme|{task_id}": 1 for task_id in task_ids})

    def held(self) -> int:
        account = self.container.quota.account("acme")
        assert account is not None
        return account.held_microcredits

    def close(self) -> None:
        for app in self.apps:
            self.container_of(app).close()
            app.close()


@pytest.fixture
def bench(settings: Settings, engine: sa.Engine, redis_client: redis.Redis) -> Iterator[Bench]:
    add_sku(engine, "page", price=1)
    add_customer(engine, "acme", credits=2000)
    add_customer(engine, "globex", credits=10)
    bench = Bench(settings, redis_client)
    yield bench
    bench.close()


# -- the schedule ------------------------------------------------------------------------------


def seconds_between(times: Any) -> float:
    """The shortest pause between two firings of a schedule within a day."""
    if not isinstance(times, crontab):
        return float(times.run_every.total_seconds())
    minutes = sorted(60 * hour + minute for hour in times.hour for minute in times.minute)
    following = [*minutes[1:], minutes[0] + 24 * 60]
    return 60.0 * min(after - before for before, after in zip(minutes, following, strict=True))


def test_beat_finds_every_job_that_the_schedule_names(bench: Bench):
    (app, *_) = bench.apps

    entries = Scheduler(app=app).get_schedule()

    assert set(entries) == set(BEAT_SCHEDULE)
    for entry in entries.values():
        assert entry.task in app.tasks
        # A job that waited until the next one is due is dropped: nothing piles up.
        assert entry.options["expires"] < seconds_between(entry.schedule)


def test_every_job_is_scheduled(bench: Bench):
    jobs = {name for name in bench.apps[0].tasks if name.startswith("billing.")}

    assert jobs == {entry["task"] for entry in BEAT_SCHEDULE.values()}


# -- sweep_holds -------------------------------------------------------------------------------


def test_a_sweep_expires_what_is_over_time_and_nothing_else(bench: Bench):
    for task_id in ("old", "older", "young"):
        bench.hold(task_id)
    bench.let_time_pass("old", "older")

    swept = [bench.fire("sweep_holds"), bench.fire("sweep_holds")]

    assert swept == [2, 0]
    assert bench.held() == CREDIT
    assert [hold.task_id for hold in bench.container.quota.open_holds()] == ["young"]


def test_sweeps_at_once_give_each_hold_back_once(bench: Bench):
    names = [f"task{n}" for n in range(40)]
    for name in names:
        bench.hold(name)
    bench.let_time_pass(*names[:30])

    swept = bench.fire_at_once("sweep_holds")

    assert sum(swept) == 30
    assert bench.held() == 10 * CREDIT


def test_a_sweep_takes_as_many_steps_as_it_needs(bench: Bench):
    bench.hold("first")
    names = [f"task{n}" for n in range(SWEEP_LIMIT + 7)]
    for name in names:
        request = HoldRequest(
            task_id=name, customer="acme", sku="page", amount_microcredits=CREDIT, ttl_seconds=60
        )
        assert bench.container.quota.reserve(request).outcome is ReserveOutcome.HELD
    bench.let_time_pass(*names)

    assert bench.fire("sweep_holds") == SWEEP_LIMIT + 7
    assert bench.held() == CREDIT


def test_a_task_that_settles_after_the_sweep_is_charged_all_the_same(bench: Bench):
    facts = TaskFacts(task_id="slow", customer="acme", metered_at=bench.container.clock.now())
    admission = bench.container.meter.admit(facts, "page", None)
    bench.let_time_pass("slow")
    bench.fire("sweep_holds")
    hold = bench.container.quota.hold("acme", "slow")
    assert hold is not None
    assert hold.state is HoldState.EXPIRED

    bench.container.meter.settle(admission, bench.container.meter.recorder(admission.sku))
    bench.log()

    assert bench.held() == 0
    assert bench.fire("check_balances") == []


# -- ensure_partitions -------------------------------------------------------------------------


def partitions(engine: sa.Engine) -> set[str]:
    with engine.connect() as connection:
        return {partition.name for partition in existing_partitions(connection)}


def drop_newest(engine: sa.Engine) -> str:
    newest = max(partitions(engine))
    with engine.begin() as connection:
        connection.execute(sa.text(f'DROP TABLE "{newest}"'))
    return newest


def test_a_missing_partition_is_made_once_however_often_the_job_fires(
    bench: Bench, engine: sa.Engine
):
    before = partitions(engine)
    missing = drop_newest(engine)

    made = [bench.fire("ensure_partitions"), bench.fire("ensure_partitions")]

    assert made == [[missing], []]
    assert partitions(engine) == before


def test_a_missing_partition_is_made_once_by_jobs_at_once(bench: Bench, engine: sa.Engine):
    before = partitions(engine)
    missing = drop_newest(engine)

    made = bench.fire_at_once("ensure_partitions")

    assert sorted(made) == [[], [], [], [missing]]
    assert partitions(engine) == before


# -- check_balances ----------------------------------------------------------------------------


def test_nothing_is_told_of_a_healthy_system(bench: Bench):
    for n in range(5):
        bench.bill(f"task{n}")
    bench.hold("still running")
    bench.log()

    assert bench.fire("check_balances") == []
    assert bench.fire_at_once("check_balances") == [[]] * AT_ONCE


def test_a_redis_that_forgot_its_newest_settlements_is_not_left_to_the_hour(bench: Bench):
    account = bench.container.keys.account("acme")
    bench.bill("first")
    bench.log()
    assert bench.fire("check_after_loss") == []
    remembered = bench.client.hgetall(account)
    bench.bill("second")
    bench.log()
    bench.client.delete(account)
    bench.client.hset(account, mapping=remembered)

    assert bench.fire("check_after_loss") == [], "the same life of Redis: left to the hourly check"
    # Its name for this life of its data goes with the newest second; a restart does the same.
    bench.client.delete(f"{bench.container.settings.redis_prefix}:relay:marker")
    told = [found for run in bench.fire_at_once("check_after_loss") for found in run]

    assert {(found["kind"], found["customer"]) for found in told} == {
        ("settled", "acme"),
        ("available", "acme"),
    }
    after = bench.container.quota.account("acme")
    assert after is not None
    assert after.settled_microcredits == 2 * CREDIT
    assert bench.fire("check_after_loss") == []


def plant(engine: sa.Engine) -> None:
    """A rollup that is not the sum of its lines."""
    with engine.begin() as connection:
        amount = usage_hourly.c.amount_microcredits
        connection.execute(sa.update(usage_hourly).values(amount_microcredits=amount + 1))


def test_a_planted_discrepancy_is_told_and_put_right(bench: Bench, engine: sa.Engine):
    bench.bill("task")
    bench.log()
    plant(engine)

    told = bench.fire_at_once("check_balances")

    (first, *_) = filter(None, told)
    assert {found["kind"] for found in first} == {"rollup"}
    assert {found["customer"] for found in first} == {"acme"}
    assert (CREDIT, CREDIT + 1) in {(found["expected"], found["found"]) for found in first}
    assert "repaired" in {found["state"] for findings in told for found in findings}
    assert bench.fire("check_balances") == []


def test_without_repairs_a_discrepancy_is_told_and_told_again(
    settings: Settings, redis_client: redis.Redis, bench: Bench, engine: sa.Engine
):
    bench.bill("task")
    bench.log()
    plant(engine)
    looking = Bench(settings.model_copy(update={"reconcile_repairs": False}), redis_client)

    first, *others = looking.fire_at_once("check_balances")

    assert {found["state"] for found in first} == {"found"}
    # It changes nothing: whoever looks later finds the same.
    assert others == [first] * (AT_ONCE - 1)


def test_a_balance_that_somebody_tampered_with_is_told(bench: Bench):
    bench.bill("task")
    bench.log()
    bench.client.hincrby(bench.container.keys.account("acme"), "settled", -CREDIT)

    found = bench.fire("check_balances")

    assert ("settled", CREDIT, 0) in {(one["kind"], one["expected"], one["found"]) for one in found}


class FirstReading:
    """A reconcile that, after its first reading, lets something happen."""

    def __init__(self, container: Container, then: Callable[[], object]) -> None:
        self._checks = container.invariant_checks
        self._then = then
        self.readings: list[list[Discrepancy]] = []
        container.__dict__["invariant_checks"] = self
        # Made from it when it is first needed.
        container.__dict__.pop("repair", None)

    def run(self, since: datetime) -> list[Discrepancy]:
        self.readings.append(self._checks.run(since))
        if len(self.readings) == 1:
            self._then()
        return self.readings[-1]


def test_what_was_only_on_its_way_is_not_told(bench: Bench):
    bench.bill("task")
    reconcile = FirstReading(bench.container, then=bench.log)

    told = bench.fire("check_balances")

    assert {found.kind for found in reconcile.readings[0]} == {"settled", "available"}
    assert reconcile.readings[1:] == [[]]
    assert told == []


def test_a_grant_that_redis_was_not_told_arrives_with_the_check(bench: Bench):
    bench.hold("task")
    bench.container.grants.grant("acme", 7 * CREDIT, "top-up")
    account = bench.container.quota.account("acme")
    assert account is not None
    assert account.granted_microcredits == 2000 * CREDIT

    assert bench.fire_at_once("check_balances") == [[]] * AT_ONCE

    account = bench.container.quota.account("acme")
    assert account is not None
    assert account.granted_microcredits == 2007 * CREDIT


def test_late_usage_that_redis_was_not_told_arrives_with_the_check(bench: Bench):
    bench.hold("task")
    # Published directly while Redis was away, logged, and the telling of it missed.
    facts = TaskFacts(task_id="direct", customer="acme", metered_at=bench.container.clock.now())
    admission = bench.container.meter.admit(facts, "page", None)
    recorder = bench.container.meter.recorder(admission.sku)
    (event,) = recorder.events(
        admission, outcome=Outcome.SUCCEEDED, reason="", currency="USD",
        finished_at=bench.container.clock.now(),
    )  # fmt: skip
    assert bench.container.writer.write([event.to_wire()]).late_customers == {"acme"}

    assert bench.fire("check_balances") == []

    account = bench.container.quota.account("acme")
    assert account is not None
    assert account.settled_microcredits == CREDIT


# -- seal_log ----------------------------------------------------------------------------------


def log_an_hour_that_is_over(bench: Bench, *task_ids: str) -> None:
    earlier = bench.container.clock.now() - timedelta(hours=2)
    events = [make_event(task_id=each, metered_at=earlier, sku="page") for each in task_ids]
    written = bench.container.writer.write([event.to_wire() for event in events])
    assert written.inserted == len(task_ids)


def test_an_hour_that_is_over_is_sealed_once_however_often_the_job_fires(bench: Bench):
    log_an_hour_that_is_over(bench, "one", "two")
    bench.bill("of this hour")
    bench.log()

    done = [bench.fire("seal_log"), bench.fire("seal_log")]

    assert done == [{"seals": 1, "rows": 2, "head": 1}, {"seals": 0, "rows": 0, "head": 1}]
    log_an_hour_that_is_over(bench, "late")
    assert bench.fire("seal_log") == {"seals": 1, "rows": 1, "head": 2}


def test_jobs_at_once_make_one_chain(bench: Bench):
    log_an_hour_that_is_over(bench, *(f"task{n}" for n in range(10)))

    done = bench.fire_at_once("seal_log")

    assert sum(each["rows"] for each in done) == 10
    assert [each.number for each, _ in bench.container.audit.seals()] == [1]
    assert list(bench.container.audit.verifier.chain(None)) == []


def test_a_job_that_finds_another_one_sealing_leaves_it_to_that(bench: Bench):
    log_an_hour_that_is_over(bench, "one")

    with session_lock(bench.container.engine, AdvisoryLock.SEALING) as mine:
        assert mine
        assert bench.fire("seal_log") == {"seals": 0, "rows": 0, "head": None}

    assert bench.fire("seal_log")["rows"] == 1
