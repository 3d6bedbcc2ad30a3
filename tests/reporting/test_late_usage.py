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
    Container,
    Killed,
    answer_lost,
    answering,
    coarse,
    metered,
)
from support import NOW

from billing.providers.port import ProviderCause
from billing.reporting.report_store import CustomerIds, Destination
from billing.reporting.usage_report import ReportState

HOUR = timedelta(hours=1)
KEY = ("acme", "page-capture")
MICRO = 1_000_000


def hours_told(container: Container, hour: datetime) -> list[int]:
    return [report.value for report in container.ledger.seen if report.hour == hour]


def test_a_row_after_the_seal_is_carried_to_the_hour_under_way_and_told_there(
    container: Container,
) -> None:
    container.use(10)
    container.advance()
    container.seal(10)
    container.use(5)
    container.advance()
    assert hours_told(container, LAST_HOUR) == [10]
    assert container.carries() == [(LAST_HOUR, THIS_HOUR, 5, "late")]
    assert container.states() == [(1, "accepted", "taken"), (2, "parked", "carried")]
    assert container.books().unclaimed == 5
    container.later(hours=1)
    container.advance()
    assert hours_told(container, THIS_HOUR) == [5]
    assert hours_told(container, LAST_HOUR) == [10]
    container.assert_all_told()


def test_what_is_carried_joins_the_usage_of_its_new_hour(container: Container) -> None:
    container.use(10)
    container.advance()
    container.seal(10)
    container.use(5)
    container.use(100, THIS_HOUR)
    container.advance()
    container.later(hours=1)
    container.advance()
    assert hours_told(container, THIS_HOUR) == [105]
    container.use(2)
    container.advance()
    container.later(hours=1)
    container.advance()
    assert [line[2] for line in container.carries()] == [5, 2]
    container.assert_all_told()


def test_an_hour_never_told_before_its_seal_is_carried_whole(container: Container) -> None:
    container.seal(0)
    container.use(5)
    container.advance()
    assert container.ledger.seen == []
    assert container.states() == [(1, "parked", "carried")]
    container.later(hours=1)
    container.advance()
    assert container.told(container.ledger) == {KEY: 5}
    container.assert_all_told()


def test_what_waited_unsent_at_the_seal_is_never_sent_and_carried(container: Container) -> None:
    container.use(7)
    container.ledger.always = answering(ProviderCause.KEY_REFUSED)
    container.advance()
    container.seal(0)
    container.ledger.always = None
    container.ledger.seen.clear()
    container.advance()
    assert container.ledger.seen == []
    assert container.states() == [(1, "parked", "sealed"), (2, "parked", "carried")]
    container.later(hours=1)
    container.advance()
    assert [(report.hour, report.value) for report in container.ledger.seen] == [(THIS_HOUR, 7)]
    container.assert_all_told()


def test_a_report_of_a_sealed_hour_is_not_claimed(container: Container) -> None:
    container.use(7)
    container.use(8, LAST_HOUR - HOUR)
    container.reports.plan(destination(), until=NOW, now=NOW)
    container.seal(0, end=LAST_HOUR)
    lease = timedelta(minutes=5)
    [claimed] = container.reports.claim("ledger", now=NOW, lease=lease, limit=9)
    assert claimed.report.hour == LAST_HOUR
    assert container.reports.claim("ledger", now=NOW, lease=lease, limit=9) == []


def test_an_hour_in_which_the_period_ends_is_not_sealed(container: Container) -> None:
    container.use(7)
    container.seal(0, end=LAST_HOUR + timedelta(minutes=59))
    container.advance()
    assert hours_told(container, LAST_HOUR) == [7]
    assert container.carries() == []
    container.assert_all_told()


def test_an_hour_whose_carry_line_is_sealed_too_is_carried_on(container: Container) -> None:
    container.seal(0)
    container.use(5)
    container.advance()
    container.seal(0, start=THIS_HOUR, end=THIS_HOUR + HOUR, invoice="in_2")
    container.later(hours=1)
    container.advance()
    assert container.ledger.seen == []
    assert container.carries() == [
        (LAST_HOUR, THIS_HOUR, 5, "late"),
        (THIS_HOUR, THIS_HOUR + HOUR, 5, "late"),
    ]
    container.later(hours=1)
    container.advance()
    container.assert_all_told()


