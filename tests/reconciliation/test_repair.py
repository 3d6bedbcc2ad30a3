"""Every planted fault is found, put right from PostgreSQL, and written down with its cause."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa
from small_system import SmallSystem
from support import NOW, add_customer, add_sku, open_member

from billing.core.clock import ManualClock
from billing.core.periods import hour_floor, month_of
from billing.core.usage_event import UsageEvent
from billing.postgres.partition_detaching import detach
from billing.postgres.schema import grants, usage_hourly
from billing.quota.hold_repair import HoldRepair
from billing.reconciliation.discrepancies import (
    DiscrepancyState,
    DiscrepancyStore,
    RecordedDiscrepancy,
)
from billing.reconciliation.in_flight import InFlightUsage
from billing.reconciliation.invariants import Discrepancy, DiscrepancyKind
from billing.reconciliation.remedies import (
    DiscrepancyCause,
    Remedy,
    UnloggedUsage,
    cause_of,
    must_wait,
    remedy_of,
)
from billing.reconciliation.repair import Repair
from billing.redis.keys import RedisKeys, shard_of
from billing.settings import Settings
from billing.transport.journal import Journal
from billing.transport.outbox import RedisOutbox

CREDIT = 1_000_000
SINCE = NOW - timedelta(days=2)


@dataclass
class Bench:
    """A drained system, and a repair of it."""

    container: SmallSystem
    client: redis.Redis
    keys: RedisKeys
    journal: Journal
    depth: int | None = 0

    def __post_init__(self) -> None:
        self.outbox = RedisOutbox(self.client, self.keys)
        self.record = DiscrepancyStore(self.container.engine)
        self.between_readings: Callable[[], None] = lambda: None
        self.repair = Repair(
            self.container.engine,
            quota=self.container.quota,
            checks=self.container.invariant_checks,
            in_flight=InFlightUsage(
                self.container.engine, self.outbox, self.journal, lambda: self.depth
            ),
            account_loader=self.container.account_loader,
            hold_repair=HoldRepair(self.client, self.keys),
            publisher=lambda: _Logs(self.container),
            discrepancies=self.record,
            clock=self.container.clock,
            wait=lambda _: self.between_readings(),
        )

    def bill(self, task_id: str) -> None:
        """As a worker: into the outbox, then into the node's journal."""
        self.container.bill(task_id)
        self.journal.append(self.container.journal.events)
        self.container.journal.events.clear()

    def look(self) -> list[RecordedDiscrepancy]:
        return self.repair.run(SINCE, repair=False)

    def mend(self) -> list[RecordedDiscrepancy]:
        return self.repair.run(SINCE, repair=True)

    def off_by(self, field: str, amount: int) -> None:
        self.client.hincrby(self.keys.account("acme"), field, amount)


class _Logs:
    """A publisher whose consumer is quick."""

    def __init__(self, container: SmallSystem) -> None:
        self._system = container

    def publish(self, events: Sequence[UsageEvent]) -> None:
        self._system.log(list(events))

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def bench(
    engine: sa.Engine,
    database_url: str,
    redis_client: redis.Redis,
    settings: Settings,
    clock: ManualClock,
    tmp_path: Path,
) -> Iterator[Bench]:
    add_sku(engine, "page-capture")
    add_customer(engine, "acme", credits=20)
    add_customer(engine, "globex", credits=3)
    with SmallSystem.on_redis(engine, database_url, redis_client, settings, clock) as container:
        journal = Journal(tmp_path / "journal", clock=clock)
        bench = Bench(container, redis_client, RedisKeys(settings.redis_prefix), journal)
        for number in range(5):
            bench.bill(f"acme-{number}")
        container.bill("globex-0", customer="globex")
        container.admit("still-running")
        container.drain()
        assert bench.look() == []
        yield bench


def of(
    findings: list[RecordedDiscrepancy],
) -> set[tuple[DiscrepancyKind, DiscrepancyCause, Remedy, DiscrepancyState]]:
    return {(f.discrepancy.kind, f.cause, f.remedy, f.state) for f in findings}


