"""What PostgreSQL tells the quota store: epochs, versions, totals, months."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from stores import MemoryStore, figures, reserve, settle, view
from support import add_customer, eventually, make_event

from billing.core.clock import to_ms
from billing.core.errors import NotFound, WeighbridgeError
from billing.core.periods import hour_floor, month_of
from billing.core.reservation import SYNC_ONLY, AccountState, LoadOutcome, ReserveOutcome
from billing.postgres import schema as tables
from billing.quota.account_loader import begin_epoch, current_state

pytestmark = pytest.mark.postgres

CREDIT = 1_000_000


def _rebuild(engine: sa.Engine, customer: str, now: datetime) -> AccountState:
    with engine.begin() as connection:
        return begin_epoch(connection, customer, now)


def _current(engine: sa.Engine, customer: str, now: datetime) -> AccountState:
    with engine.connect() as connection:
        return current_state(connection, customer, now)


def _log(
    engine: sa.Engine,
    at: datetime,
    amount: int,
    *,
    sku: str = "page-capture",
    customer: str = "acme",
) -> None:
    """One event, in the log and in the hourly totals, as the log's writer puts it there."""
    event = make_event(metered_at=at, amount_microcredits=amount, sku=sku, customer=customer)
    hourly = tables.usage_hourly
    key = {
        "customer_id": customer,
        "hour": hour_floor(at),
        "sku_id": sku,
        "outcome": "succeeded",
        "reason": "",
    }
    with engine.begin() as connection:
        connection.execute(
            tables.usage_events.insert().values(
                id=event.id,
                customer_id=customer,
                sku_id=sku,
                line=event.line,
                outcome="succeeded",
                reason="",
                quantity=1,
                amount_microcredits=amount,
                shortfall_microcredits=0,
                held_microcredits=amount,
                cost_micros=0,
                currency="USD",
                dimensions={},
                task_id=event.task_id,
                task_name="",
                attempt=0,
                worker="",
                degraded=False,
                quota_epoch=1,
                fingerprint=event.fingerprint(),
            )
        )
        matches = sa.and_(*(hourly.c[name] == value for name, value in key.items()))
        added = connection.execute(
            sa.update(hourly)
            .where(matches)
            .values(amount_microcredits=hourly.c.amount_microcredits + amount)
        )
        if not added.rowcount:
            figures = dict.fromkeys(("quantity", "shortfall_microcredits", "cost_micros"), 0)
            connection.execute(
                hourly.insert().values(**key, **figures, events=1, amount_microcredits=amount)
            )


def test_a_rebuild_begins_an_epoch_and_tells_the_whole_account(engine: sa.Engine, now: datetime):
    add_customer(engine, "acme", credits=100, budgets={"*": 50, "page-capture": "2.5"})
    _log(engine, now, 3 * CREDIT)
    _log(engine, now - timedelta(days=1), 4 * CREDIT)
    _log(engine, now, 5 * CREDIT, sku="forensic-search")

    state = _rebuild(engine, "acme", now)

    month = month_of(now)
    assert state == AccountState(
        customer="acme",
        epoch=1,
        version=1,
        suspended=False,
        granted_microcredits=100 * CREDIT,
        settled_microcredits=12 * CREDIT,
        late_microcredits=0,
        period_start_ms=to_ms(month.start),
        period_end_ms=to_ms(month.end),
        budgets={"*": 50 * CREDIT, "page-capture": 2_500_000},
        spent={"*": 12 * CREDIT, "page-capture": 7 * CREDIT, "forensic-search": 5 * CREDIT},
        had_usage=True,
    )


def test_a_customer_without_usage_has_spent_nothing(engine: sa.Engine, now: datetime):
    add_customer(engine, "acme", credits=0, suspended=True)
    add_customer(engine, "globex")
    _log(engine, now, CREDIT, customer="globex")

    state = _rebuild(engine, "acme", now)

    assert (state.settled_microcredits, state.spent, state.had_usage) == (0, {}, False)
    assert (state.granted_microcredits, state.suspended, state.budgets) == (0, True, {})


def test_each_rebuild_is_another_epoch_and_begins_without_late_usage(
    engine: sa.Engine, now: datetime
):
    add_customer(engine, "acme")
    _rebuild(engine, "acme", now)
    _add_late(engine, 7 * CREDIT)
    assert _current(engine, "acme", now).late_microcredits == 7 * CREDIT

    state = _rebuild(engine, "acme", now)

    assert (state.epoch, state.version, state.late_microcredits) == (2, 3, 0)
    with engine.connect() as connection:
        fence = connection.execute(sa.select(tables.quota_fences)).one()
    assert (fence.epoch, fence.version, fence.late_microcredits) == (2, 3, 0)
    assert fence.rebuilt_at == now


def test_the_present_state_begins_no_epoch_and_can_only_sync(engine: sa.Engine, now: datetime):
    add_customer(engine, "acme")
    rebuilt = _rebuild(engine, "acme", now)
    _log(engine, now, 3 * CREDIT)
    _add_late(engine, 3 * CREDIT)

    state = _current(engine, "acme", now)

    assert (state.epoch, state.version) == (rebuilt.epoch, rebuilt.version + 1)
    assert state.settled_microcredits == SYNC_ONLY
    assert state.late_microcredits == 3 * CREDIT
    assert state.spent == {"*": 3 * CREDIT, "page-capture": 3 * CREDIT}
    assert _current(engine, "acme", now) == state