def test_late_usage_of_a_month_ago_is_found_at_once_after_the_seal(container: Container) -> None:
    old = LAST_HOUR - timedelta(days=8)
    container.use(10, old)
    container.advance()
    container.use(5, old)
    assert container.advance().planned == 0  # the recent hours only
    container.seal(10, start=old - HOUR, end=old + HOUR)
    assert container.advance().planned == 1
    assert container.carries() == [(old, THIS_HOUR, 5, "late")]


def test_a_hold_by_hand_outlasts_the_seal(container: Container) -> None:
    container.use(7)
    container.reports.plan(destination(), until=NOW, now=NOW)
    assert container.reports.hold_back(1, "disputed")
    container.seal(0)
    container.use(2)
    container.advance()
    assert container.carries() == []
    assert container.books().parked == 9
    assert container.reports.lift_hold(2, arrived=None, now=NOW)
    container.advance()
    assert container.carries() == [(LAST_HOUR, THIS_HOUR, 9, "late")]
    assert container.ledger.seen == []


def test_what_was_carried_cannot_be_sent_again(container: Container) -> None:
    container.seal(0)
    container.use(5)
    container.advance()
    assert not container.reports.retry(1, now=NOW)
    assert not container.reports.lift_hold(1, arrived=None, now=NOW)
    assert not container.reports.lift_hold(1, arrived=True, now=NOW)


# -- providers and customers -----------------------------------------------------------------------


def test_what_a_former_provider_sealed_is_not_told_to_the_new_one(container: Container) -> None:
    container.use(7)
    container.use(9, LAST_HOUR - HOUR, customer="globex")
    container.advance()
    container.seal(7)
    container.use(4)
    container.use(3, LAST_HOUR - HOUR)
    container.use(2, LAST_HOUR - HOUR, customer="globex")
    container.advance(container.file)
    assert [(report.hour, report.value) for report in container.file.seen] == [
        (LAST_HOUR - HOUR, 2)
    ]
    container.later(hours=1)
    container.advance(container.file)
    assert container.told(container.file) == {KEY: 7, ("globex", "page-capture"): 2}
    container.assert_all_told(container.ledger, container.file)


def stripe() -> Destination:
    return Destination(
        environment="test", provider="ledger", customer_ids=CustomerIds.STRIPE, metered=metered
    )


def destination() -> Destination:
    return Destination(
        environment="test", provider="ledger", customer_ids=CustomerIds.OURS, metered=metered
    )


def test_a_sealed_hour_of_an_unmapped_customer_waits_and_is_carried_once_it_is_mapped(
    container: Container,
) -> None:
    container.seal(0)
    container.use(7)
    container.reports.plan(stripe(), until=NOW, now=NOW)
    container.use(1)
    container.reports.plan(stripe(), until=NOW, now=NOW)
    assert container.carries() == []
    assert container.books().parked == 8
    with container.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE customers SET stripe_customer_id = 'cus_1' WHERE id = 'acme'")
        )
    container.reports.plan(stripe(), until=NOW, now=NOW)
    assert container.carries() == [(LAST_HOUR, THIS_HOUR, 8, "late")]
    assert container.books().parked == 0


# -- several at once, and death --------------------------------------------------------------------


def test_plans_at_once_carry_everything_once(container: Container) -> None:
    container.metered = coarse(0)
    for back in range(8):
        for customer in ("acme", "globex"):
            container.seal(0, invoice=f"in_{customer}", end=THIS_HOUR - 3 * HOUR, customer=customer)
            container.use(1_400_000, LAST_HOUR - back * HOUR, customer=customer)
    gate = threading.Barrier(3)

    def run(_: int) -> None:
        gate.wait(timeout=60)
        container.reporter(senders=2).advance()

    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(run, range(3)))
        gate.reset()
        container.later(hours=1)
    amounts = [line[2:] for line in container.carries()]
    assert amounts.count((1_400_000, "late")) == 2 * 5
    for _ in range(3):
        container.advance()
        container.later(hours=1)
    for customer in ("acme", "globex"):
        books = container.books(customer)
        assert books.accepted == 11_000_000
        assert books.parked == 200_000
    container.assert_figures_are_exact(0)