def test_looking_only_tells_and_writes_down(bench: Bench) -> None:
    bench.off_by("settled", 5)
    found = bench.look()
    assert {f.state for f in found} == {DiscrepancyState.FOUND}
    assert bench.container.invariant_checks.run(SINCE)
    assert {row.kind for row in bench.record.list()} == {
        DiscrepancyKind.SETTLED,
        DiscrepancyKind.AVAILABLE,
    }
    assert bench.record.open() == {DiscrepancyKind.SETTLED: 1, DiscrepancyKind.AVAILABLE: 1}
    bench.look()
    assert {row.times_seen for row in bench.record.list()} == {2}


@pytest.mark.parametrize("by", [1, -1])
def test_a_balance_off_by_one_is_rebuilt_and_open_holds_stay(bench: Bench, by: int) -> None:
    bench.off_by("settled", by)
    cause = DiscrepancyCause.REDIS_AHEAD if by > 0 else DiscrepancyCause.REDIS_BEHIND
    found = bench.mend()
    assert (DiscrepancyKind.SETTLED, cause, Remedy.REBUILD, DiscrepancyState.REPAIRED) in of(found)
    assert {f.state for f in found} == {DiscrepancyState.REPAIRED}
    assert bench.container.invariant_checks.run(SINCE) == []
    assert [hold.task_id for hold in bench.container.quota.open_holds("acme")] == ["still-running"]
    assert bench.record.open() == {}


def test_a_lost_settle_is_charged_again_from_the_log(bench: Bench) -> None:
    bench.off_by("settled", -2 * CREDIT)
    assert (
        DiscrepancyKind.SETTLED,
        DiscrepancyCause.REDIS_BEHIND,
        Remedy.REBUILD,
        DiscrepancyState.REPAIRED,
    ) in of(bench.mend())
    account = bench.container.quota.account("acme")
    assert account is not None
    assert account.settled_microcredits == 5 * CREDIT


def test_an_outbox_entry_that_was_removed_is_published_from_the_journal(bench: Bench) -> None:
    bench.bill("lost")
    (entry,) = bench.outbox.read([shard_of("acme")], 10)
    bench.outbox.remove([entry])
    found = bench.mend()
    assert (
        DiscrepancyKind.LOST_EVENT,
        DiscrepancyCause.EVENT_LOST,
        Remedy.PUBLISH_AGAIN,
        DiscrepancyState.REPAIRED,
    ) in of(found)
    assert (
        DiscrepancyKind.SETTLED,
        DiscrepancyCause.EVENT_LOST,
        Remedy.REBUILD,
        DiscrepancyState.REPAIRED,
    ) in of(found)
    assert bench.container.invariant_checks.run(SINCE) == []
    # The customer was charged before and after: it is the log that was mended, not the balance.
    account = bench.container.quota.account("acme")
    assert account is not None
    assert (account.settled_microcredits, account.epoch) == (6 * CREDIT, 1)


def test_an_event_on_its_way_is_not_lost(bench: Bench) -> None:
    bench.bill("in-the-outbox")
    assert DiscrepancyKind.LOST_EVENT not in {f.discrepancy.kind for f in bench.look()}
    (entry,) = bench.outbox.read([shard_of("acme")], 10)
    bench.outbox.remove([entry])
    bench.depth = 1
    assert DiscrepancyKind.LOST_EVENT not in {f.discrepancy.kind for f in bench.look()}


@pytest.mark.parametrize("depth", [1, None])
def test_credits_are_not_given_back_while_usage_may_be_on_its_way(
    bench: Bench, depth: int | None
) -> None:
    bench.off_by("settled", 5)
    bench.depth = depth
    (waiting,) = [f for f in bench.mend() if f.discrepancy.kind is DiscrepancyKind.SETTLED]
    assert waiting.state is DiscrepancyState.WAITING
    assert "on its way" in waiting.note
    bench.depth = 0
    assert {f.state for f in bench.mend()} == {DiscrepancyState.REPAIRED}


def test_what_is_between_outbox_and_log_is_no_discrepancy_once_it_has_arrived(
    bench: Bench,
) -> None:
    bench.bill("slow")
    bench.between_readings = lambda: bench.container.drain() and None
    assert bench.mend() == []


