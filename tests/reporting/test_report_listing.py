"""What people are told of the outbox, and what they may decide."""

from __future__ import annotations

from datetime import timedelta

import pytest
from reporting_support import (
    LAST_HOUR,
    THIS_HOUR,
    Container,
    answer_lost,
    answering,
)
from support import NOW

from billing.core.errors import NotFound
from billing.core.periods import month_of
from billing.providers.port import ProviderCause
from billing.reporting.adjustments import AdjustmentReason
from billing.reporting.listing import ReportCount
from billing.reporting.usage_report import ReportState

HOUR = timedelta(hours=1)


@pytest.fixture
def told(container: Container) -> Container:
    """Acme: told 10 and 5 late after the seal. Globex: refused 7, then 2 more."""
    container.use(10)
    container.advance()
    container.seal(10)
    container.use(5)
    container.use(7, customer="globex")
    container.ledger.faults.append(answering(ProviderCause.METER_MISSING))
    container.advance()
    container.use(2, customer="globex")
    container.advance()
    return container


def test_reports_are_listed_by_every_property_the_newest_hour_first(told: Container) -> None:
    told.later(hours=1)
    told.advance()
    listed = told.reports.list
    assert [(row.customer, row.hour, row.revision) for row in listed()] == [
        ("acme", THIS_HOUR, 1),
        ("globex", LAST_HOUR, 2),
        ("acme", LAST_HOUR, 2),
    ]
    assert len(listed(only_latest=False)) == 5
    assert [row.cause for row in listed(states=[ReportState.NEEDS_ATTENTION], customer="acme")] == [
        "carried"
    ]
    assert [row.value for row in listed(cause=ProviderCause.METER_MISSING.value)] == [9]
    assert listed(provider="file") == []
    assert listed(sku="premium-proxy-search") == []
    assert len(listed(limit=2)) == 2
    amounts = {
        row.customer: row.amount_microcredits
        for row in listed(states=[ReportState.NEEDS_ATTENTION])
    }
    assert amounts == {"globex": 9, "acme": 0}


def test_a_report_is_shown_with_its_hours_history_and_lines(told: Container) -> None:
    first = told.reports.list(customer="acme", only_latest=False)[-1]
    shown = told.reports.show(first.id)
    assert shown.report == first
    assert [(row.revision, row.state) for row in shown.revisions] == [
        (1, ReportState.ACCEPTED),
        (2, ReportState.NEEDS_ATTENTION),
    ]
    [line] = shown.carries
    assert (line.amount_microcredits, line.reason, line.to_hour) == (
        5,
        AdjustmentReason.LATE,
        THIS_HOUR,
    )
    with pytest.raises(NotFound, match="billing report list"):
        told.reports.show(999)


def test_lines_are_listed_by_customer_sku_and_either_period(told: Container) -> None:
    month = month_of(NOW)
    assert len(told.reports.carries(customer="acme", sku="page-capture", period=month)) == 1
    assert told.reports.carries(customer="globex") == []
    assert told.reports.carries(sku="premium-proxy-search") == []
    assert told.reports.carries(period=month_of(month.end)) == []


def test_what_stands_where_is_counted_with_its_amount(told: Container) -> None:
    assert told.reports.counts("ledger") == {ReportState.NEEDS_ATTENTION: ReportCount(2, 9)}
    told.later(hours=1)
    told.advance()
    assert told.reports.counts("ledger")[ReportState.ACCEPTED] == ReportCount(1, 5)
    assert told.reports.counts("file") == {}


def test_what_is_parked_needs_a_person_only_where_it_has_an_amount(told: Container) -> None:
    [parked] = told.reports.attention_by_cause("ledger")
    assert (parked.cause, parked.reports, parked.amount_microcredits, parked.oldest) == (
        "meter_missing", 1, 9, LAST_HOUR,
    )  # fmt: skip
    assert told.reports.attention_by_cause("file") == []


def test_the_oldest_without_an_answer_or_a_confirmation_shows_its_age(container: Container) -> None:
    assert container.reports.oldest_unconfirmed("ledger") is None
    container.use(7)
    container.advance()
    assert container.reports.oldest_unconfirmed("ledger") == NOW
    container.later(hours=1)
    container.use(2, LAST_HOUR - HOUR)
    container.ledger.always = answering(ProviderCause.KEY_REFUSED)
    container.advance()
    assert container.reports.oldest_unconfirmed("ledger") == NOW
    assert container.reports.hold_back(2, "disputed")
    container.use(1, LAST_HOUR - 2 * HOUR, customer="globex")
    container.advance()
    assert container.reports.oldest_unconfirmed("ledger") == NOW
    assert container.reports.oldest_unconfirmed("file") is None


# -- what a person decides -------------------------------------------------------------------------


@pytest.mark.parametrize("arrived", [True, False, None])
def test_a_report_held_back_while_unknown_is_decided_or_sent_again(
    container: Container, arrived: bool | None
) -> None:
    container.use(7)
    container.ledger.faults.append(
        answering(ProviderCause.TIMED_OUT) if arrived is False else answer_lost
    )
    container.advance()
    assert container.reports.hold_back(1, "disputed")
    container.later(minutes=10)
    assert container.reports.lift_hold(1, arrived=arrived, now=container.clock.now())
    container.advance()
    states = [state for _, state, _ in container.states()]
    assert states == (["parked", "accepted"] if arrived is False else ["accepted"])
    identifiers = {report.identifier for report in container.ledger.seen}
    assert len(container.ledger.seen) == (1 if arrived else 2)
    assert len(identifiers) == (2 if arrived is False else 1)
    container.assert_all_told()


def test_what_was_never_sent_cannot_have_arrived(container: Container) -> None:
    container.use(7)
    container.ledger.always = answering(ProviderCause.KEY_REFUSED)
    container.advance()
    assert not container.reports.lift_hold(1, arrived=None, now=NOW)
    assert container.reports.hold_back(1, "disputed")
    assert not container.reports.lift_hold(1, arrived=True, now=NOW)
    assert container.reports.lift_hold(1, arrived=None, now=NOW)
    assert container.states() == [(1, "pending", "")]


def test_a_refusal_is_lifted_by_a_retry_and_not_by_a_decision(told: Container) -> None:
    [refused] = told.reports.list(cause=ProviderCause.METER_MISSING.value)
    for arrived in (True, False, None):
        assert not told.reports.lift_hold(refused.id, arrived=arrived, now=NOW)
    assert told.reports.retry(refused.id, now=NOW)
