"""``billing reconcile`` by itself: Redis, log, rollups and outbox against each other; repairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Final

import typer
from rich.text import Text

from billing.cli.context import Json, container_of
from billing.cli.logs import configure_logs
from billing.cli.output import Cell, Column, err, over, print_json, print_table, printable, say
from billing.core.credits import format_credits
from billing.reconciliation.discrepancies import (
    DiscrepancyRow,
    DiscrepancyState,
    DiscrepancyStore,
    RecordedDiscrepancy,
)
from billing.reconciliation.invariants import DiscrepancyKind

_AMOUNTS: Final = frozenset(DiscrepancyKind) - {
    DiscrepancyKind.DUPLICATE,
    DiscrepancyKind.DENIED_BUT_RAN,
}
"""Kinds whose figures are microcredits; the others count."""
_STYLES: Final = {
    DiscrepancyState.REPAIRED: "green",
    DiscrepancyState.GONE: "dim",
    DiscrepancyState.WAITING: "yellow",
    DiscrepancyState.FOUND: "red",
    DiscrepancyState.FAILED: "bold red",
}
_NEXT: Final = {
    DiscrepancyState.FOUND: "found: billing reconcile --repair puts right what a rule can; "
    "by_hand is for a "
    "person, see docs/operating.md",
    DiscrepancyState.WAITING: "waiting: usage is on its way to the log; repair again once it "
    "has arrived",
    DiscrepancyState.FAILED: "failed: it is there still; see its note, and billing doctor",
}

Days = Annotated[int, typer.Option(min=1, max=400, help="How far back lines are compared.")]
Repair = Annotated[
    bool, typer.Option("--repair", help="Put right, from PostgreSQL, what a rule can.")
]


def check_books(context: typer.Context, *, repair: bool, days: int, json: bool) -> None:
    """Look twice, repair if asked, tell; exits with 1 where something is left."""
    container = container_of(context)
    # What the repair logs belongs to standard error: standard output is the result.
    configure_logs(container.settings.log_level)
    since = container.clock.now() - timedelta(days=days)
    with err().status("comparing Redis, log and rollups; what differs is looked at twice"):
        findings = container.repair.run(since, repair=repair)
    if json:
        print_json([finding.as_dict() for finding in findings])
    else:
        print_table(
            "Discrepancies",
            _COLUMNS,
            [_row_of(finding) for finding in findings],
            empty="none; Redis, log, rollups and outbox agree",
        )
        _say_next([finding.state for finding in findings])
    if any(finding.state is not DiscrepancyState.REPAIRED for finding in findings):
        raise typer.Exit(1)


def list_discrepancies(
    context: typer.Context,
    ended: Annotated[
        bool, typer.Option("--ended", help="Also those that were repaired or went by themselves.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The most rows.")] = 100,
    json: Json = False,
) -> None:
    """List what did not agree, newest first, with its cause and what became of it."""
    rows = DiscrepancyStore(container_of(context).engine).list(ended=ended, limit=limit)
    if json:
        print_json([row.as_dict() for row in rows])
        return
    print_table(
        "Discrepancies",
        [*_COLUMNS, Column("seen", whole=True)],
        [_row_listed(row) for row in rows],
        empty="none" if ended else "none is open; --ended shows those that have ended",
    )
    _say_next([row.state for row in rows])


_COLUMNS: Final = (
    Column("kind and customer"),
    Column("should be, is", numeric=True),
    Column("about, note"),
    Column("cause, remedy"),
    Column("state", whole=True),
)


def _row_of(finding: RecordedDiscrepancy) -> tuple[Cell, ...]:
    about = finding.discrepancy
    return (
        over(about.kind.value, about.customer),
        over(_figure(about.kind, about.expected), _figure(about.kind, about.found)),
        over(about.detail, finding.note),
        over(finding.cause.value or "unknown", finding.remedy.value),
        Text(finding.state.value, style=_STYLES[finding.state]),
    )


def _row_listed(row: DiscrepancyRow) -> tuple[Cell, ...]:
    return (
        over(row.kind.value, row.customer),
        over(_figure(row.kind, row.expected), _figure(row.kind, row.found)),
        over(row.detail, row.note),
        over(row.cause or "unknown", row.remedy),
        Text(printable(row.state.value), style=_STYLES[row.state]),
        over(f"{row.first_seen_at:%Y-%m-%d %H:%M}", f"{row.times_seen:,} times"),
    )


def _figure(kind: DiscrepancyKind, value: int) -> str:
    return format_credits(value) if kind in _AMOUNTS else f"{value:,}"


def _say_next(states: Sequence[DiscrepancyState]) -> None:
    counts = Counter(states)
    for state, remedy in _NEXT.items():
        if counts[state]:
            say(remedy)
