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
    Killed,
    System,
    answer_lost,
    answering,
    killed_after_sending,
    metered,
)
from support import NOW

from billing.providers.port import Cause, MeteredLine, ProviderInvoice
from billing.reporting.closed_periods import notice
from billing.reporting.confirmations import Confirmations
from billing.reporting.read_back import Reader
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


def settle(system: System) -> list[Difference]:
    return list(system.reports.seals.settle("ledger", by_name, system.clock.now()))


def by_name(meter: str) -> Metered | None:
    return metered("page-capture") if meter == METER else None


def settled(system: System) -> list[bool]:
    return [seal.settled_at is not None for seal in reversed(system.reports.seals.list())]


# -- noticing --------------------------------------------------------------------------------------


def test_an_invoice_seals_each_of_its_periods_once(system: System) -> None:
    final = invoice(line(5), line(7, START + HOUR), line(1, meter="another"))
    for sealed in (2, 0, 0):
        assert system.reports.seals.notice("ledger", "acme", final, NOW) == sealed
    [other, own] = sorted(system.reports.seals.list(), key=lambda seal: seal.meter)
    assert (own.billed_value, own.period_start, own.period_end) == (12, START, THIS_HOUR)
    assert (other.billed_value, other.invoice_ref, other.customer) == (1, "in_1", "acme")


def test_a_draft_seals_nothing(system: System) -> None:
    assert system.reports.seals.notice("ledger", "acme", invoice(line(5), final=False), NOW) == 0
    assert system.reports.seals.list() == []


def test_a_notice_belongs_to_the_transaction_it_came_in(system: System) -> None:
    with system.engine.connect() as connection:
        assert notice(connection, "ledger", "acme", invoice(line(5)), NOW) == 1
        connection.rollback()
    assert system.reports.seals.list() == []


def test_seals_are_listed_by_provider_and_by_whether_they_wait(system: System) -> None:
    system.seal(0)
    system.seal(0, provider=system.file, invoice="in_2")
    assert [seal.provider for seal in system.reports.seals.list("file")] == ["file"]
    assert len(system.reports.seals.list(unsettled=True)) == 2
    settle(system)
    assert [seal.provider for seal in system.reports.seals.list(unsettled=True)] == ["file"]
    assert len(system.reports.seals.list(limit=1)) == 1


# -- settling --------------------------------------------------------------------------------------


def test_what_was_billed_as_accepted_is_settled_and_nothing_is_carried(system: System) -> None:
    system.use(10)
    system.use(20, LAST_HOUR - HOUR)
    system.advance()
    system.seal(30)
    assert system.advance().differed == []
    assert settled(system) == [True]
    assert system.carries() == []
    assert settle(system) == []
    system.assert_all_told()


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
    system: System, billed: int, lines: list[tuple[datetime, int]]
) -> None:
    system.use(20, LAST_HOUR - HOUR)
    system.advance()
    system.later(minutes=1)
    system.use(10)
    system.use(50, THIS_HOUR)
    system.advance()
    system.seal(billed)
    [difference] = system.advance().differed
    assert (difference.accepted_value, difference.billed_value) == (30, billed)
    assert difference.invoice_refs == ["in_1"]
    assert system.carries() == [(hour, THIS_HOUR, amount, "billed") for hour, amount in lines]
    assert settled(system) == [True]
    system.later(hours=1)
    assert system.advance().differed == []
    books = system.books()
    assert (books.accepted, books.open, books.parked, books.unclaimed) == (80, 0, 0, 0)
    # What the customer pays: the invoice, and what is told after it.
    assert [r.value for r in system.ledger.seen if r.hour == THIS_HOUR] == [80 - billed]


def test_usage_that_comes_after_a_corrected_period_is_carried_as_late(system: System) -> None:
    system.use(10)
    system.advance()
    system.seal(8)
    system.advance()
    system.use(5)
    system.advance()
    assert [entry[2:] for entry in system.carries()] == [(2, "billed"), (5, "late")]
    system.later(hours=1)
    system.advance()
    assert [report.value for report in system.ledger.seen] == [10, 7]
    assert system.books().accepted == 15


