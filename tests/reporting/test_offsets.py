"""What no hour can tell: of long ago, less than a unit, less than nothing."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from reporting_support import LAST_HOUR, THIS_HOUR, Aged, Container, answer_lost, answering, coarse

from billing.providers.port import ProviderCause
from billing.providers.report_value import MAX_HOUR_VALUE

HOUR = timedelta(hours=1)
KEY = ("acme", "page-capture")


def hours_told(container: Container, hour: datetime) -> list[int]:
    return [report.value for report in container.ledger.seen if report.hour == hour]


# -- too old ---------------------------------------------------------------------------------------

LIMIT = timedelta(days=34)


def aged(container: Container) -> Aged:
    container.ledger = Aged(container.ledger.inner, container.clock, LIMIT)
    return container.ledger


def test_after_an_outage_of_36_days_what_was_never_sent_is_carried(container: Container) -> None:
    provider = aged(container)
    provider.always = answering(ProviderCause.KEY_REFUSED)
    container.use(7)
    container.use(9, LAST_HOUR + timedelta(days=30))
    container.advance()
    container.later(days=36)
    provider.always = None
    provider.seen.clear()
    container.advance()
    late = THIS_HOUR + timedelta(days=36)
    assert container.carries() == [(LAST_HOUR, late, 7, "too_old")]
    assert [(report.hour, report.value) for report in provider.seen] == [
        (LAST_HOUR + timedelta(days=30), 9)
    ]
    container.later(hours=1)
    container.advance()
    assert (provider.seen[-1].hour, provider.seen[-1].value) == (late, 7)
    assert container.books().accepted == 16


@pytest.mark.parametrize("arrived", [True, False])
def test_after_an_outage_of_36_days_what_is_unknown_stays_so_until_it_is_decided(
    container: Container, arrived: bool
) -> None:
    provider = aged(container)
    provider.faults.append(answer_lost if arrived else answering(ProviderCause.TIMED_OUT))
    container.use(7)
    container.advance()
    provider.always = answering(ProviderCause.CONNECTION_FAILED)
    for _ in range(3):
        container.later(days=12)
        container.advance()
        assert container.books().open == 7
    assert container.carries() == []
    provider.always = None
    container.later(hours=2)
    container.advance()
    assert container.states() == [(1, "parked", "too_old")]
    assert container.carries() == []
    # What reading back does, or a person.
    assert container.reports.lift_hold(1, arrived=arrived, now=container.clock.now())
    container.later(days=1)
    container.advance()
    container.later(hours=1)
    container.advance()
    assert [line[2:] for line in container.carries()] == ([] if arrived else [(7, "too_old")])
    assert sum(container.told(provider).values()) == 7
    assert container.books().accepted == 7


def test_what_an_outage_piled_up_is_told_over_as_many_hours_as_it_takes(
    container: Container,
) -> None:
    provider = aged(container)
    provider.always = answering(ProviderCause.KEY_REFUSED)
    for back in range(4):
        container.use(MAX_HOUR_VALUE - 1, LAST_HOUR - back * HOUR)
    container.advance()
    container.later(days=36)
    provider.always = None
    provider.seen.clear()
    for _ in range(6):
        container.advance()
        container.later(hours=1)
    assert [report.value for report in provider.seen] == [MAX_HOUR_VALUE] * 3 + [MAX_HOUR_VALUE - 4]
    assert container.books().accepted == container.books().logged


def test_late_usage_of_an_hour_that_is_too_old_is_carried(container: Container) -> None:
    aged(container)
    container.use(7)
    container.advance()
    container.later(days=40)
    container.use(2)
    container.advance()
    assert [line[2:] for line in container.carries()] == [(2, "too_old")]


# -- whole units -----------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [0, 2, 5])
def test_a_coarse_meter_loses_nothing_to_rounding(container: Container, decimals: int) -> None:
    container.metered = coarse(decimals)
    amounts = [1_234_567, 999_999, 1, 0, 5, 3_000_000, 7_654_321, 0, 0, 1_000_003]
    for amount in amounts:
        if amount:
            container.use(amount, container.clock.now().replace(minute=0))
        container.later(hours=1)
        container.advance()
        container.assert_figures_are_exact(decimals)
    unit = 10 ** (6 - decimals)
    for _ in range(2):
        container.later(hours=1)
        container.advance()
    books = container.books()
    assert books.accepted == sum(amounts) // unit * unit
    assert books.parked == sum(amounts) % unit
    assert (books.open, books.unclaimed) == (0, 0)
    assert container.told(container.ledger) == {KEY: sum(amounts) // unit}
    lines = [line[3] for line in container.carries()]
    assert set(lines) <= {"remainder"}
    assert len(lines) <= 2 * len([amount for amount in amounts if amount])


def test_a_remainder_does_not_move_while_nothing_is_used(container: Container) -> None:
    container.metered = coarse(0)
    container.use(1_300_000)
    for _ in range(5):
        container.advance()
        container.later(hours=1)
    assert container.carries() == [(LAST_HOUR, THIS_HOUR, 300_000, "remainder")]
    [below] = container.reports.attention_by_cause("ledger")
    assert (below.cause, below.amount_microcredits) == ("below_unit", 300_000)
    container.use(700_000, container.clock.now().replace(minute=0))
    container.later(hours=1)
    container.advance()
    assert container.told(container.ledger) == {KEY: 2}
    assert (container.books().accepted, container.books().parked) == (2_000_000, 0)


def test_less_than_a_unit_can_be_sealed_and_is_carried_on(container: Container) -> None:
    container.metered = coarse(0)
    container.use(300_000)
    container.advance()
    container.seal(0)
    container.advance()
    assert container.carries() == [(LAST_HOUR, THIS_HOUR, 300_000, "late")]
    container.later(hours=1)
    container.advance()
    assert container.books().parked == 300_000


# -- below zero ------------------------------------------------------------------------------------


def overbilled(container: Container, by: int) -> None:
    """The provider billed more than it had accepted: that much less is to be told from now on."""
    container.use(10)
    container.advance()
    container.seal(10 + by)
    container.advance()
    assert container.carries() == [(LAST_HOUR, THIS_HOUR, -by, "billed")]


def test_a_negative_hour_is_made_up_for_by_the_next_usage(container: Container) -> None:
    overbilled(container, 30)
    container.later(hours=1)
    container.advance()
    assert container.books().parked == -30
    for amount in (20, 50):
        container.use(amount, container.clock.now().replace(minute=0))
        container.later(hours=1)
        container.advance()
    assert [line[2:] for line in container.carries()[1:]] == [
        (-20, "below_zero"),
        (-10, "below_zero"),
    ]
    assert [report.value for report in container.ledger.seen] == [10, 40]
    assert container.books().accepted == container.books().logged == 80
    assert container.reports.attention_by_cause("ledger") == []


def test_a_negative_hour_lowers_a_later_one_that_was_told_already(container: Container) -> None:
    overbilled(container, 30)
    container.use(50, THIS_HOUR + HOUR)
    container.later(hours=2)
    # The negative hour itself is not known yet when the later one is told.
    with container.engine.begin() as connection:
        connection.execute(sa.text("UPDATE report_carries SET to_hour = to_hour + interval '5 h'"))
    container.advance()
    assert hours_told(container, THIS_HOUR + HOUR) == [50]
    with container.engine.begin() as connection:
        connection.execute(sa.text("UPDATE report_carries SET to_hour = to_hour - interval '5 h'"))
    container.advance()
    container.advance()
    assert hours_told(container, THIS_HOUR + HOUR) == [50, 20]
    assert container.books().parked == 0


def test_what_nothing_makes_up_for_stays_parked_and_is_told(container: Container) -> None:
    overbilled(container, 30)
    for _ in range(3):
        container.later(hours=1)
        container.advance()
    [parked] = container.reports.attention_by_cause("ledger")
    assert (parked.cause, parked.amount_microcredits) == ("below_zero", -30)
    assert [report.value for report in container.ledger.seen] == [10]
