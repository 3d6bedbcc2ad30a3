"""Accounts on their way from PostgreSQL to the quota store: billing/quota/account_loader.py."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier, Event

import pytest
import redis
import sqlalchemy as sa
from meter_fakes import CREDIT, FlakyQuota, make_facts
from small_system import SmallSystem
from support import add_customer, add_sku, make_event

from billing.catalog.customers import CustomerStore
from billing.catalog.grants import GrantStore
from billing.catalog.skus import SkuStore
from billing.core.clock import ManualClock
from billing.core.errors import NotFound, QuotaUnavailable
from billing.core.reservation import AccountState, AccountView, LoadOutcome, Settlement
from billing.core.usage_event import UsageEvent
from billing.metering.meter import Meter
from billing.postgres.schema import quota_fences, usage_events
from billing.quota.account_loader import AccountLoader
from billing.quota.memory_store import MemoryQuotaStore
from billing.quota.port import QuotaStore
from billing.settings import Settings

TIMEOUT_SECONDS = 60


@pytest.fixture
def acme(engine: sa.Engine) -> str:
    """A customer with fifteen credits and a SKU of one."""
    add_sku(engine, "page-capture")
    return add_customer(engine, "acme", credits=15)


@pytest.fixture(params=["memory", "redis"])
def container(
    request: pytest.FixtureRequest,
    engine: sa.Engine,
    database_url: str,
    clock: ManualClock,
    acme: str,
) -> Iterator[SmallSystem]:
    """The way of a task on either quota store."""
    del acme
    if request.param == "memory":
        made = SmallSystem(engine, database_url, MemoryQuotaStore(clock), clock)
    else:
        client: redis.Redis = request.getfixturevalue("redis_client")
        settings: Settings = request.getfixturevalue("settings")
        made = SmallSystem.on_redis(engine, database_url, client, settings, clock)
    with made as container:
        yield container


def account_of(container: SmallSystem) -> AccountView:
    account = container.quota.account("acme")
    assert account is not None
    return account


def fence_epoch(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(sa.select(quota_fences.c.epoch)) or 0)


def logged_total(engine: sa.Engine) -> int:
    total = sa.func.coalesce(sa.func.sum(usage_events.c.amount_microcredits), 0)
    with engine.connect() as connection:
        return int(connection.scalar(sa.select(total)) or 0)


def test_a_rebuild_loads_grants_and_what_the_log_has(container: SmallSystem):
    container.log([make_event() for _ in range(4)])

    outcome = container.account_loader.rebuild("acme")

    account = account_of(container)
    assert outcome is LoadOutcome.LOADED
    assert (account.epoch, account.granted_microcredits) == (1, 15 * CREDIT)
    assert account.settled_microcredits == 4 * CREDIT
    assert account.available_microcredits == 11 * CREDIT


def test_a_rebuild_that_finds_the_account_there_begins_no_new_epoch(container: SmallSystem):
    container.account_loader.rebuild("acme")

    assert container.account_loader.rebuild("acme") is LoadOutcome.STALE

    assert fence_epoch(container.engine) == account_of(container).epoch == 1


def test_a_forced_rebuild_begins_a_new_epoch_and_mends_the_figures(
    container: SmallSystem, redis_client: redis.Redis, settings: Settings
):
    container.bill("a")
    container.drain()
    held = container.admit("b")
    if isinstance(container.quota, MemoryQuotaStore):
        container.quota._accounts["acme"].settled += 3
    else:
        (key,) = redis_client.scan_iter(match=f"{settings.redis_prefix}:*:acct:acme", count=1000)
        redis_client.hincrby(key, "settled", 3)

    assert container.account_loader.rebuild("acme", force=True) is LoadOutcome.LOADED

    account = account_of(container)
    assert account.epoch == fence_epoch(container.engine) == 2
    assert (account.settled_microcredits, account.held_microcredits) == (CREDIT, CREDIT)
    assert container.meter.settle(held, container.meter.recorder(held.sku)).quota_epoch == 2


def test_twenty_threads_missing_one_balance_leave_one_consistent_account(container: SmallSystem):
    together = Barrier(20)

    def one(number: int) -> bool:
        together.wait(TIMEOUT_SECONDS)
        return container.admit(f"task-{number}").admitted

    with ThreadPoolExecutor(20) as pool:
        admitted = list(pool.map(one, range(20), timeout=TIMEOUT_SECONDS))

    account = account_of(container)
    assert sum(admitted) == 15
    assert (account.held_microcredits, account.available_microcredits) == (15 * CREDIT, 0)
    assert account.epoch == fence_epoch(container.engine)
    assert len(container.quota.open_holds("acme")) == 15


class _Overtaking:
    """A quota store under two loaders in the worst order.

    The second looks before the first has loaded, and loads after the first settled. Each wait ends
    by itself, for where the second does not even look before the first is done.
    """

    def __init__(self, inner: QuotaStore) -> None:
        self._inner = inner
        self._looks, self._loads = 0, 0
        self._looked, self._told, self._settled = Event(), Event(), Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def account(self, customer: str) -> AccountView | None:
        self._looks += 1
        if self._looks != 2:
            return self._inner.account(customer)
        seen = self._inner.account(customer)
        self._looked.set()
        self._told.wait(0.5)
        return seen

    def load(self, state: AccountState) -> LoadOutcome:
        self._loads += 1
        if self._loads == 1:
            self._looked.wait(0.5)
        if self._loads > 2:
            self._settled.wait(0.5)
        outcome = self._inner.load(state)
        if self._loads == 2:
            self._told.set()
        return outcome

    def settle(
        self, customer: str, task_id: str, events: Sequence[UsageEvent], *, marked: bool = False
    ) -> Settlement:
        settlement = self._inner.settle(customer, task_id, events, marked=marked)
        self._settled.set()
        return settlement


def test_processes_that_miss_a_balance_together_never_admit_more_than_it_has(
    container: SmallSystem, acme: str, database_url: str
):
    # As worker processes do, each with its own connections, at a customer's very first tasks: a
    # second rebuild would not know what the first epoch settled and the log has not got yet.
    quota = _Overtaking(container.quota)
    admitted = []

    def process(index: int) -> None:
        with SmallSystem(
            container.engine,
            database_url,
            quota,
            container.clock,
            loaded_at=container.loaded_at,
        ) as own:
            for turn in range(12):
                facts = make_facts(task_id=f"t{index}.{turn}", customer=acme)
                admission = own.meter.admit(facts, "page-capture", None)
                if admission.admitted:
                    admitted.append(admission)
                    own.meter.settle(admission, own.meter.recorder(admission.sku))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(process, range(2)))
    assert len(admitted) == 15
    container.drain()
    assert container.invariant_checks.run(container.clock.now() - timedelta(days=1)) == []


def test_rebuilds_among_grants_runs_and_logging_neither_lose_nor_double(container: SmallSystem):
    credit = GrantStore(container.engine)
    stop = Event()

    def give() -> None:
        for number in range(15):
            credit.grant("acme", 2 * CREDIT, f"grant-{number}")
            container.account_loader.sync_many(["acme"])

    def run(worker: int) -> int:
        return sum(container.bill(f"task-{worker}-{number}").admitted for number in range(15))

    def rebuild() -> None:
        for _ in range(8):
            container.account_loader.rebuild("acme", force=True)

    def log() -> None:
        while not stop.is_set():
            container.drain()
            stop.wait(0.005)

    with ThreadPoolExecutor(6) as pool:
        logging = pool.submit(log)
        work = [pool.submit(give), pool.submit(rebuild), pool.submit(rebuild)]
        runs = [pool.submit(run, worker) for worker in range(2)]
        try:
            for job in work:
                job.result(TIMEOUT_SECONDS)
            billed = sum(job.result(TIMEOUT_SECONDS) for job in runs)
        finally:
            stop.set()
        logging.result(TIMEOUT_SECONDS)
    container.drain()
    container.account_loader.sync_many(["acme"])

    account = account_of(container)
    assert billed > 0
    assert logged_total(container.engine) == billed * CREDIT
    assert account.settled_microcredits == billed * CREDIT
    assert account.granted_microcredits == 45 * CREDIT
    assert account.held_microcredits == 0
    assert account.epoch == fence_epoch(container.engine)
    assert container.invariant_checks.run(container.clock.now()) == []


def test_a_grant_reaches_the_account_once_however_often_it_is_told(container: SmallSystem):
    container.bill("a")
    GrantStore(container.engine).grant("acme", 5 * CREDIT, "order-1")

    outcomes = [container.account_loader.sync("acme") for _ in range(3)]

    account = account_of(container)
    assert outcomes == [LoadOutcome.SYNCED, LoadOutcome.STALE, LoadOutcome.STALE]
    assert account.granted_microcredits == 20 * CREDIT
    # Not yet in the log, and not forgotten.
    assert account.settled_microcredits == CREDIT


def test_suspension_and_budgets_reach_the_account(container: SmallSystem):
    container.account_loader.rebuild("acme")
    accounts = CustomerStore(container.engine)

    accounts.set_budget("acme", "page-capture", 3 * CREDIT)
    accounts.set_status("acme", "suspended")
    container.account_loader.sync("acme")

    account = account_of(container)
    assert account.suspended
    assert account.budgets == {"page-capture": 3 * CREDIT}


def test_usage_that_no_balance_counted_reaches_it_once_by_the_log(container: SmallSystem):
    container.account_loader.rebuild("acme")
    degraded = make_event(quota_epoch=0, degraded=True)

    for _ in range(2):
        container.log([degraded])

    assert account_of(container).settled_microcredits == CREDIT


def test_a_sync_without_an_account_loads_nothing(container: SmallSystem):
    assert container.account_loader.sync("acme") is LoadOutcome.STALE

    assert container.quota.account("acme") is None


def test_an_account_whose_rebuild_was_never_told_is_forgotten_and_rebuilt(container: SmallSystem):
    container.bill("a")
    lossy = FlakyQuota(container.quota)  # type: ignore[arg-type]  # either store will do
    lossy.faults.plan("load", "before")
    with pytest.raises(QuotaUnavailable):
        AccountLoader(container.engine, lossy, container.clock).rebuild("acme", force=True)
    GrantStore(container.engine).grant("acme", 5 * CREDIT, "order-1")

    outcome = container.account_loader.sync("acme")

    assert outcome is LoadOutcome.STALE
    assert container.quota.account("acme") is None
    container.drain()
    assert container.bill("b").admitted
    account = account_of(container)
    assert (account.epoch, account.granted_microcredits) == (3, 20 * CREDIT)
    assert account.settled_microcredits == 2 * CREDIT


def test_what_changes_between_commit_and_load_is_told_after_it(container: SmallSystem):
    class GrantsInBetween(FlakyQuota):
        def load(self, state: AccountState) -> LoadOutcome:
            if state.version == 1:
                GrantStore(container.engine).grant("acme", 5 * CREDIT, "order-1")
                container.account_loader.sync("acme")
            return super().load(state)

    quota = GrantsInBetween(container.quota)  # type: ignore[arg-type]  # either store will do

    AccountLoader(container.engine, quota, container.clock).rebuild("acme")

    assert account_of(container).granted_microcredits == 20 * CREDIT


def test_a_settle_whose_answers_were_all_lost_is_billed_and_counted_once(
    container: SmallSystem,
):
    lossy = FlakyQuota(container.quota)  # type: ignore[arg-type]  # either store will do
    meter = Meter(
        quota=lossy,
        skus=SkuStore(container.engine).get,
        refresh=container.account_loader.rebuild,
        publisher=container.published,
        journal=container.journal,
        spool=container.spool,
        clock=container.clock,
        hold_ttl_seconds=60,
        currency="USD",
    )
    admission = meter.admit(make_facts(), "page-capture", None)
    lossy.faults.plan("settle", "after", "after")
    meter.settle(admission, meter.recorder(admission.sku))

    # The direct telling comes first, so the log takes it for usage that no balance has counted; the
    # outbox's telling of the same event says that this balance has, and takes it out again.
    assert container.drain() == 2

    assert logged_total(container.engine) == CREDIT
    assert container.invariant_checks.run(container.clock.now()) == []


@pytest.mark.parametrize("customer", ["nobody", "", "a\x00b", "a\ud800b", "a|b", "x" * 65])
def test_a_name_that_is_no_customers_is_not_found(container: SmallSystem, customer: str):
    with pytest.raises(NotFound, match="no customer"):
        container.account_loader.rebuild(customer)
    with pytest.raises(NotFound, match="no customer"):
        container.account_loader.sync(customer)


def test_one_customer_who_cannot_be_told_does_not_keep_it_from_the_others(container: SmallSystem):
    container.account_loader.rebuild("acme")
    GrantStore(container.engine).grant("acme", 5 * CREDIT, "order-1")

    container.account_loader.sync_many(["nobody", "acme"])

    assert account_of(container).granted_microcredits == 20 * CREDIT


@pytest.fixture
def many(engine: sa.Engine) -> list[str]:
    return [add_customer(engine, f"customer-{number}") for number in range(7)]


def test_a_store_that_is_away_is_not_waited_for_once_per_customer(
    engine: sa.Engine, clock: ManualClock, many: list[str]
):
    # The consumer tells a whole batch's customers, and acknowledges nothing meanwhile.
    away = FlakyQuota(MemoryQuotaStore(clock))
    away.faults.down = True

    AccountLoader(engine, away, clock).sync_many(many)

    assert away.faults.calls["load"] == 3


def test_a_store_that_fails_now_and_then_is_told_of_every_customer(
    engine: sa.Engine, clock: ManualClock, many: list[str]
):
    flaky = FlakyQuota(MemoryQuotaStore(clock))
    flaky.faults.plan("load", "before", "before", "well", "before", "before", "well", "before")

    AccountLoader(engine, flaky, clock).sync_many(many)

    assert flaky.faults.calls["load"] == len(many)


def test_a_thread_does_not_wait_without_end_for_another_ones_rebuild(
    engine: sa.Engine, clock: ManualClock, acme: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("billing.quota.account_loader._LOCK_SECONDS", 1)
    sync = AccountLoader(engine, MemoryQuotaStore(clock), clock)
    with ThreadPoolExecutor(1) as pool, sync._threads:
        waiting = pool.submit(sync.rebuild, acme)
        with pytest.raises(QuotaUnavailable, match="waits for others"):
            waiting.result(TIMEOUT_SECONDS)

    assert sync.rebuild(acme) is LoadOutcome.LOADED


def test_a_new_month_keeps_what_was_counted_and_is_not_logged_yet(
    engine: sa.Engine, database_url: str, clock: ManualClock, acme: str
):
    CustomerStore(engine).set_budget(acme, "*", 3 * CREDIT)
    with SmallSystem(engine, database_url, MemoryQuotaStore(clock), clock) as container:
        answers = [container.bill(f"a{n}").admitted for n in range(4)]
        clock.advance(timedelta(days=25))
        next_month = container.bill("b")

    account = account_of(container)
    assert answers == [True, True, True, False]
    assert next_month.admitted
    assert account.settled_microcredits == 4 * CREDIT
    assert account.spent == {"page-capture": CREDIT, "*": CREDIT}
    assert account.epoch == fence_epoch(engine) == 1


def test_a_quarantined_account_is_told_as_such(
    engine: sa.Engine, database_url: str, clock: ManualClock, acme: str
):
    quota = MemoryQuotaStore(clock, quarantine_seconds=5)
    with SmallSystem(engine, database_url, quota, clock) as container:
        container.log([make_event()])
        quota._born.clear()

        assert container.account_loader.rebuild(acme) is LoadOutcome.QUARANTINED
        clock.advance(timedelta(seconds=5))
        assert container.account_loader.rebuild(acme) is LoadOutcome.LOADED


def test_postgresql_away_is_an_unavailable_balance(clock: ManualClock):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        nowhere = sa.create_engine(f"postgresql+psycopg://nobody@127.0.0.1:{port}/none")
        sync = AccountLoader(nowhere, MemoryQuotaStore(clock), clock)

        with pytest.raises(QuotaUnavailable, match="PostgreSQL"):
            sync.rebuild("acme")
        with pytest.raises(QuotaUnavailable, match="PostgreSQL"):
            sync.sync("acme")
        sync.sync_many(["acme"])


def test_no_free_connection_is_an_unavailable_balance(engine: sa.Engine, clock: ManualClock):
    small = sa.create_engine(engine.url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    sync = AccountLoader(small, MemoryQuotaStore(clock), clock)

    with small.connect(), pytest.raises(QuotaUnavailable, match="PostgreSQL"):
        sync.rebuild("acme")
    small.dispose()


def test_redis_away_begins_no_new_epoch(container: SmallSystem):
    away = FlakyQuota(container.quota)  # type: ignore[arg-type]  # either store will do
    away.faults.down = True
    sync = AccountLoader(container.engine, away, container.clock)

    with pytest.raises(QuotaUnavailable):
        sync.rebuild("acme")
    with pytest.raises(QuotaUnavailable):
        sync.sync("acme")

    assert fence_epoch(container.engine) == 0
