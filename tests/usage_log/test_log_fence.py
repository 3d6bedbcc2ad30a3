"""Rebuilds of balances against batches: every amount is counted once, whichever comes first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from support import make_event

from billing.core.usage_event import DeadReason, Outcome, denied_line
from billing.postgres.engines import owner_engine
from billing.usage_log import log_writer as writer_module
from billing.usage_log.epoch_fence import FenceMoved, lock_fences
from billing.usage_log.log_writer import LogWriter

MakeWriter = Callable[[], LogWriter]
Wait = Callable[[], None]


def set_epoch(engine: sa.Engine, customer: str, epoch: int) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE quota_fences SET epoch = :epoch WHERE customer_id = :customer"),
            {"epoch": epoch, "customer": customer},
        )


def fence(engine: sa.Engine, customer: str) -> dict[str, Any]:
    query = sa.text(
        "SELECT epoch, version, late_microcredits AS late FROM quota_fences WHERE customer_id = :c"
    )
    with engine.connect() as connection:
        return dict(connection.execute(query, {"c": customer}).mappings().one())


def rebuild(connection: sa.Connection, customer: str) -> int:
    """What a rebuild does: next epoch, late to zero, then the log's total as it is."""
    connection.execute(
        sa.text("SELECT 1 FROM quota_fences WHERE customer_id = :c FOR UPDATE"), {"c": customer}
    )
    connection.execute(
        sa.text(
            "UPDATE quota_fences SET epoch = epoch + 1, version = version + 1,"
            " late_microcredits = 0 WHERE customer_id = :c"
        ),
        {"c": customer},
    )
    total = connection.execute(
        sa.text(
            "SELECT coalesce(sum(amount_microcredits), 0) FROM usage_hourly WHERE customer_id = :c"
        ),
        {"c": customer},
    ).scalar_one()
    assert isinstance(total, Decimal)
    return int(total)


def test_an_event_that_the_present_epoch_counted_is_not_late(
    writer: LogWriter, engine: sa.Engine
) -> None:
    set_epoch(engine, "acme", 3)
    assert writer.write([make_event(quota_epoch=3).to_wire()]).late_customers == frozenset()
    assert fence(engine, "acme") == {"epoch": 3, "version": 0, "late": 0}


@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_an_event_of_another_epoch_is_late_by_its_amount(
    epoch: int, writer: LogWriter, engine: sa.Engine
) -> None:
    set_epoch(engine, "acme", 3)
    counted = make_event(quota_epoch=3, amount_microcredits=50)
    late = make_event(quota_epoch=epoch, amount_microcredits=700)
    told = writer.write([counted.to_wire(), late.to_wire()])
    assert told.late_customers == {"acme"}
    assert fence(engine, "acme") == {"epoch": 3, "version": 1, "late": 700}


def test_a_batch_raises_the_version_once_however_many_are_late(
    writer: LogWriter, engine: sa.Engine
) -> None:
    set_epoch(engine, "acme", 3)
    writer.write([make_event(amount_microcredits=5).to_wire() for _ in range(4)])
    assert fence(engine, "acme") == {"epoch": 3, "version": 1, "late": 20}


def test_a_late_event_told_again_adds_nothing_but_its_account_is_sent_again(
    writer: LogWriter, engine: sa.Engine
) -> None:
    set_epoch(engine, "acme", 3)
    late = make_event(amount_microcredits=700).to_wire()
    writer.write([late, late])
    again = writer.write([late])
    assert (again.inserted, again.duplicates) == (0, 1)
    assert again.late_customers == {"acme"}
    assert fence(engine, "acme") == {"epoch": 3, "version": 1, "late": 700}


def test_what_costs_nothing_is_never_late(writer: LogWriter, engine: sa.Engine) -> None:
    set_epoch(engine, "acme", 3)
    denied = make_event(
        line=denied_line("page-capture", "budget_exceeded"),
        outcome=Outcome.DENIED,
        reason="budget_exceeded",
        amount_microcredits=0,
        quantity=0,
    )
    assert writer.write([denied.to_wire()]).late_customers == frozenset()
    assert fence(engine, "acme")["version"] == 0


def test_only_the_customers_with_late_events_are_told(writer: LogWriter, engine: sa.Engine) -> None:
    for customer in ("acme", "globex"):
        set_epoch(engine, customer, 1)
    bodies = [
        make_event(customer="acme", quota_epoch=1).to_wire(),
        make_event(customer="globex", quota_epoch=0).to_wire(),
        make_event(customer="initech", quota_epoch=0).to_wire(),
    ]
    assert writer.write(bodies).late_customers == {"globex"}