@pytest.mark.parametrize("by", [1, -1])
def test_a_wrong_sum_of_what_is_held_is_mended_in_place(bench: Bench, by: int) -> None:
    bench.off_by("held", by)
    found = bench.mend()
    assert {(f.remedy, f.state) for f in found} == {(Remedy.MEND_HOLDS, DiscrepancyState.REPAIRED)}
    account = bench.container.quota.account("acme")
    assert account is not None
    assert (account.held_microcredits, account.epoch) == (CREDIT, 1)


def test_an_orphan_hold_is_let_go(bench: Bench) -> None:
    bench.client.delete(bench.keys.hold("acme", "still-running"))
    before = bench.container.quota.account("acme")
    found = bench.mend()
    assert {f.state for f in found} == {DiscrepancyState.REPAIRED}
    assert "orphan hold of task still-running" in found[0].note
    account = bench.container.quota.account("acme")
    assert account is not None
    assert before is not None
    assert account.held_microcredits == 0
    # The budgets of the month get it back as well.
    assert before.spent["*"] - account.spent["*"] == CREDIT


def test_a_hold_that_no_sweep_would_find_is_found_and_swept(bench: Bench) -> None:
    member = open_member("acme", "still-running")
    shard = bench.keys.open(shard_of("acme"))
    bench.client.zrem(shard, member)
    bench.client.hset(bench.keys.hold("acme", "still-running"), "expires_ms", "1")
    found = bench.mend()
    assert "unswept hold of task still-running" in found[0].note
    assert bench.container.quota.open_holds("acme") == []
    account = bench.container.quota.account("acme")
    assert account is not None
    assert account.held_microcredits == 0


@pytest.mark.parametrize("edit", ["raised", "deleted", "invented"])
def test_a_rollup_edited_by_hand_is_summed_up_again(bench: Bench, edit: str) -> None:
    c = usage_hourly.c
    with bench.container.engine.begin() as connection:
        if edit == "raised":
            connection.execute(sa.update(usage_hourly).values(events=c.events + 7, quantity=1))
        elif edit == "deleted":
            connection.execute(sa.delete(usage_hourly).where(c.customer_id == "acme"))
        else:
            connection.execute(
                usage_hourly.insert().values(
                    customer_id="globex", hour=hour_floor(NOW), sku_id="page-capture",
                    outcome="failed", reason="exception", events=1, quantity=0,
                    amount_microcredits=9, shortfall_microcredits=0, cost_micros=0,
                )
            )  # fmt: skip
    found = bench.mend()
    assert {f.state for f in found if f.discrepancy.bucket} == {DiscrepancyState.REPAIRED}
    assert {f.cause for f in found if f.discrepancy.bucket} == {DiscrepancyCause.EDITED}
    assert bench.container.invariant_checks.run(SINCE) == []


def test_a_rollup_is_repaired_while_the_log_is_written(bench: Bench) -> None:
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set() and number < 200:
            number += 1
            bench.container.bill(f"globex-more-{number}", customer="globex")
            bench.container.drain()

    with bench.container.engine.begin() as connection:
        connection.execute(sa.update(usage_hourly).values(events=usage_hourly.c.events + 7))
    writer = threading.Thread(target=write)
    writer.start()
    try:
        bench.mend()
    finally:
        stop.set()
        writer.join()
    assert bench.mend() == []


def test_grants_the_fence_has_not_counted_reach_redis(bench: Bench) -> None:
    with bench.container.engine.begin() as connection:
        connection.execute(
            grants.insert().values(customer_id="acme", amount_microcredits=7, reference="by hand")
        )
    assert {f.state for f in bench.mend()} == {DiscrepancyState.REPAIRED}
    account = bench.container.quota.account("acme")
    assert account is not None
    assert account.granted_microcredits == 20 * CREDIT + 7


def test_a_discrepancy_that_went_by_itself_is_written_down_as_gone(bench: Bench) -> None:
    bench.off_by("settled", 5)
    bench.look()
    bench.off_by("settled", -5)
    assert bench.look() == []
    assert bench.record.list() == []
    assert {row.state for row in bench.record.list(ended=True)} == {DiscrepancyState.GONE}


# -- rules ---------------------------------------------------------------------------------------


def discrepancy(kind: DiscrepancyKind, expected: int = 10, found: int = 12) -> Discrepancy:
    return Discrepancy(kind=kind, customer="acme", expected=expected, found=found)