@pytest.mark.parametrize("statement", ["INSERT INTO report_carries", "INSERT INTO usage_reports"])
def test_a_death_between_a_line_and_its_revision_leaves_neither(
    container: Container, statement: str
) -> None:
    container.seal(0)
    container.use(5)
    engine = container.engine

    def dies(connection: Any, cursor: Any, text: str, *_: Any) -> None:
        del connection, cursor
        if statement in text:
            raise Killed

    sa.event.listen(engine, "before_cursor_execute", dies)
    container.die()
    sa.event.remove(engine, "before_cursor_execute", dies)
    assert container.carries() == []
    assert container.states() == []
    assert container.books().unclaimed == 5
    container.advance()
    assert container.carries() == [(LAST_HOUR, THIS_HOUR, 5, "late")]
    container.later(hours=1)
    container.advance()
    container.assert_all_told()


def test_what_changed_between_reading_and_writing_is_left_to_the_next_pass(
    container: Container,
) -> None:
    container.use(7)
    container.ledger.always = answering(ProviderCause.KEY_REFUSED)
    container.advance()
    container.seal(0)
    other = sa.create_engine(container.engine.url)
    taken = threading.Event()

    def claims_first(connection: Any, cursor: Any, text: str, *_: Any) -> None:
        del connection, cursor
        if "FOR UPDATE" in text and "AND latest" in text and not taken.is_set():
            taken.set()
            with other.begin() as somebody:
                somebody.execute(sa.text("UPDATE usage_reports SET cause = 'by_hand'"
                                         ", state = 'parked'"))  # fmt: skip

    sa.event.listen(container.engine, "before_cursor_execute", claims_first)
    assert container.reports.plan(destination(), until=NOW, now=NOW) == 0
    sa.event.remove(container.engine, "before_cursor_execute", claims_first)
    other.dispose()
    assert taken.is_set()
    assert container.carries() == []


# -- up to now -------------------------------------------------------------------------------------


def test_the_hour_under_way_is_told_as_far_as_it_has_come_and_revised_later(
    container: Container,
) -> None:
    container.metered = coarse(2)
    container.use(1_234_567, THIS_HOUR)
    done = container.reporter().advance(up_to_now=True)
    assert done.became[ReportState.ACCEPTED] == 1
    assert container.told(container.ledger) == {KEY: 123}
    assert container.reporter().advance(up_to_now=True).planned == 0
    assert container.books().unclaimed == 4_567
    container.use(20_000, THIS_HOUR)
    container.later(hours=1)
    container.advance()
    assert container.told(container.ledger) == {KEY: 125}
    assert container.carries() == [(THIS_HOUR, THIS_HOUR + HOUR, 4_567, "remainder")]


def test_what_is_carried_into_the_hour_under_way_is_told_by_the_next_run(
    container: Container,
) -> None:
    container.seal(0)
    container.use(5)
    container.use(6, THIS_HOUR)
    container.reporter().advance(up_to_now=True)
    assert [report.value for report in container.ledger.seen] == [6]
    container.reporter().advance(up_to_now=True)
    assert [report.value for report in container.ledger.seen] == [6, 11]
    container.assert_all_told()


@pytest.mark.parametrize("undecided", [True, False])
def test_a_seal_makes_the_next_comparison_one_of_a_month(
    container: Container, undecided: bool
) -> None:
    old = LAST_HOUR - timedelta(days=8)
    container.use(1)
    container.ledger.faults.extend([answer_lost, answer_lost] * undecided)
    container.advance()
    container.use(5, old, customer="globex")
    container.later(minutes=1)
    assert container.advance().planned == 0
    container.seal(1)
    assert container.advance().planned == 1
    assert [seal.settled_at is None for seal in container.reports.closed_periods.list()] == [
        undecided
    ]
    container.use(5, old, customer="globex")
    container.later(minutes=1)
    assert container.advance().planned == 0
