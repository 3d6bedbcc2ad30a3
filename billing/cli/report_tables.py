"""Reports in tables, as ``billing report list``, ``show`` and ``status`` print them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from billing.cli.output import (
    Cell,
    Column,
    credits_column,
    moment,
    number,
    over,
    print_facts,
    print_table,
    say,
)
from billing.core.credits import format_credits
from billing.health.cause_help import help_for_parked
from billing.providers.port import ProviderCause
from billing.providers.report_value import MAX_HOUR_VALUE
from billing.reporting.listing import ReportHistory, ReportRow
from billing.reporting.usage_report import AT_REST, TAKEN, ReportState


def hour_text(hour: datetime) -> str:
    """An hour for people: its start, UTC."""
    return hour.astimezone(UTC).strftime("%Y-%m-%d %H:00")


def hour_column(name: str, value: str) -> Column:
    """A column of hours."""
    return moment(name, lambda row: hour_text(getattr(row, value)))


def amount_of(row: ReportRow) -> int:
    """The microcredits a report is about: those taken, or those open or parked."""
    return row.held_microcredits if row.state in TAKEN else row.amount_microcredits


def state_text(row: ReportRow) -> str:
    """The state of a report for people."""
    return f"{row.state}, doubtful" if row.doubtful else row.state


def _state_and_cause(row: ReportRow) -> Cell:
    """The state and, where that says more than the state does, its cause."""
    return over(state_text(row), "" if row.cause == ProviderCause.TAKEN else row.cause)


REPORTS: Final = (
    number("#", lambda row: str(row.id)),
    Column("customer and SKU", lambda row: over(row.customer, row.sku)),
    hour_column("hour (UTC)", "hour"),
    number("rev", "revision"),
    Column("state and cause", _state_and_cause),
    number("credits", lambda row: format_credits(amount_of(row))),
    number("figure", "value"),
)
_REVISIONS: Final = (
    number("#", lambda row: str(row.id)),
    number("rev", "revision"),
    Column("provider and meter", lambda row: over(row.provider, row.meter)),
    Column("state and cause", _state_and_cause),
    credits_column("total", "total_microcredits"),
    number("figure", "value"),
    moment("answered (UTC)", "answered_at"),
)
_CARRIES: Final = (
    Column("customer and SKU", lambda line: over(line.customer, line.sku)),
    hour_column("out of (UTC)", "from_hour"),
    hour_column("into (UTC)", "to_hour"),
    credits_column("credits", "amount_microcredits"),
    moment("reason", "reason"),
    Column("note"),
)


def print_history(history: ReportHistory) -> None:
    """Print a report: the complete request, its answer, its hour's revisions and carry lines."""
    row = history.report
    print_facts(f"Report {row.id}", _facts(row))
    if row.state is ReportState.NEEDS_ATTENTION and row.latest:
        help_ = help_for_parked(row.cause)
        say(f"{row.cause}: {help_.meaning}")
        say(f"  remedy: {help_.remedy}")
    print_table(
        f"Revisions of {row.customer}, {row.sku}, {hour_text(row.hour)}",
        _REVISIONS,
        history.revisions,
    )
    if history.carries:
        print_table("Carried out of this hour, or into it", _CARRIES, history.carries)


def _facts(row: ReportRow) -> list[tuple[str, Cell]]:
    return [
        ("customer", f"{row.customer} ({row.customer_ref or 'nobody'} at {row.provider})"),
        ("SKU", row.sku),
        ("hour (UTC)", hour_text(row.hour)),
        ("revision", f"{row.revision}{'' if row.latest else ', followed by another'}"),
        ("state", state_text(row)),
        ("cause", row.cause),
        ("detail", row.detail),
        ("total (credits)", format_credits(row.total_microcredits)),
        ("provider has then", format_credits(row.held_microcredits)),
        ("request: meter", f"{row.meter} (overwrites)"),
        ("request: figure", row.value),
        ("request: timestamp", row.event_at),
        ("request: identifier", row.identifier),
        ("written (UTC)", row.created_at),
        ("attempts", row.attempts),
        ("first sent (UTC)", row.first_sent_at),
        ("sent again after", row.next_at if row.state in _TO_BE_SENT else None),
        ("answered (UTC)", row.answered_at),
        ("read back at (UTC)", row.confirm_at),
        ("disagreeing readings", row.readings),
        ("sent again for them", row.resent),
        ("confirmed (UTC)", row.confirmed_at),
    ]


_TO_BE_SENT: Final = frozenset({ReportState.PENDING, ReportState.UNKNOWN})


def why_not_sent(row: ReportRow) -> str:
    """The reason why a report cannot be sent again as it is. Pure."""
    obstacles = (
        (not row.latest, "a later revision stands for its hour"),
        (row.state is not ReportState.NEEDS_ATTENTION, f"it is {row.state}, not parked"),
        (row.customer_ref is None, "link the customer; then it is sent by itself"),
        (row.cause in AT_REST, "it comes to nothing"),
        (row.held_microcredits < 0, "it is below zero; later hours make up for it"),
        (abs(row.value) > MAX_HOUR_VALUE, "its figure is too large; use a coarser scale"),
    )
    less = "it is less than one unit; the next hour with usage takes it along"
    return next((why for is_so, why in obstacles if is_so), less)
