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
    Aged,
    Killed,
    System,
    answer_lost,
    answering,
    coarse,
    metered,
)
from support import NOW

from billing.reporting.provider import Cause
from billing.reporting.report import MAX_HOUR_VALUE, State
from billing.reporting.store import CustomerIds, Destination

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


# -- too old ---------------------------------------------------------------------------------------

LIMIT = timedelta(days=34)


def aged(system: System) -> Aged:
    system.ledger = Aged(system.ledger.inner, system.clock, LIMIT)
    return system.ledger


def test_after_an_outage_of_36_days_what_was_never_sent_is_carried(system: System) -> None:
    provider = aged(system)
    provider.always = answering(Cause.KEY_REFUSED)
    system.use(7)
    system.use(9, LAST_HOUR + timedelta(days=30))
    system.advance()
    system.later(days=36)
    provider.always = None
    provider.seen.clear()
    system.advance()
    late = THIS_HOUR + timedelta(days=36)
    assert system.carries() == [(LAST_HOUR, late, 7, "too_old")]
    assert [(report.hour, report.value) for report in provider.seen] == [
        (LAST_HOUR + timedelta(days=30), 9)
    ]
    system.later(hours=1)
    system.advance()
    assert (provider.seen[-1].hour, provider.seen[-1].value) == (late, 7)
    assert system.books().accepted == 16


@pytest.mark.parametrize("arrived", [True, False])
def test_after_an_outage_of_36_days_what_is_unknown_stays_so_until_it_is_decided(
    system: System, arrived: bool
) -> None:
    provider = aged(system)
    provider.faults.append(answer_lost if arrived else answering(Cause.TIMED_OUT))
    system.use(7)
    system.advance()
    provider.always = answering(Cause.CONNECTION_FAILED)
    for _ in range(3):
        system.later(days=12)
        system.advance()
        assert system.books().open == 7
    assert system.carries() == []
    provider.always = None
    system.later(hours=2)
    system.advance()
    assert system.states() == [(1, "parked", "too_old")]
    assert system.carries() == []
    # What reading back does, or a person.
    assert system.reports.unpark(1, arrived=arrived, now=system.clock.now())
    system.later(days=1)
    system.advance()
    system.later(hours=1)
    system.advance()
    assert [line[2:] for line in system.carries()] == ([] if arrived else [(7, "too_old")])
    assert sum(system.told(provider).values()) == 7
    assert system.books().accepted == 7


def test_what_an_outage_piled_up_is_told_over_as_many_hours_as_it_takes(system: System) -> None:
    provider = aged(system)
    provider.always = answering(Cause.KEY_REFUSED)
    for back in range(4):
        system.use(MAX_HOUR_VALUE - 1, LAST_HOUR - back * HOUR)
    system.advance()
    system.later(days=36)
    provider.always = None
    provider.seen.clear()
    for _ in range(6):
        system.advance()
        system.later(hours=1)
    assert [report.value for report in provider.seen] == [MAX_HOUR_VALUE] * 3 + [MAX_HOUR_VALUE - 4]
    assert system.books().accepted == system.books().logged


def test_late_usage_of_an_hour_that_is_too_old_is_carried(system: System) -> None:
    aged(system)
    system.use(7)
    system.advance()
    system.later(days=40)
    system.use(2)
    system.advance()
    assert [line[2:] for line in system.carries()] == [(2, "too_old")]


# -- whole units -----------------------------------------------------------------------------------


def figures_are_exact(system: System, decimals: int) -> None:
    query = sa.text(
        "SELECT held_microcredits, value FROM usage_reports WHERE state IN ('accepted', 'pending')"
    )
    with system.engine.connect() as connection:
        for held, value in connection.execute(query):
            assert held == value * 10 ** (6 - decimals)


