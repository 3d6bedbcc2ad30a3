"""What no hour can tell: of long ago, less than a unit, less than nothing."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from reporting_support import LAST_HOUR, THIS_HOUR, Aged, System, answer_lost, answering, coarse

from billing.providers.port import Cause
from billing.reporting.usage_report import MAX_HOUR_VALUE

HOUR = timedelta(hours=1)
KEY = ("acme", "page-capture")


def hours_told(system: System, hour: datetime) -> list[int]:
    return [report.value for report in system.ledger.seen if report.hour == hour]


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


@pytest.mark.parametrize("decimals", [0, 2, 5])
def test_a_coarse_meter_loses_nothing_to_rounding(system: System, decimals: int) -> None:
    system.metered = coarse(decimals)
    amounts = [1_234_567, 999_999, 1, 0, 5, 3_000_000, 7_654_321, 0, 0, 1_000_003]
    for amount in amounts:
        if amount:
            system.use(amount, system.clock.now().replace(minute=0))
        system.later(hours=1)
        system.advance()
        system.assert_figures_are_exact(decimals)
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
    system.use(50, THIS_HOUR + HOUR)
    system.later(hours=2)
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
    assert system.books().parked == 0


def test_what_nothing_makes_up_for_stays_parked_and_is_told(system: System) -> None:
    overbilled(system, 30)
    for _ in range(3):
        system.later(hours=1)
        system.advance()
    [parked] = system.reports.parked_by_cause("ledger")
    assert (parked.cause, parked.amount_microcredits) == ("below_zero", -30)
    assert [report.value for report in system.ledger.seen] == [10]
