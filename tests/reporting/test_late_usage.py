"""Usage that its own hour can no longer tell a provider: carried, and told once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from reporting_support import (
    LAST_HOUR,
    THIS_HOUR,
    Killed,
    System,
    answer_lost,
    answering,
    coarse,
    metered,
)
from support import NOW

from billing.providers.port import Cause
from billing.reporting.report_store import CustomerIds, Destination
from billing.reporting.usage_report import State

HOUR = timedelta(hours=1)
KEY = ("acme", "page-capture")
MICRO = 1_000_000


def hours_told(system: System, hour: datetime) -> list[int]:
    return [report.value for report in system.ledger.seen if report.hour == hour]


def test_a_row_after_the_seal_is_carried_to_the_hour_under_way_and_told_there(
    system: System,
) -> None:
    system.use(10)
    system.advance()
    system.seal(10)
    system.use(5)
    system.advance()
    assert hours_told(system, LAST_HOUR) == [10]
    assert system.carries() == [(LAST_HOUR, THIS_HOUR, 5, "late")]
    assert system.states() == [(1, "accepted", "taken"), (2, "parked", "carried")]
    assert system.books().unclaimed == 5
    system.later(hours=1)
    system.advance()
    assert hours_told(system, THIS_HOUR) == [5]
    assert hours_told(system, LAST_HOUR) == [10]
    system.assert_all_told()


def test_what_is_carried_joins_the_usage_of_its_new_hour(system: System) -> None:
    system.use(10)
    system.advance()
    system.seal(10)
    system.use(5)
    system.use(100, THIS_HOUR)
    system.advance()
    system.later(hours=1)
    system.advance()
    assert hours_told(system, THIS_HOUR) == [105]
    system.use(2)
    system.advance()
    system.later(hours=1)
    system.advance()
    assert [line[2] for line in system.carries()] == [5, 2]
    system.assert_all_told()


def test_an_hour_never_told_before_its_seal_is_carried_whole(system: System) -> None:
    system.seal(0)
    system.use(5)
    system.advance()
    assert system.ledger.seen == []
    assert system.states() == [(1, "parked", "carried")]
    system.later(hours=1)
    system.advance()
    assert system.told(system.ledger) == {KEY: 5}
    system.assert_all_told()


def test_what_waited_unsent_at_the_seal_is_never_sent_and_carried(system: System) -> None:
    system.use(7)
    system.ledger.always = answering(Cause.KEY_REFUSED)
    system.advance()
    system.seal(0)
    system.ledger.always = None
    system.ledger.seen.clear()
    system.advance()
    assert system.ledger.seen == []
    assert system.states() == [(1, "parked", "sealed"), (2, "parked", "carried")]
    system.later(hours=1)
    system.advance()
    assert [(report.hour, report.value) for report in system.ledger.seen] == [(THIS_HOUR, 7)]
    system.assert_all_told()


def test_a_report_of_a_sealed_hour_is_not_claimed(system: System) -> None:
    system.use(7)
    system.use(8, LAST_HOUR - HOUR)
    system.reports.plan(destination(), until=NOW, now=NOW)
    system.seal(0, end=LAST_HOUR)
    lease = timedelta(minutes=5)
    [claimed] = system.reports.claim("ledger", now=NOW, lease=lease, limit=9)
    assert claimed.report.hour == LAST_HOUR
    assert system.reports.claim("ledger", now=NOW, lease=lease, limit=9) == []


def test_an_hour_in_which_the_period_ends_is_not_sealed(system: System) -> None:
    system.use(7)
    system.seal(0, end=LAST_HOUR + timedelta(minutes=59))
    system.advance()
    assert hours_told(system, LAST_HOUR) == [7]
    assert system.carries() == []
    system.assert_all_told()


def test_an_hour_whose_carry_line_is_sealed_too_is_carried_on(system: System) -> None:
    system.seal(0)
    system.use(5)
    system.advance()
    system.seal(0, start=THIS_HOUR, end=THIS_HOUR + HOUR, invoice="in_2")
    system.later(hours=1)
    system.advance()
    assert system.ledger.seen == []
    assert system.carries() == [
        (LAST_HOUR, THIS_HOUR, 5, "late"),
        (THIS_HOUR, THIS_HOUR + HOUR, 5, "late"),
    ]
    system.later(hours=1)
    system.advance()
    system.assert_all_told()


def test_late_usage_of_a_month_ago_is_found_at_once_after_the_seal(system: System) -> None:
    old = LAST_HOUR - timedelta(days=8)
    system.use(10, old)
    system.advance()
    system.use(5, old)
    assert system.advance().planned == 0  # the recent hours only
    system.seal(10, start=old - HOUR, end=old + HOUR)
    assert system.advance().planned == 1
    assert system.carries() == [(old, THIS_HOUR, 5, "late")]


def test_a_hold_by_hand_outlasts_the_seal(system: System) -> None:
    system.use(7)
    system.reports.plan(destination(), until=NOW, now=NOW)
    assert system.reports.park(1, "disputed")
    system.seal(0)
    system.use(2)
    system.advance()
    assert system.carries() == []
    assert system.books().parked == 9
    assert system.reports.unpark(2, arrived=None, now=NOW)
    system.advance()
    assert system.carries() == [(LAST_HOUR, THIS_HOUR, 9, "late")]
    assert system.ledger.seen == []


def test_what_was_carried_cannot_be_sent_again(system: System) -> None:
    system.seal(0)
    system.use(5)
    system.advance()
    assert not system.reports.retry(1, now=NOW)
    assert not system.reports.unpark(1, arrived=None, now=NOW)
    assert not system.reports.unpark(1, arrived=True, now=NOW)


# -- providers and customers -----------------------------------------------------------------------


def test_what_a_former_provider_sealed_is_not_told_to_the_new_one(system: System) -> None:
    system.use(7)
    system.use(9, LAST_HOUR - HOUR, customer="globex")
    system.advance()
    system.seal(7)
    system.use(4)
    system.use(3, LAST_HOUR - HOUR)
    system.use(2, LAST_HOUR - HOUR, customer="globex")
    system.advance(system.file)
    assert [(report.hour, report.value) for report in system.file.seen] == [(LAST_HOUR - HOUR, 2)]
    system.later(hours=1)
    system.advance(system.file)
    assert system.told(system.file) == {KEY: 7, ("globex", "page-capture"): 2}
    system.assert_all_told(system.ledger, system.file)


def stripe() -> Destination:
    return Destination(
        environment="test", provider="ledger", customer_ids=CustomerIds.STRIPE, metered=metered
    )


def destination() -> Destination:
    return Destination(
        environment="test", provider="ledger", customer_ids=CustomerIds.OURS, metered=metered
    )


def test_a_sealed_hour_of_an_unmapped_customer_waits_and_is_carried_once_it_is_mapped(
    system: System,
) -> None:
    system.seal(0)
    system.use(7)
    system.reports.plan(stripe(), until=NOW, now=NOW)
    system.use(1)
    system.reports.plan(stripe(), until=NOW, now=NOW)
    assert system.carries() == []
    assert system.books().parked == 8
    with system.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE customers SET stripe_customer_id = 'cus_1' WHERE id = 'acme'")
        )
    system.reports.plan(stripe(), until=NOW, now=NOW)
    assert system.carries() == [(LAST_HOUR, THIS_HOUR, 8, "late")]
    assert system.books().parked == 0


# -- several at once, and death --------------------------------------------------------------------


def test_plans_at_once_carry_everything_once(system: System) -> None:
    system.metered = coarse(0)
    for back in range(8):
        for customer in ("acme", "globex"):
            system.seal(0, invoice=f"in_{customer}", end=THIS_HOUR - 3 * HOUR, customer=customer)
            system.use(1_400_000, LAST_HOUR - back * HOUR, customer=customer)
    gate = threading.Barrier(3)

    def run(_: int) -> None:
        gate.wait(timeout=10)
        system.reporter(senders=2).advance()

    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(run, range(3)))
        gate.reset()
        system.later(hours=1)
    amounts = [line[2:] for line in system.carries()]
    assert amounts.count((1_400_000, "late")) == 2 * 5
    for _ in range(3):
        system.advance()
        system.later(hours=1)
    for customer in ("acme", "globex"):
        books = system.books(customer)
        assert books.accepted == 11_000_000
        assert books.parked == 200_000
    system.assert_figures_are_exact(0)


@pytest.mark.parametrize("statement", ["INSERT INTO report_carries", "INSERT INTO usage_reports"])
def test_a_death_between_a_line_and_its_revision_leaves_neither(
    system: System, statement: str
) -> None:
    system.seal(0)
    system.use(5)
    engine = system.engine

    def dies(connection: Any, cursor: Any, text: str, *_: Any) -> None:
        del connection, cursor
        if statement in text:
            raise Killed

    sa.event.listen(engine, "before_cursor_execute", dies)
    system.die()
    sa.event.remove(engine, "before_cursor_execute", dies)
    assert system.carries() == []
    assert system.states() == []
    assert system.books().unclaimed == 5
    system.advance()
    assert system.carries() == [(LAST_HOUR, THIS_HOUR, 5, "late")]
    system.later(hours=1)
    system.advance()
    system.assert_all_told()


def test_what_changed_between_reading_and_writing_is_left_to_the_next_pass(
    system: System,
) -> None:
    system.use(7)
    system.ledger.always = answering(Cause.KEY_REFUSED)
    system.advance()
    system.seal(0)
    other = sa.create_engine(system.engine.url)
    taken = threading.Event()

    def claims_first(connection: Any, cursor: Any, text: str, *_: Any) -> None:
        del connection, cursor
        if "FOR UPDATE" in text and "AND latest" in text and not taken.is_set():
            taken.set()
            with other.begin() as somebody:
                somebody.execute(sa.text("UPDATE usage_reports SET cause = 'by_hand'"
                                         ", state = 'parked'"))  # fmt: skip

    sa.event.listen(system.engine, "before_cursor_execute", claims_first)
    assert system.reports.plan(destination(), until=NOW, now=NOW) == 0
    sa.event.remove(system.engine, "before_cursor_execute", claims_first)
    other.dispose()
    assert taken.is_set()
    assert system.carries() == []


# -- up to now -------------------------------------------------------------------------------------


def test_the_hour_under_way_is_told_as_far_as_it_has_come_and_revised_later(
    system: System,
) -> None:
    system.metered = coarse(2)
    system.use(1_234_567, THIS_HOUR)
    done = system.reporter().advance(up_to_now=True)
    assert done.became[State.ACCEPTED] == 1
    assert system.told(system.ledger) == {KEY: 123}
    assert system.reporter().advance(up_to_now=True).planned == 0
    assert system.books().unclaimed == 4_567
    system.use(20_000, THIS_HOUR)
    system.later(hours=1)
    system.advance()
    assert system.told(system.ledger) == {KEY: 125}
    assert system.carries() == [(THIS_HOUR, THIS_HOUR + HOUR, 4_567, "remainder")]


def test_what_is_carried_into_the_hour_under_way_is_told_by_the_next_run(system: System) -> None:
    system.seal(0)
    system.use(5)
    system.use(6, THIS_HOUR)
    system.reporter().advance(up_to_now=True)
    assert [report.value for report in system.ledger.seen] == [6]
    system.reporter().advance(up_to_now=True)
    assert [report.value for report in system.ledger.seen] == [6, 11]
    system.assert_all_told()


@pytest.mark.parametrize("undecided", [True, False])
def test_a_seal_makes_the_next_comparison_one_of_a_month(system: System, undecided: bool) -> None:
    old = LAST_HOUR - timedelta(days=8)
    system.use(1)
    system.ledger.faults.extend([answer_lost, answer_lost] * undecided)
    system.advance()
    system.use(5, old, customer="globex")
    system.later(minutes=1)
    assert system.advance().planned == 0
    system.seal(1)
    assert system.advance().planned == 1
    assert [seal.settled_at is None for seal in system.reports.seals.list()] == [undecided]
    system.use(5, old, customer="globex")
    system.later(minutes=1)
    assert system.advance().planned == 0
