"""What people are told of the outbox, and what they may decide."""

from __future__ import annotations

from datetime import timedelta

import pytest
from reporting_support import (
    LAST_HOUR,
    THIS_HOUR,
    System,
    answer_lost,
    answering,
    killed_after_sending,
    metered,
)
from support import NOW

from billing.core.errors import NotFound
from billing.core.periods import month_of
from billing.providers.port import Cause
from billing.reporting.adjustments import Reason
from billing.reporting.listing import Count
from billing.reporting.report_store import Metered
from billing.reporting.usage_report import State

HOUR = timedelta(hours=1)


@pytest.fixture
def told(system: System) -> System:
    """Acme: told 10 and 5 late after the seal. Globex: refused 7, then 2 more."""
    system.use(10)
    system.advance()
    system.seal(10)
    system.use(5)
    system.use(7, customer="globex")
    system.ledger.faults.append(answering(Cause.METER_MISSING))
    system.advance()
    system.use(2, customer="globex")
    system.advance()
    return system


def test_reports_are_listed_by_every_property_the_newest_hour_first(told: System) -> None:
    told.later(hours=1)
    told.advance()
    listed = told.reports.list
    assert [(row.customer, row.hour, row.revision) for row in listed()] == [
        ("acme", THIS_HOUR, 1),
        ("globex", LAST_HOUR, 2),
        ("acme", LAST_HOUR, 2),
    ]
    assert len(listed(only_latest=False)) == 5
    assert [row.cause for row in listed(states=[State.PARKED], customer="acme")] == ["carried"]
    assert [row.value for row in listed(cause=Cause.METER_MISSING.value)] == [9]
    assert listed(provider="file") == []
    assert listed(sku="premium-proxy-search") == []
    assert len(listed(limit=2)) == 2
    amounts = {row.customer: row.amount_microcredits for row in listed(states=[State.PARKED])}
    assert amounts == {"globex": 9, "acme": 0}


def test_a_report_is_shown_with_its_hours_history_and_lines(told: System) -> None:
    first = told.reports.list(customer="acme", only_latest=False)[-1]
    shown = told.reports.show(first.id)
    assert shown.report == first
    assert [(row.revision, row.state) for row in shown.revisions] == [
        (1, State.ACCEPTED),
        (2, State.PARKED),
    ]
    [line] = shown.carries
    assert (line.amount_microcredits, line.reason, line.to_hour) == (5, Reason.LATE, THIS_HOUR)
    with pytest.raises(NotFound, match="billing report list"):
        told.reports.show(999)


def test_lines_are_listed_by_customer_sku_and_either_period(told: System) -> None:
    month = month_of(NOW)
    assert len(told.reports.carries(customer="acme", sku="page-capture", period=month)) == 1
    assert told.reports.carries(customer="globex") == []
    assert told.reports.carries(sku="premium-proxy-search") == []
    assert told.reports.carries(period=month_of(month.end)) == []


def test_what_stands_where_is_counted_with_its_amount(told: System) -> None:
    assert told.reports.counts("ledger") == {State.PARKED: Count(2, 9)}
    told.later(hours=1)
    told.advance()
    assert told.reports.counts("ledger")[State.ACCEPTED] == Count(1, 5)
    assert told.reports.counts("file") == {}


def test_what_is_parked_needs_a_person_only_where_it_has_an_amount(told: System) -> None:
    [parked] = told.reports.parked_by_cause("ledger")
    assert (parked.cause, parked.reports, parked.amount_microcredits, parked.oldest) == (
        "meter_missing", 1, 9, LAST_HOUR,
    )  # fmt: skip
    assert told.reports.parked_by_cause("file") == []


def test_the_oldest_without_an_answer_or_a_confirmation_shows_its_age(system: System) -> None:
    assert system.reports.oldest_unconfirmed("ledger") is None
    system.use(7)
    system.advance()
    assert system.reports.oldest_unconfirmed("ledger") == NOW
    system.later(hours=1)
    system.use(2, LAST_HOUR - HOUR)
    system.ledger.always = answering(Cause.KEY_REFUSED)
    system.advance()
    assert system.reports.oldest_unconfirmed("ledger") == NOW
    assert system.reports.park(2, "disputed")
    system.use(1, LAST_HOUR - 2 * HOUR, customer="globex")
    system.advance()
    assert system.reports.oldest_unconfirmed("ledger") == NOW
    assert system.reports.oldest_unconfirmed("file") is None


# -- what a person decides -------------------------------------------------------------------------


@pytest.mark.parametrize("arrived", [True, False, None])
def test_a_report_held_back_while_unknown_is_decided_or_sent_again(
    system: System, arrived: bool | None
) -> None:
    system.use(7)
    system.ledger.faults.append(answering(Cause.TIMED_OUT) if arrived is False else answer_lost)
    system.advance()
    assert system.reports.park(1, "disputed")
    system.later(minutes=10)
    assert system.reports.unpark(1, arrived=arrived, now=system.clock.now())
    system.advance()
    states = [state for _, state, _ in system.states()]
    assert states == (["parked", "accepted"] if arrived is False else ["accepted"])
    identifiers = {report.identifier for report in system.ledger.seen}
    assert len(system.ledger.seen) == (1 if arrived else 2)
    assert len(identifiers) == (2 if arrived is False else 1)
    system.assert_all_told()


def test_what_was_never_sent_cannot_have_arrived(system: System) -> None:
    system.use(7)
    system.ledger.always = answering(Cause.KEY_REFUSED)
    system.advance()
    assert not system.reports.unpark(1, arrived=None, now=NOW)
    assert system.reports.park(1, "disputed")
    assert not system.reports.unpark(1, arrived=True, now=NOW)
    assert system.reports.unpark(1, arrived=None, now=NOW)
    assert system.states() == [(1, "pending", "")]


def test_a_refusal_is_lifted_by_a_retry_and_not_by_a_decision(told: System) -> None:
    [refused] = told.reports.list(cause=Cause.METER_MISSING.value)
    for arrived in (True, False, None):
        assert not told.reports.unpark(refused.id, arrived=arrived, now=NOW)
    assert told.reports.retry(refused.id, now=NOW)


def adding(sku: str) -> Metered:
    meter = metered(sku).meter
    return Metered(meter=type(meter)(sku=sku, name=meter.name, display_name=sku, overwrites=False))


@pytest.mark.parametrize("arrived", [True, False])
def test_the_silence_of_a_meter_that_adds_is_decided(system: System, arrived: bool) -> None:
    system.metered = adding
    system.use(7)
    system.ledger.faults.append(killed_after_sending)
    system.die()
    system.ledger.always = answering(Cause.TIMED_OUT)
    system.later(hours=1)
    system.advance()
    system.later(hours=22)
    system.advance()
    assert system.states() == [(1, "parked", "no_answer")]
    assert not system.reports.unpark(1, arrived=None, now=NOW)
    assert system.reports.unpark(1, arrived=arrived, now=NOW)
    system.ledger.always = answering(Cause.TAKEN)
    system.ledger.seen.clear()
    system.advance()
    assert [report.value for report in system.ledger.seen] == ([] if arrived else [7])
    assert system.books().accepted == 7
