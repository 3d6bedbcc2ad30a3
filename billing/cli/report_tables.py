"""Reports as ``billing report`` shows them: tables for people, documents for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Final

from billing.cli.output import Cell, Column, over, print_facts, print_table, say
from billing.core.credits import format_credits
from billing.health.cause_help import words_of_parked
from billing.providers.port import ProviderCause
from billing.reporting.listing import CarryRow, ReportHistory, ReportRow
from billing.reporting.usage_report import AT_REST, MAX_HOUR_VALUE, TAKEN, ReportState


def report_document(row: ReportRow) -> dict[str, object]:
    """A report for machines: every column of it."""
    document: dict[str, object] = {each.name: getattr(row, each.name) for each in fields(row)}
    return document | {"state": row.state.value}


def carry_document(row: CarryRow) -> dict[str, object]:
    """A carry line for machines."""
    document: dict[str, object] = {each.name: getattr(row, each.name) for each in fields(row)}
    return document | {"reason": row.reason.value}


def hour_text(hour: datetime) -> str:
    """An hour for people: its start, UTC."""
    return hour.astimezone(UTC).strftime("%Y-%m-%d %H:00")


def amount_of(row: ReportRow) -> int:
    """What a report is about in microcredits: what was taken, or what is open or parked."""
    return row.held_microcredits if row.state in TAKEN else row.amount_microcredits


def print_reports(title: str, rows: Sequence[ReportRow], *, limit: int) -> None:
    """A list of reports."""
    print_table(
        title,
        [
            Column("#", numeric=True),
            Column("customer and SKU"),
            Column("hour (UTC)", whole=True),
            Column("rev", numeric=True),
            Column("state and cause"),
            Column("credits", numeric=True),
            Column("figure", numeric=True),
        ],
        [
            (
                str(row.id),
                over(row.customer, row.sku),
                hour_text(row.hour),
                row.revision,
                over(state_text(row), _cause(row)),
                format_credits(amount_of(row)),
                row.value,
            )
            for row in rows
        ],
        empty="none",
    )
    if len(rows) == limit:
        say(f"the newest {limit:,} hours; more with --limit")


def state_text(row: ReportRow) -> str:
    """The state of a report for people."""
    return f"{row.state.value}, doubtful" if row.doubtful else row.state.value


def _cause(row: ReportRow) -> str:
    """Why, where that says more than the state does."""
    return "" if row.cause == ProviderCause.TAKEN else row.cause


def print_history(history: ReportHistory) -> None:
    """A report with the complete request, its answer, and what else is known of its hour."""
    row = history.report
    print_facts(f"Report {row.id}", _facts(row))
    if row.state is ReportState.PARKED and row.latest:
        words = words_of_parked(row.cause)
        say(f"{row.cause}: {words.meaning}")
        say(f"  remedy: {words.remedy}")
    print_table(
        f"Revisions of {row.customer}, {row.sku}, {hour_text(row.hour)}",
        [
            Column("#", numeric=True),
            Column("rev", numeric=True),
            Column("provider and meter"),
            Column("state and cause"),
            Column("total", numeric=True),
            Column("figure", numeric=True),
            Column("answered (UTC)", whole=True),
        ],
        [
            (
                str(one.id),
                one.revision,
                over(one.provider, one.meter),
                over(state_text(one), _cause(one)),
                format_credits(one.total_microcredits),
                one.value,
                one.answered_at,
            )
            for one in history.revisions
        ],
    )
    if history.carries:
        print_carries("Carried out of this hour, or into it", history.carries)


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
        ("request: meter", f"{row.meter} ({'overwrites' if row.overwrites else 'adds'})"),
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


def print_carries(title: str, carries: Sequence[CarryRow]) -> None:
    """Carry lines."""
    print_table(
        title,
        [
            Column("customer and SKU"),
            Column("out of (UTC)", whole=True),
            Column("into (UTC)", whole=True),
            Column("credits", numeric=True),
            Column("reason", whole=True),
            Column("note"),
        ],
        [
            (
                over(line.customer, line.sku),
                hour_text(line.from_hour),
                hour_text(line.to_hour),
                format_credits(line.amount_microcredits),
                line.reason.value,
                line.note,
            )
            for line in carries
        ],
        empty="none",
    )


def why_not_sent(row: ReportRow) -> str:
    """Why a report cannot be sent again as it is, as far as can be told. Pure."""
    obstacles = (
        (not row.latest, "a later revision stands for its hour"),
        (row.state is not ReportState.PARKED, f"it is {row.state.value}, not parked"),
        (row.customer_ref is None, "link the customer; then it is sent by itself"),
        (row.cause in AT_REST, "it comes to nothing"),
        (row.held_microcredits < 0, "it is below zero; later hours make up for it"),
        (abs(row.value) > MAX_HOUR_VALUE, "its figure is too large; use a coarser scale"),
        (
            row.doubtful and not row.overwrites,
            "it may have arrived: billing report unpark with --arrived or --never-arrived",
        ),
    )
    less = "it is less than one unit; the next hour with usage takes it along"
    return next((why for is_so, why in obstacles if is_so), less)