@pytest.mark.parametrize("decimals", [0, 2, 5])
def test_a_coarse_meter_loses_nothing_to_rounding(system: System, decimals: int) -> None:
    system.metered = coarse(decimals)
    amounts = [1_234_567, 999_999, 1, 0, 5, 3_000_000, 7_654_321, 0, 0, 1_000_003]
    for amount in amounts:
        if amount:
            system.use(amount, system.clock.now().replace(minute=0))
        system.later(hours=1)
        system.advance()
        figures_are_exact(system, decimals)
    unit = 10 ** (6 - decimals)
    for _ in range(2):
        system.later(hours=1)
        system.advance()
    books = system.books()
    assert books.accepted == sum(amounts) // unit * unit
    assert books.parked == sum(amounts) % unit
    assert (books.open, books.unclaimed) == (0, 0)
    assert system.told(system.ledger) == {KEY: sum(amounts) // unit}
    lines = [line[3] for line in system.carries()]
    assert set(lines) <= {"remainder"}
    assert len(lines) <= 2 * len([amount for amount in amounts if amount])


def test_a_remainder_does_not_move_while_nothing_is_used(system: System) -> None:
    system.metered = coarse(0)
    system.use(1_300_000)
    for _ in range(5):
        system.advance()
        system.later(hours=1)
    assert system.carries() == [(LAST_HOUR, THIS_HOUR, 300_000, "remainder")]
    [below] = system.reports.parked_by_cause("ledger")
    assert (below.cause, below.amount_microcredits) == ("below_unit", 300_000)
    system.use(700_000, system.clock.now().replace(minute=0))
    system.later(hours=1)
    system.advance()
    assert system.told(system.ledger) == {KEY: 2}
    assert (system.books().accepted, system.books().parked) == (2_000_000, 0)


def test_less_than_a_unit_can_be_sealed_and_is_carried_on(system: System) -> None:
    system.metered = coarse(0)
    system.use(300_000)
    system.advance()
    system.seal(0)
    system.advance()
    assert system.carries() == [(LAST_HOUR, THIS_HOUR, 300_000, "late")]
    system.later(hours=1)
    system.advance()
    assert system.books().parked == 300_000


# -- below zero ------------------------------------------------------------------------------------


def overbilled(system: System, by: int) -> None:
    """The provider billed more than it had accepted: that much less is to be told from now on."""
    system.use(10)
    system.advance()
    system.seal(10 + by)
    system.advance()
    assert system.carries() == [(LAST_HOUR, THIS_HOUR, -by, "billed")]


def test_a_negative_hour_is_made_up_for_by_the_next_usage(system: System) -> None:
    overbilled(system, 30)
    system.later(hours=1)
    system.advance()
    assert system.books().parked == -30
    for amount in (20, 50):
        system.use(amount, system.clock.now().replace(minute=0))
        system.later(hours=1)
        system.advance()
    assert [line[2:] for line in system.carries()[1:]] == [(-20, "below_zero"), (-10, "below_zero")]
    assert [report.value for report in system.ledger.seen] == [10, 40]
    assert system.books().accepted == system.books().logged == 80
    assert system.reports.parked_by_cause("ledger") == []


def test_a_negative_hour_lowers_a_later_one_that_was_told_already(system: System) -> None:
    overbilled(system, 30)
    system.reports.plan(destination(), until=THIS_HOUR, now=NOW)
    system.use(50, THIS_HOUR + HOUR)
    system.later(hours=2)
    held_back = system.ledger
    # The negative hour itself is not known yet when the later one is told.
    with system.engine.begin() as connection:
        connection.execute(sa.text("UPDATE report_carries SET to_hour = to_hour + interval '5 h'"))
    system.advance()
    assert hours_told(system, THIS_HOUR + HOUR) == [50]
    with system.engine.begin() as connection:
        connection.execute(sa.text("UPDATE report_carries SET to_hour = to_hour - interval '5 h'"))
    system.advance()
    system.advance()
    assert hours_told(system, THIS_HOUR + HOUR) == [50, 20]
    assert held_back.seen[-1].value == 20
    assert system.books().parked == 0


def test_what_nothing_makes_up_for_stays_parked_and_is_told(system: System) -> None:
    overbilled(system, 30)
    for _ in range(3):
        system.later(hours=1)
        system.advance()
    [parked] = system.reports.parked_by_cause("ledger")
    assert (parked.cause, parked.amount_microcredits) == ("below_zero", -30)
    assert [report.value for report in system.ledger.seen] == [10]


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
    figures_are_exact(system, 0)


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


def test_a_seal_makes_the_next_comparison_one_of_a_month(system: System) -> None:
    old = LAST_HOUR - timedelta(days=8)
    system.advance()
    system.use(5, old, customer="globex")
    system.later(minutes=1)
    assert system.advance().planned == 0
    system.seal(0)
    assert system.advance().planned == 1
    system.use(5, old, customer="globex")
    system.later(minutes=1)
    assert system.advance().planned == 0
