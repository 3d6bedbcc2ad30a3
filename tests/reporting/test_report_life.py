"""A report's life in PostgreSQL: which state leads where, and what is sent when."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from reporting_support import Container, metered
from support import NOW

from billing.providers.port import ProviderAnswer, ProviderCause
from billing.reporting.destination import CustomerIds, Destination
from billing.reporting.report_store import Answered, ReportStore
from billing.reporting.usage_report import ReportState, after_answer

LEASE = timedelta(minutes=5)
SECOND = timedelta(seconds=1)
CLAIM = "00000000-0000-0000-0000-000000000001"
AT_FIRST = {
    "next_at": NOW, "claim": None, "lease_until": None, "first_sent_at": None, "attempts": 0,
    "cause": "", "doubtful": False, "answered_at": None, "confirm_at": None,
}  # fmt: skip
OF_STATE: dict[ReportState, dict[str, Any]] = {
    ReportState.SENDING: {
        "lease_until": NOW + LEASE, "claim": CLAIM, "first_sent_at": NOW, "attempts": 1,
    },
    ReportState.NEEDS_ATTENTION: {"cause": ProviderCause.TOO_OLD.value},
}  # fmt: skip


@pytest.fixture
def report(container: Container) -> Container:
    """One report is written down."""
    container.use(7)
    destination = Destination(
        environment="test", provider="ledger", customer_ids=CustomerIds.OURS, metered=metered
    )
    assert container.reports.plan(destination, until=NOW, now=NOW) == 1
    return container


def put(container: Container, state: ReportState, **columns: Any) -> None:
    """Bring the report into a state."""
    values = AT_FIRST | OF_STATE.get(state, {}) | columns | {"state": state.value}
    changes = ", ".join(f"{column} = :{column}" for column in values)
    with container.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE usage_reports SET {changes}"), values)


def state_of(container: Container) -> str:
    [(_, state, _)] = container.states()
    return state


def claim(reports: ReportStore) -> None:
    reports.claim("ledger", now=NOW, lease=LEASE, limit=9)


def accept(reports: ReportStore) -> None:
    """An answer to the claim that the report had when it was taken."""
    found = reports.list()[0]
    answer = ProviderAnswer(cause=ProviderCause.TAKEN)
    claimed: Any = type("Claim", (), {"id": found.id, "claim": CLAIM})()
    outcome = after_answer(answer, outcome_unknown=True)
    reports.answer_all([Answered(claimed, outcome, answer, NOW, NOW, NOW)])


Operation = Callable[[ReportStore], object]
OPERATIONS: dict[str, tuple[Operation, dict[str, str]]] = {
    "claim": (claim, {"pending": "sending", "unknown": "sending"}),
    "recover before the lease ends": (lambda reports: reports.recover(NOW + LEASE - SECOND), {}),
    "recover": (lambda reports: reports.recover(NOW + LEASE), {"sending": "unknown"}),
    "accept": (accept, {"sending": "accepted"}),
    "park": (
        lambda reports: reports.hold_back(1, "by hand"), {"pending": "parked", "unknown": "parked"}
    ),
    "retry": (lambda reports: reports.retry(1, now=NOW), {"parked": "pending"}),
    "unpark": (lambda reports: reports.lift_hold(1, arrived=None, now=NOW), {}),
    "arrived": (lambda reports: reports.lift_hold(1, arrived=True, now=NOW), {}),
}  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_report_goes_back_or_skips_being_sent(report: Container, operation: str) -> None:
    act, leads_to = OPERATIONS[operation]
    for before in ReportState:
        put(report, before)
        act(report.reports)
        assert state_of(report) == leads_to.get(before.value, before.value), before


STEPS: list[tuple[ReportState, dict[str, Any], str]] = [
    (ReportState.PENDING, {}, "sending"),
    (ReportState.PENDING, {"next_at": NOW + SECOND}, "pending"),
    (ReportState.SENDING, {"lease_until": NOW + SECOND}, "sending"),
    # The reporter is gone: the figure is sent again as it is.
    (ReportState.SENDING, {"lease_until": NOW}, "claimed again"),
    (ReportState.UNKNOWN, {"first_sent_at": NOW - SECOND}, "sending"),
    (ReportState.UNKNOWN, {"next_at": NOW + SECOND, "first_sent_at": NOW}, "unknown"),
    (ReportState.UNKNOWN, {"first_sent_at": NOW - timedelta(days=34)}, "sending"),
    (ReportState.ACCEPTED, {}, "accepted"),
    (ReportState.CONFIRMED, {}, "confirmed"),
    (ReportState.NEEDS_ATTENTION, {}, "parked"),
]


def test_the_next_step_follows_from_state_and_time(report: Container) -> None:
    for state, columns, after in STEPS:
        put(report, state, **columns)
        report.reports.recover(NOW)
        claimed = report.reports.claim("ledger", now=NOW, lease=LEASE, limit=9)
        again = bool(claimed) and claimed[0].attempts > 1 and claimed[0].outcome_unknown
        assert ("claimed again" if again else state_of(report)) == after, (state, columns)