def test_a_refused_event_is_not_late(writer: LogWriter, engine: sa.Engine) -> None:
    set_epoch(engine, "acme", 3)
    told = writer.write([make_event(attempt=2**40).to_wire()])
    assert told.dead == {DeadReason.REFUSED_BY_DATABASE: 1}
    assert told.late_customers == frozenset()
    assert fence(engine, "acme") == {"epoch": 3, "version": 0, "late": 0}


def told_under(epoch: int, **overrides: Any) -> bytes:
    """One fact, the same but for the epoch of the balance that counted it."""
    same = {"task_id": "came-back", "amount_microcredits": 700, "quota_epoch": epoch}
    return make_event(**{**same, **overrides}).to_wire()


def test_what_the_balance_counted_although_it_was_logged_as_late_is_taken_back_once(
    writer: LogWriter, engine: sa.Engine
) -> None:
    set_epoch(engine, "acme", 3)
    writer.write([told_under(0)])
    assert fence(engine, "acme") == {"epoch": 3, "version": 1, "late": 700}

    again = writer.write([told_under(3)])

    assert (again.inserted, again.duplicates) == (0, 1)
    assert again.late_customers == {"acme"}
    assert fence(engine, "acme") == {"epoch": 3, "version": 2, "late": 0}
    # However often the relay repeats it; the account is sent again, had the first sending failed.
    assert writer.write([told_under(3)] * 2).late_customers == {"acme"}
    assert fence(engine, "acme") == {"epoch": 3, "version": 2, "late": 0}


def test_both_tellings_in_one_batch_are_counted_once(writer: LogWriter, engine: sa.Engine) -> None:
    set_epoch(engine, "acme", 3)
    told = writer.write([told_under(0), told_under(3), told_under(3)])
    assert (told.inserted, told.duplicates) == (1, 2)
    assert fence(engine, "acme")["late"] == 0


def test_logged_as_counted_and_then_told_as_uncounted_nothing_is_late(
    writer: LogWriter, engine: sa.Engine
) -> None:
    set_epoch(engine, "acme", 3)
    writer.write([told_under(3)])
    writer.write([told_under(0)])
    assert fence(engine, "acme")["late"] == 0


def test_what_a_rebuild_has_read_and_the_balance_counts_again_makes_late_negative(
    writer: LogWriter, engine: sa.Engine
) -> None:
    set_epoch(engine, "acme", 3)
    writer.write([told_under(3)])
    # Redis lost its data, the task came back and was settled by the new balance too.
    with engine.begin() as connection:
        assert rebuild(connection, "acme") == 700
    writer.write([told_under(4)])
    assert fence(engine, "acme")["late"] == -700
    # The next rebuild reads the log, where it is once, and begins anew.
    with engine.begin() as connection:
        assert rebuild(connection, "acme") == 700
    writer.write([told_under(4)])
    assert fence(engine, "acme") == {"epoch": 5, "version": 3, "late": 0}


def test_a_run_that_came_back_and_used_more_is_a_dead_letter_and_not_counted(
    writer: LogWriter, engine: sa.Engine
) -> None:
    set_epoch(engine, "acme", 3)
    writer.write([told_under(0)])
    told = writer.write([told_under(3, quantity=2, amount_microcredits=1400)])
    assert told.dead == {DeadReason.CONFLICT: 1}
    # 700 came late, 1400 were counted by the balance: with this it has 700, as the log.
    assert fence(engine, "acme")["late"] == 700 - 1400


def test_a_balance_that_was_never_loaded_counted_nothing(
    writer: LogWriter, engine: sa.Engine
) -> None:
    writer.write([told_under(2)])
    writer.write([told_under(0)])
    assert fence(engine, "acme")["late"] == 700


def test_consumers_that_take_the_same_amount_back_at_once_do_so_once(
    make_writer: MakeWriter, engine: sa.Engine
) -> None:
    set_epoch(engine, "acme", 3)
    facts = [f"task{n}" for n in range(20)]
    make_writer().write([told_under(0, task_id=fact) for fact in facts])
    tellings = [told_under(3, task_id=fact) for fact in facts]
    writers = [make_writer() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: one.write(tellings), writers))
    assert fence(engine, "acme")["late"] == 0