@pytest.mark.parametrize("read", [_rebuild, _current])
def test_an_unknown_customer_is_not_found(engine: sa.Engine, now: datetime, read):  # noqa: ANN001 - one of the two functions above
    with pytest.raises(NotFound, match="nobody"):
        read(engine, "nobody", now)


def test_a_rebuild_that_would_read_an_old_log_is_refused(engine: sa.Engine, now: datetime):
    add_customer(engine, "acme")

    with (
        engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection,
        pytest.raises(WeighbridgeError, match="READ COMMITTED"),
    ):
        begin_epoch(connection, "acme", now)


def test_a_rebuild_waits_for_a_batch_in_flight_and_counts_it(engine: sa.Engine, now: datetime):
    add_customer(engine, "acme")
    states: list[AccountState] = []
    with engine.begin() as writer:
        writer.execute(sa.select(tables.quota_fences).with_for_update(read=True))
        thread = threading.Thread(target=lambda: states.append(_rebuild(engine, "acme", now)))
        thread.start()
        eventually(lambda: _waiting_for_locks(engine), message="the rebuild waits for the fence")
        assert states == []
        writer.execute(
            tables.usage_hourly.insert().values(
                customer_id="acme",
                hour=hour_floor(now),
                sku_id="page-capture",
                outcome="succeeded",
                reason="",
                events=1,
                quantity=1,
                amount_microcredits=9 * CREDIT,
                shortfall_microcredits=0,
                cost_micros=0,
            )
        )
    thread.join(timeout=30)

    assert [state.settled_microcredits for state in states] == [9 * CREDIT]


def test_only_the_month_of_the_customers_zone_is_spent(engine: sa.Engine, now: datetime):
    add_customer(engine, "acme", time_zone="Europe/Berlin")
    month = month_of(now, "Europe/Berlin")
    _log(engine, month.start, 2 * CREDIT)
    _log(engine, month.start - timedelta(milliseconds=1), 3 * CREDIT)
    _log(engine, month.end - timedelta(milliseconds=1), 5 * CREDIT)
    _log(engine, month.end, 7 * CREDIT)

    state = _rebuild(engine, "acme", now)

    assert state.period_start_ms == to_ms(month.start)
    assert state.spent == {"*": 7 * CREDIT, "page-capture": 7 * CREDIT}
    assert state.settled_microcredits == 17 * CREDIT


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Asia/Kathmandu"])
def test_a_month_that_begins_within_an_hour_is_spent_to_the_millisecond(
    engine: sa.Engine, now: datetime, zone: str
):
    add_customer(engine, "acme", time_zone=zone)
    month = month_of(now, zone)
    assert month.start.minute, "this zone's months begin within an hour of UTC"
    _log(engine, month.start, 1 * CREDIT)
    _log(engine, month.start - timedelta(milliseconds=1), 10 * CREDIT)
    _log(engine, now, 100 * CREDIT, sku="forensic-search")
    _log(engine, month.end - timedelta(milliseconds=1), 1_000 * CREDIT)
    _log(engine, month.end, 10_000 * CREDIT)

    state = _rebuild(engine, "acme", now)

    assert state.spent == {
        "*": 1_101 * CREDIT,
        "page-capture": 1_001 * CREDIT,
        "forensic-search": 100 * CREDIT,
    }
    assert state.settled_microcredits == 11_111 * CREDIT


def test_the_store_takes_a_rebuilt_state_and_then_only_what_is_newer(engine: sa.Engine):
    now = datetime.now(UTC)
    add_customer(engine, "acme", credits=1, budgets={"page-capture": 1})
    store = MemoryStore()
    assert reserve(store, "t1").outcome is ReserveOutcome.UNKNOWN_BALANCE

    assert store.quota.load(_rebuild(engine, "acme", now)) is LoadOutcome.LOADED
    reserve(store, "t1", 400_000)
    settle(store, "t1", 300_000)
    assert store.quota.load(_current(engine, "acme", now)) is LoadOutcome.STALE
    _add_late(engine, 50_000)

    assert store.quota.load(_current(engine, "acme", now)) is LoadOutcome.SYNCED
    assert figures(store) == (0, 350_000, 650_000)
    assert view(store).spent == {"*": 300_000, "page-capture": 300_000}


def test_a_present_state_sent_to_an_emptied_store_loads_nothing(engine: sa.Engine, now: datetime):
    add_customer(engine, "acme")
    store = MemoryStore()
    store.quota.load(_rebuild(engine, "acme", now))
    store.lose_everything()

    assert store.quota.load(_current(engine, "acme", now)) is LoadOutcome.STALE
    assert reserve(store, "t1").outcome is ReserveOutcome.UNKNOWN_BALANCE


def _add_late(engine: sa.Engine, amount: int) -> None:
    """As the log's writer does with usage of another epoch."""
    fences = tables.quota_fences
    with engine.begin() as connection:
        connection.execute(
            sa.update(fences).values(
                late_microcredits=fences.c.late_microcredits + amount, version=fences.c.version + 1
            )
        )


def _waiting_for_locks(engine: sa.Engine) -> bool:
    with engine.connect() as connection:
        query = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(connection.execute(sa.text(query)).scalar_one())