def test_what_the_log_had_beyond_the_invoice_and_what_that_did_not_bill_are_two_lines(
    system: System,
) -> None:
    system.use(10)
    system.advance()
    system.use(5)
    system.seal(8)
    system.advance()
    assert [entry[2:] for entry in system.carries()] == [(2, "billed"), (5, "late")]
    assert system.books().unclaimed == 7


def test_what_was_billed_of_nothing_accepted_is_given_back(system: System) -> None:
    system.seal(4)
    system.use(50, THIS_HOUR)
    [difference] = system.advance().differed
    assert (difference.accepted_value, difference.billed_value) == (0, 4)
    assert system.carries() == [(LAST_HOUR, THIS_HOUR, -4, "billed")]
    assert system.states() == [(1, "confirmed", "billed")]
    system.later(hours=1)
    system.advance()
    assert [report.value for report in system.ledger.seen] == [46]
    assert system.books().accepted == 50


def test_a_second_invoice_of_a_period_adds_to_the_first(system: System) -> None:
    system.use(30)
    system.advance()
    system.seal(30)
    assert system.advance().differed == []
    system.seal(3, invoice="in_2")
    [difference] = system.advance().differed
    assert (difference.accepted_value, difference.billed_value) == (30, 33)
    assert difference.invoice_refs == ["in_1", "in_2"]
    assert [entry[2:] for entry in system.carries()] == [(-3, "billed")]
    assert settled(system) == [True, True]


def test_two_invoices_that_share_a_period_are_settled_together(system: System) -> None:
    system.use(30)
    system.advance()
    system.seal(10)
    system.seal(20, invoice="in_2")
    assert system.advance().differed == []
    assert settled(system) == [True, True]


@pytest.mark.parametrize("minutes", [1, 59])
def test_an_hour_between_two_periods_is_billed_with_the_second(
    system: System, minutes: int
) -> None:
    edge = LAST_HOUR + timedelta(minutes=minutes)
    system.use(10, LAST_HOUR - HOUR)
    system.use(20, LAST_HOUR)
    system.advance()
    system.seal(10, end=edge)
    assert system.advance().differed == []
    system.later(hours=2)
    system.seal(20, start=edge, end=THIS_HOUR + HOUR, invoice="in_2")
    assert system.advance().differed == []
    assert settled(system) == [True, True]


def test_other_customers_and_meters_do_not_count(system: System) -> None:
    system.use(10)
    system.use(11, customer="globex")
    system.use(12, sku="premium-proxy-search")
    system.advance()
    system.seal(10)
    assert system.advance().differed == []
    assert settled(system) == [True]


# -- undecided -------------------------------------------------------------------------------------


@pytest.mark.parametrize("billed", [7, 0])
@pytest.mark.parametrize("arrived", [True, False])
def test_what_is_unknown_at_the_seal_is_read_back_and_not_sent_again(
    system: System, billed: int, arrived: bool
) -> None:
    """Billed although it never arrived cannot be; then the books still come to the invoice."""
    system.use(7)
    system.ledger.faults.append(answer_lost if arrived else answering(Cause.TIMED_OUT))
    system.advance()
    system.seal(billed)
    system.later(minutes=10)
    system.advance()
    assert len(system.ledger.seen) == 1
    assert system.states() == [(1, "parked", "sealed")]
    assert settled(system) == [False]
    [report] = system.reports.list()
    assert (report.doubtful, report.confirm_at) == (True, system.clock.now())
    assert system.reports.unpark(1, arrived=arrived, now=system.clock.now())
    system.advance()
    assert settled(system) == [True]
    reasons = {entry[3]: entry[2] for entry in system.carries()}
    if arrived:
        assert reasons == ({} if billed else {"billed": 7})
    else:
        assert reasons == ({"billed": -7, "late": 7} if billed else {"late": 7})
    system.later(hours=1)
    system.advance()
    assert system.books().accepted == 7
    assert [report.value for report in system.ledger.seen[1:]] == ([] if billed else [7])