def test_a_customer_without_a_fence_gets_one(writer: LogWriter, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM quota_fences WHERE customer_id = 'acme'"))
    writer.write([make_event().to_wire()])
    assert fence(engine, "acme") == {"epoch": 0, "version": 0, "late": 0}


@pytest.fixture
def another(database_url: str) -> Iterator[sa.Engine]:
    """Connections for what happens meanwhile."""
    engine = owner_engine(database_url)
    yield engine
    engine.dispose()


def test_a_batch_that_waited_for_a_rebuild_sees_the_new_epoch_and_is_late(
    writer: LogWriter, engine: sa.Engine, another: sa.Engine, somebody_waits: Wait
) -> None:
    set_epoch(engine, "acme", 1)
    with ThreadPoolExecutor(1) as pool, another.connect() as connection:
        with connection.begin():
            total = rebuild(connection, "acme")
            batch = pool.submit(writer.write, [make_event(quota_epoch=1).to_wire()])
            somebody_waits()
        told = batch.result(timeout=10)
    assert total == 0
    assert told.late_customers == {"acme"}
    # Version 1 was the rebuild's, 2 is the batch's.
    assert fence(engine, "acme") == {"epoch": 2, "version": 2, "late": 1_000_000}


def test_a_rebuild_that_waited_for_a_batch_counts_it(
    writer: LogWriter,
    engine: sa.Engine,
    another: sa.Engine,
    somebody_waits: Wait,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_epoch(engine, "acme", 1)
    inside, go_on = threading.Event(), threading.Event()

    def hold(name: str) -> None:
        if name == "consumer.before_commit":
            inside.set()
            assert go_on.wait(60)

    monkeypatch.setattr(writer_module, "reach", hold)

    def rebuild_acme() -> int:
        with another.begin() as connection:
            return rebuild(connection, "acme")

    with ThreadPoolExecutor(2) as pool:
        batch = pool.submit(writer.write, [make_event(quota_epoch=1).to_wire()])
        assert inside.wait(60)
        rebuilt = pool.submit(rebuild_acme)
        somebody_waits()
        go_on.set()
        assert batch.result(timeout=10).late_customers == frozenset()
        assert rebuilt.result(timeout=10) == 1_000_000
    assert fence(engine, "acme") == {"epoch": 2, "version": 1, "late": 0}


def test_under_rebuilds_all_the_time_every_amount_is_counted_exactly_once(
    make_writer: MakeWriter,
    engine: sa.Engine,
    another: sa.Engine,
    rollups_are_exact: Callable[[], None],
) -> None:
    stop = threading.Event()
    totals: list[int] = []

    def keep_rebuilding() -> None:
        while not stop.is_set():
            with another.begin() as connection:
                totals.append(rebuild(connection, "acme"))

    def keep_writing(writer: LogWriter, first: int) -> None:
        for round_ in range(25):
            epoch = fence(engine, "acme")["epoch"] - round_ % 2
            events = [
                make_event(quota_epoch=max(0, epoch), task_id=f"{first}-{round_}-{number}")
                for number in range(4)
            ]
            writer.write([event.to_wire() for event in events])

    with ThreadPoolExecutor(3) as pool:
        rebuilding = pool.submit(keep_rebuilding)
        writing = [pool.submit(keep_writing, make_writer(), first) for first in range(2)]
        for one in writing:
            one.result(timeout=60)
        stop.set()
        rebuilding.result(timeout=10)
    # What the last rebuild read, what came late since, and what its own epoch counted, is all.
    now = fence(engine, "acme")
    with engine.connect() as connection:
        of_this_epoch = connection.execute(
            sa.text(
                "SELECT coalesce(sum(amount_microcredits), 0) FROM usage_events"
                " WHERE quota_epoch = :epoch"
            ),
            {"epoch": now["epoch"]},
        ).scalar_one()
    assert totals[-1] + now["late"] + of_this_epoch == 2 * 25 * 4 * 1_000_000
    rollups_are_exact()


@pytest.mark.usefixtures("catalogue")
def test_a_fence_that_moved_after_it_was_read_is_noticed_once_it_is_locked(
    engine: sa.Engine, another: sa.Engine, somebody_waits: Wait
) -> None:
    set_epoch(engine, "acme", 1)

    def lock() -> dict[str, int]:
        with engine.begin() as connection:
            return lock_fences(connection, {"acme": {1}})

    with ThreadPoolExecutor(1) as pool, another.connect() as connection:
        with connection.begin():
            rebuild(connection, "acme")
            locking = pool.submit(lock)
            somebody_waits()
        with pytest.raises(FenceMoved):
            locking.result(timeout=10)
    assert lock() == {"acme": 2}


@pytest.mark.usefixtures("catalogue")
def test_locks_are_taken_in_one_order_whatever_their_strength(engine: sa.Engine) -> None:
    set_epoch(engine, "globex", 5)
    statements: list[str] = []

    def note(_: object, __: object, query: str, given: dict[str, object], *___: object) -> None:
        if "FOR " in query:
            statements.append(f"{query.rsplit(maxsplit=1)[-1]}{given['customers']}")

    sa.event.listen(engine, "before_cursor_execute", note)
    with engine.begin() as connection:
        lock_fences(connection, {"initech": set(), "globex": {4}, "acme": {0}})
    assert statements == ["SHARE['acme']", "UPDATE['globex']", "SHARE['initech']"]
