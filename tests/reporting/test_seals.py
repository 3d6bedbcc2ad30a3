"""Sealed periods: noticed once, settled once, and what was billed is what the books say."""

from __future__ import annotations

from dataclasses import replace
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
    killed_after_sending,
    metered,
)
from support import NOW

from billing.providers.port import MeteredLine, ProviderCause, ProviderInvoice
from billing.reporting.closed_periods import record_closed_periods
from billing.reporting.confirmations import ConfirmationStore
from billing.reporting.read_back import ReadBack
from billing.reporting.report_store import Metered
from billing.reporting.true_up import Difference

HOUR = timedelta(hours=1)
START = THIS_HOUR - 8 * HOUR
KEY = ("acme", "page-capture")
METER = metered("page-capture").meter.name


def invoice(*lines: MeteredLine, final: bool = True) -> ProviderInvoice:
    return ProviderInvoice(
        provider_id="in_1", customer_ref="acme", status="open" if final else "draft",
        currency="USD", total_minor=1, period_start=START, period_end=THIS_HOUR,
        finalised_at=NOW if final else None, payment_failed=False, lines=lines,
    )  # fmt: skip


def line(value: int, start: datetime = START, meter: str = METER) -> MeteredLine:
    return MeteredLine(meter=meter, period_start=start, period_end=THIS_HOUR, value=value)


def settle(container: Container) -> list[Difference]:
    return list(container.reports.closed_periods.true_up("ledger", by_name, container.clock.now()))


def by_name(meter: str) -> Metered | None:
    return metered("page-capture") if meter == METER else None


def settled(container: Container) -> list[bool]:
    return [
        seal.settled_at is not None for seal in reversed(container.reports.closed_periods.list())
    ]


# -- noticing --------------------------------------------------------------------------------------


def test_an_invoice_seals_each_of_its_periods_once(container: Container) -> None:
    final = invoice(line(5), line(7, START + HOUR), line(1, meter="another"))
    for sealed in (2, 0, 0):
        assert container.record_invoice("ledger", "acme", final) == sealed
    [other, own] = sorted(container.reports.closed_periods.list(), key=lambda seal: seal.meter)
    assert (own.billed_value, own.period_start, own.period_end) == (12, START, THIS_HOUR)
    assert (other.billed_value, other.invoice_ref, other.customer) == (1, "in_1", "acme")


def test_a_draft_seals_nothing(container: Container) -> None:
    assert container.record_invoice("ledger", "acme", invoice(line(5), final=False)) == 0
    assert container.reports.closed_periods.list() == []


def test_a_notice_belongs_to_the_transaction_it_came_in(container: Container) -> None:
    with container.engine.connect() as connection:
        assert record_closed_periods(connection, "ledger", "acme", invoice(line(5)), NOW) == 1
        connection.rollback()
    assert container.reports.closed_periods.list() == []


def test_seals_are_listed_by_provider_and_by_whether_they_wait(container: Container) -> None:
    container.seal(0)
    container.seal(0, provider=container.file, invoice="in_2")
    assert [seal.provider for seal in container.reports.closed_periods.list("file")] == ["file"]
    assert len(container.reports.closed_periods.list(unsettled=True)) == 2
    settle(container)
    assert [seal.provider for seal in container.reports.closed_periods.list(unsettled=True)] == [
        "file"
    ]
    assert len(container.reports.closed_periods.list(limit=1)) == 1


# -- settling --------------------------------------------------------------------------------------


def test_what_was_billed_as_accepted_is_settled_and_nothing_is_carried(
    container: Container,
) -> None:
    container.use(10)
    container.use(20, LAST_HOUR - HOUR)
    container.advance()
    container.seal(30)
    assert container.advance().differed == []
    assert settled(container) == [True]
    assert container.carries() == []
    assert settle(container) == []
    container.assert_all_told()


@pytest.mark.parametrize(
    ("billed", "lines"),
    [
        (33, [(LAST_HOUR, -3)]),
        (25, [(LAST_HOUR, 5)]),
        (12, [(LAST_HOUR, 10), (LAST_HOUR - HOUR, 8)]),
        (0, [(LAST_HOUR, 10), (LAST_HOUR - HOUR, 20)]),
    ],
)
def test_what_was_billed_otherwise_is_carried_with_its_sign(
    container: Container, billed: int, lines: list[tuple[datetime, int]]
) -> None:
    container.use(20, LAST_HOUR - HOUR)
    container.advance()
    container.later(minutes=1)
    container.use(10)
    container.use(50, THIS_HOUR)
    container.advance()
    container.seal(billed)
    [difference] = container.advance().differed
    assert (difference.accepted_value, difference.billed_value) == (30, billed)
    assert difference.invoice_refs == ["in_1"]
    assert container.carries() == [(hour, THIS_HOUR, amount, "billed") for hour, amount in lines]
    assert settled(container) == [True]
    container.later(hours=1)
    assert container.advance().differed == []
    books = container.books()
    assert (books.accepted, books.open, books.parked, books.unclaimed) == (80, 0, 0, 0)
    # What the customer pays: the invoice, and what is told after it.
    assert [r.value for r in container.ledger.seen if r.hour == THIS_HOUR] == [80 - billed]