@pytest.mark.parametrize("arrived", [True, False])
def test_reading_back_decides_what_was_unknown_at_the_seal(system: System, arrived: bool) -> None:
    reader = Reader(Confirmations(system.engine), system.ledger, system.clock, environment="test")
    system.use(7)
    system.ledger.faults.append(answer_lost if arrived else answering(Cause.TIMED_OUT))
    system.advance()
    system.seal(7 if arrived else 0)
    for _ in range(6):
        system.advance()
        reader.confirm()
        system.later(minutes=40)
    assert settled(system) == [True]
    assert [entry[2:] for entry in system.carries()] == ([] if arrived else [(7, "late")])
    assert [r.hour for r in system.ledger.seen].count(LAST_HOUR) == 1
    books = system.books()
    assert (books.accepted, books.open, books.parked) == (7, 0, 0)


def test_what_is_being_sent_at_the_seal_is_waited_for(system: System) -> None:
    system.use(7)
    system.ledger.faults.append(killed_after_sending)
    system.die()
    system.seal(7)
    assert settle(system) == []
    assert system.states() == [(1, "sending", "")]
    assert settled(system) == [False]
    system.later(minutes=6)
    system.advance()
    assert system.states() == [(1, "parked", "sealed")]
    assert system.reports.unpark(1, arrived=True, now=system.clock.now())
    system.advance()
    assert settled(system) == [True]
    assert system.carries() == []
    system.assert_all_told()


def test_a_period_that_differs_waits_for_what_is_held_back_by_hand(system: System) -> None:
    system.use(10, LAST_HOUR - HOUR)
    system.advance()
    system.use(7)
    system.ledger.always = answering(Cause.KEY_REFUSED)
    system.advance()
    assert system.reports.park(2, "disputed")
    system.seal(9)
    system.ledger.always = None
    assert system.advance().differed == []
    assert settled(system) == [False]
    assert system.reports.unpark(2, arrived=None, now=system.clock.now())
    assert len(system.advance().differed) == 1
    assert sorted(entry[2:] for entry in system.carries()) == [(1, "billed"), (7, "late")]


def test_a_meter_that_nobody_knows_waits(system: System) -> None:
    seal = invoice(line(5, meter="another"))
    system.reports.seals.notice("ledger", "acme", seal, NOW)
    assert settle(system) == []
    assert settled(system) == [False]


def test_a_period_that_is_not_over_by_our_clock_waits(system: System) -> None:
    later = replace(line(0), period_end=NOW + timedelta(minutes=1))
    system.reports.seals.notice("ledger", "acme", invoice(later), NOW)
    assert settle(system) == []
    assert settled(system) == [False]
    system.later(minutes=1)
    settle(system)
    assert settled(system) == [True]


@pytest.mark.parametrize(
    "statement", ["INSERT INTO report_carries", "UPDATE report_seals", "DELETE FROM report_passes"]
)
def test_a_death_while_settling_leaves_nothing_half_done(system: System, statement: str) -> None:
    system.use(10)
    system.advance()
    system.seal(8)

    def dies(connection: Any, cursor: Any, text: str, *_: Any) -> None:
        del connection, cursor
        if statement in text:
            raise Killed

    sa.event.listen(system.engine, "before_cursor_execute", dies)
    system.die()
    sa.event.remove(system.engine, "before_cursor_execute", dies)
    assert settled(system) == [False]
    assert system.carries() == []
    assert system.books().accepted == 10
    assert len(system.advance().differed) == 1
    system.later(hours=1)
    system.advance()
    assert system.books().accepted == 10
    assert [report.value for report in system.ledger.seen] == [10, 2]


def test_a_revision_written_in_the_same_moment_puts_the_settlement_off(system: System) -> None:
    system.use(10)
    system.advance()
    system.seal(8)
    other = sa.create_engine(system.engine.url)
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

    sa.event.listen(system.engine, "before_cursor_execute", first)
    assert settle(system) == []
    sa.event.remove(system.engine, "before_cursor_execute", first)
    other.dispose()
    assert written == [1]
    assert settled(system) == [False]
    assert system.carries() == []