@pytest.mark.parametrize("kind", DiscrepancyKind)
def test_every_kind_has_a_remedy(kind: DiscrepancyKind) -> None:
    assert remedy_of(discrepancy(kind)) in Remedy


@pytest.mark.parametrize(
    ("kind", "found", "lost", "cause"),
    [
        (DiscrepancyKind.SETTLED, 12, 0, DiscrepancyCause.REDIS_AHEAD),
        (DiscrepancyKind.SETTLED, 12, 2, DiscrepancyCause.EVENT_LOST),
        (DiscrepancyKind.SETTLED, 12, 3, DiscrepancyCause.REDIS_AHEAD),
        (DiscrepancyKind.SETTLED, 8, 0, DiscrepancyCause.REDIS_BEHIND),
        (DiscrepancyKind.ROLLUP, 12, 0, DiscrepancyCause.EDITED),
        (DiscrepancyKind.OVERDUE_HOLD, 12, 0, DiscrepancyCause.HOLD_LEFT),
        (DiscrepancyKind.DUPLICATE, 12, 0, DiscrepancyCause.UNKNOWN),
    ],
)
def test_the_cause_follows_from_the_figures(
    kind: DiscrepancyKind, found: int, lost: int, cause: DiscrepancyCause
) -> None:
    assert cause_of(discrepancy(kind, found=found), lost) is cause


@pytest.mark.parametrize(
    ("found", "in_outbox", "in_queue", "waits"),
    [
        (12, 0, 0, False),
        (12, 1, 0, True),
        (12, 0, 1, True),
        (12, 0, None, True),
        (8, 1, 1, False),
    ],
)
def test_only_a_repair_that_gives_credits_back_waits_for_what_is_on_its_way(
    found: int, in_outbox: int, in_queue: int | None, waits: bool
) -> None:
    way = UnloggedUsage(in_outbox=in_outbox, in_queue=in_queue)
    assert must_wait(discrepancy(DiscrepancyKind.SETTLED, found=found), way) is waits
    assert not must_wait(discrepancy(DiscrepancyKind.ROLLUP, found=found), way)


def test_a_rollup_whose_month_leaves_the_log_is_not_summed_up(bench: Bench) -> None:
    c = usage_hourly.c
    with bench.container.engine.begin() as connection:
        connection.execute(sa.update(usage_hourly).values(quantity=c.quantity + 7))
        before = connection.execute(sa.select(usage_hourly).order_by(*usage_hourly.c)).all()
    month = month_of(bench.container.clock.now())

    def leave() -> None:
        bench.between_readings = lambda: None
        detach(bench.container.engine, month)
        # The record of it comes after: a run that reads in between still counts on the lines.

    bench.between_readings = leave
    found = {f.discrepancy: f for f in bench.mend() if f.discrepancy.bucket}
    assert found
    assert {f.state for f in found.values()} == {DiscrepancyState.WAITING}
    assert all("archived" in f.note for f in found.values())
    with bench.container.engine.connect() as connection:
        after = connection.execute(sa.select(usage_hourly).order_by(*usage_hourly.c)).all()
    assert after == before


@pytest.mark.parametrize("tampered", ["changed", "removed"])
def test_a_rollup_is_not_made_to_agree_with_a_log_that_was_tampered_with(
    bench: Bench, tampered: str
) -> None:
    statement = {
        "changed": "UPDATE usage_events SET amount_microcredits = 5 WHERE task_id = 'acme-1'",
        "removed": "DELETE FROM usage_events WHERE task_id = 'acme-1'",
    }[tampered]
    query = sa.select(usage_hourly).order_by(*usage_hourly.c)
    with bench.container.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        assert connection.exec_driver_sql(statement).rowcount == 1
        before = connection.execute(query).all()
    (found,) = [f for f in bench.mend() if f.discrepancy.bucket]
    assert (found.cause, found.remedy, found.state) == (
        DiscrepancyCause.LOG_CHANGED,
        Remedy.BY_HAND,
        DiscrepancyState.FOUND,
    )
    assert f"billing verify: {tampered}" in found.note
    with bench.container.engine.connect() as connection:
        # What is billed is still what was used.
        assert connection.execute(query).all() == before
    account = bench.container.quota.account("acme")
    assert account is not None
    assert account.settled_microcredits == 5 * CREDIT