def test_usage_that_comes_after_a_corrected_period_is_carried_as_late(container: Container) -> None:
    container.use(10)
    container.advance()
    container.seal(8)
    container.advance()
    container.use(5)
    container.advance()
    assert [entry[2:] for entry in container.carries()] == [(2, "billed"), (5, "late")]
    container.later(hours=1)
    container.advance()
    assert [report.value for report in container.ledger.seen] == [10, 7]
    assert container.books().accepted == 15


def test_what_the_log_had_beyond_the_invoice_and_what_that_did_not_bill_are_two_lines(
    container: Container,
) -> None:
    container.use(10)
    container.advance()
    container.use(5)
    container.seal(8)
    container.advance()
    assert [entry[2:] for entry in container.carries()] == [(2, "billed"), (5, "late")]
    assert container.books().unclaimed == 7


def test_what_was_billed_of_nothing_accepted_is_given_back(container: Container) -> None:
    container.seal(4)
    container.use(50, THIS_HOUR)
    [difference] = container.advance().differed
    assert (difference.accepted_value, difference.billed_value) == (0, 4)
    assert container.carries() == [(LAST_HOUR, THIS_HOUR, -4, "billed")]
    assert container.states() == [(1, "confirmed", "billed")]
    container.later(hours=1)
    container.advance()
    assert [report.value for report in container.ledger.seen] == [46]
    assert container.books().accepted == 50


def test_a_second_invoice_of_a_period_adds_to_the_first(container: Container) -> None:
    container.use(30)
    container.advance()
    container.seal(30)
    assert container.advance().differed == []
    container.seal(3, invoice="in_2")
    [difference] = container.advance().differed
    assert (difference.accepted_value, difference.billed_value) == (30, 33)
    assert difference.invoice_refs == ["in_1", "in_2"]
    assert [entry[2:] for entry in container.carries()] == [(-3, "billed")]
    assert settled(container) == [True, True]


def test_two_invoices_that_share_a_period_are_settled_together(container: Container) -> None:
    container.use(30)
    container.advance()
    container.seal(10)
    container.seal(20, invoice="in_2")
    assert container.advance().differed == []
    assert settled(container) == [True, True]


@pytest.mark.parametrize("minutes", [1, 59])
def test_an_hour_between_two_periods_is_billed_with_the_second(
    container: Container, minutes: int
) -> None:
    edge = LAST_HOUR + timedelta(minutes=minutes)
    container.use(10, LAST_HOUR - HOUR)
    container.use(20, LAST_HOUR)
    container.advance()
    container.seal(10, end=edge)
    assert container.advance().differed == []
    container.later(hours=2)
    container.seal(20, start=edge, end=THIS_HOUR + HOUR, invoice="in_2")
    assert container.advance().differed == []
    assert settled(container) == [True, True]


def test_other_customers_and_meters_do_not_count(container: Container) -> None:
    container.use(10)
    container.use(11, customer="globex")
    container.use(12, sku="premium-proxy-search")
    container.advance()
    container.seal(10)
    assert container.advance().differed == []
    assert settled(container) == [True]


# -- undecided -------------------------------------------------------------------------------------


@pytest.mark.parametrize("billed", [7, 0])
@pytest.mark.parametrize("arrived", [True, False])
def test_what_is_unknown_at_the_seal_is_read_back_and_not_sent_again(
    container: Container, billed: int, arrived: bool
) -> None:
    """Billed although it never arrived cannot be; then the books still come to the invoice."""
    container.use(7)
    container.ledger.faults.append(answer_lost if arrived else answering(ProviderCause.TIMED_OUT))
    container.advance()
    container.seal(billed)
    container.later(minutes=10)
    container.advance()
    assert len(container.ledger.seen) == 1
    assert container.states() == [(1, "parked", "sealed")]
    assert settled(container) == [False]
    [report] = container.reports.list()
    assert (report.doubtful, report.confirm_at) == (True, container.clock.now())
    assert container.reports.lift_hold(1, arrived=arrived, now=container.clock.now())
    container.advance()
    assert settled(container) == [True]
    reasons = {entry[3]: entry[2] for entry in container.carries()}
    if arrived:
        assert reasons == ({} if billed else {"billed": 7})
    else:
        assert reasons == ({"billed": -7, "late": 7} if billed else {"late": 7})
    container.later(hours=1)
    container.advance()
    assert container.books().accepted == 7
    assert [report.value for report in container.ledger.seen[1:]] == ([] if billed else [7])


@pytest.mark.parametrize("arrived", [True, False])
def test_reading_back_decides_what_was_unknown_at_the_seal(
    container: Container, arrived: bool
) -> None:
    reader = ReadBack(
        ConfirmationStore(container.engine), container.ledger, container.clock, environment="test"
    )
    container.use(7)
    container.ledger.faults.append(answer_lost if arrived else answering(ProviderCause.TIMED_OUT))
    container.advance()
    container.seal(7 if arrived else 0)
    for _ in range(6):
        container.advance()
        reader.confirm()
        container.later(minutes=40)
    assert settled(container) == [True]
    assert [entry[2:] for entry in container.carries()] == ([] if arrived else [(7, "late")])
    assert [r.hour for r in container.ledger.seen].count(LAST_HOUR) == 1
    books = container.books()
    assert (books.accepted, books.open, books.parked) == (7, 0, 0)


def test_what_is_being_sent_at_the_seal_is_waited_for(container: Container) -> None:
    container.use(7)
    container.ledger.faults.append(killed_after_sending)
    container.die()
    container.seal(7)
    assert settle(container) == []
    assert container.states() == [(1, "sending", "")]
    assert settled(container) == [False]
    container.later(minutes=6)
    container.advance()
    assert container.states() == [(1, "parked", "sealed")]
    assert container.reports.lift_hold(1, arrived=True, now=container.clock.now())
    container.advance()
    assert settled(container) == [True]
    assert container.carries() == []
    container.assert_all_told()


def test_a_period_that_differs_waits_for_what_is_held_back_by_hand(container: Container) -> None:
    container.use(10, LAST_HOUR - HOUR)
    container.advance()
    container.use(7)
    container.ledger.always = answering(ProviderCause.KEY_REFUSED)
    container.advance()
    assert container.reports.hold_back(2, "disputed")
    container.seal(9)
    container.ledger.always = None
    assert container.advance().differed == []
    assert settled(container) == [False]
    assert container.reports.lift_hold(2, arrived=None, now=container.clock.now())
    assert len(container.advance().differed) == 1
    assert sorted(entry[2:] for entry in container.carries()) == [(1, "billed"), (7, "late")]


def test_a_meter_that_nobody_knows_waits(container: Container) -> None:
    seal = invoice(line(5, meter="another"))
    container.record_invoice("ledger", "acme", seal)
    assert settle(container) == []
    assert settled(container) == [False]


def test_a_period_that_is_not_over_by_our_clock_waits(container: Container) -> None:
    later = replace(line(0), period_end=NOW + timedelta(minutes=1))
    container.record_invoice("ledger", "acme", invoice(later))
    assert settle(container) == []
    assert settled(container) == [False]
    container.later(minutes=1)
    settle(container)
    assert settled(container) == [True]


@pytest.mark.parametrize(
    "statement", ["INSERT INTO report_carries", "UPDATE report_seals", "DELETE FROM report_passes"]
)
def test_a_death_while_settling_leaves_nothing_half_done(
    container: Container, statement: str
) -> None:
    container.use(10)
    container.advance()
    container.seal(8)

    def dies(connection: Any, cursor: Any, text: str, *_: Any) -> None:
        del connection, cursor
        if statement in text:
            raise Killed

    sa.event.listen(container.engine, "before_cursor_execute", dies)
    container.die()
    sa.event.remove(container.engine, "before_cursor_execute", dies)
    assert settled(container) == [False]
    assert container.carries() == []
    assert container.books().accepted == 10
    assert len(container.advance().differed) == 1
    container.later(hours=1)
    container.advance()
    assert container.books().accepted == 10
    assert [report.value for report in container.ledger.seen] == [10, 2]


def test_a_revision_written_in_the_same_moment_puts_the_settlement_off(
    container: Container,
) -> None:
    container.use(10)
    container.advance()
    container.seal(8)
    other = sa.create_engine(container.engine.url)
    written: list[int] = []

    def first(connection: Any, cursor: Any, text: str, *_: Any) -> None:
        del connection, cursor
        if "UPDATE usage_reports SET latest = false" in text and not written:
            copy = """
                INSERT INTO usage_reports (customer_id, sku_id, hour, revision, latest, provider,
                    meter, overwrites, identifier, customer_ref, value, event_at,
                    total_microcredits, held_microcredits, state, cause, next_at, created_at)
                SELECT customer_id, sku_id, hour, 2, false, provider, meter, overwrites, 'other',
                    customer_ref, value, event_at, total_microcredits, held_microcredits,
                    'parked', 'by_hand', next_at, created_at FROM usage_reports
            """
            with other.begin() as somebody:
                written.append(somebody.execute(sa.text(copy)).rowcount)

    sa.event.listen(container.engine, "before_cursor_execute", first)
    assert settle(container) == []
    sa.event.remove(container.engine, "before_cursor_execute", first)
    other.dispose()
    assert written == [1]
    assert settled(container) == [False]
    assert container.carries() == []
