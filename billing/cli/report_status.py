"""``billing report status``: where all usage is, between the log and the provider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from billing.cli.context import Json, container_of
from billing.cli.output import (
    Cell,
    Column,
    credits_column,
    document_of,
    moment,
    number,
    over,
    print_facts,
    print_table,
    say,
    show,
)
from billing.cli.report_tables import hour_column, hour_text
from billing.core.credits import format_credits
from billing.health.cause_help import help_for_parked
from billing.health.finding import HealthFinding, Level
from billing.health.report_rules import HARMLESS, span_text
from billing.health.report_status import ReportedTotals, ReportStatus, report_status
from billing.reporting.report_store import Sums
from billing.reporting.usage_report import ReportState

_ROWS: Final = 20
"""The most customers and SKUs that a table lists; --json has them all."""

_STYLES: Final = {Level.WARN: "yellow", Level.FAIL: "red"}
_TERMS: Final = ("logged", "accepted", "open", "parked", "unclaimed", "carried")


def status(
    context: typer.Context,
    check: Annotated[
        bool, typer.Option("--check", help="Also ask the provider whether its meters are right.")
    ] = False,
    json: Json = False,
) -> None:
    """Show where usage is: taken, on its way, parked, carried. Exits with 1 if somebody is needed.

    The figures of a month add up: log = accepted + open + parked + unclaimed + carried.
    """
    found = report_status(container_of(context), check=check)
    show(json, _document(found), lambda: print_status(found))
    if found.needs_somebody:
        raise typer.Exit(1)


def _document(found: ReportStatus) -> dict[str, Any]:
    return {
        "provider": found.provider,
        "needs_somebody": found.needs_somebody,
        "checks": found.findings,
        "states": dict(sorted(found.counts.items())),
        "oldest_unconfirmed_since": found.facts.unconfirmed_since,
        "oldest_open_hour": found.facts.oldest_open,
        "parked": found.facts.parked,
        "blocked": found.blocked,
        "former_providers": [
            {"provider": name, "can_be_asked": usable} for name, usable in found.owed.items()
        ],
        "sealed": found.closed,
        "carries": found.carries,
        "months": [
            {
                "month": each.month,
                "sums": [document_of(one, adds_up=not one.off_by) for one in each.sums],
            }
            for each in found.months
        ],
    }


def print_status(found: ReportStatus) -> None:
    """Print where usage is, and what needs somebody."""
    since, open_since = found.facts.unconfirmed_since, found.facts.oldest_open
    late = "nothing waits" if since is None else f"{span_text(found.now - since)} ago"
    oldest = None if open_since is None else hour_text(open_since)
    by_check = {each.check: each for each in found.findings}
    print_facts(
        f"Usage on its way to {found.provider}",
        [
            ("provider", by_check["Provider"].found),
            ("last run", by_check["Last reporting run"].found),
            ("oldest unconfirmed since", late),
            ("oldest open hour (UTC)", oldest),
        ],
    )
    _print_states(found)
    _print_parked(found)
    _print_others(found)
    for month in found.months:
        _print_month(month)
    _print_carries(found)
    _print_findings(found.findings)
    if not found.needs_somebody:
        say("nobody is needed", style="green")


def _print_states(found: ReportStatus) -> None:
    print_table(
        "Hours by the state of their last report",
        [Column("state"), number("reports"), number("credits")],
        [
            (state, count.reports, format_credits(count.amount_microcredits))
            for state in ReportState
            if (count := found.counts.get(state)) is not None
        ],
        empty="none yet",
    )


_PARKED: Final = (
    moment("cause", "cause"),
    number("reports"),
    credits_column("credits", "amount_microcredits"),
    hour_column("oldest hour (UTC)", "oldest"),
    Column("meaning", lambda one: help_for_parked(one.cause).meaning),
)


def _print_parked(found: ReportStatus) -> None:
    if not found.facts.parked:
        return
    print_table("Parked, by cause", _PARKED, found.facts.parked)
    for each in found.facts.parked:
        if each.cause not in HARMLESS:
            say(f"remedy for {each.cause}: {help_for_parked(each.cause).remedy}")


def _print_others(found: ReportStatus) -> None:
    if found.blocked is not None and not found.blocked:
        say("every meter is as it has to be")
    for meter, why in sorted((found.blocked or {}).items()):
        say(f"nothing is sent to the meter {meter}: {why}", style="red")
    for name, usable in found.owed.items():
        if usable:
            say(f"the former provider {name} still owes answers; each run asks it for them")
        else:
            say(f"the former provider {name} owes answers, and cannot be asked", style="red")
            say(f"  remedy: give it back its settings (key, folder) until billing report list "
                f"--provider {name} --state unknown is empty")  # fmt: skip
    if found.closed:
        title = "Periods that the provider has made final lately"
        print_table(title, _CLOSED, found.closed[:_ROWS])
        _say_more(len(found.closed))


_CLOSED: Final = (
    Column("customer and meter", lambda one: over(one.customer, one.meter)),
    hour_column("until (UTC)", "period_end"),
    number("billed units", "billed_value"),
    Column("invoice", "invoice_ref"),
    moment("compared (UTC)", lambda one: one.settled_at or "waits for answers"),
)


def _say_more(rows: int) -> None:
    if rows > _ROWS:
        say(f"the first {_ROWS} of {rows:,}; all of them with --json")


def _print_month(month: ReportedTotals) -> None:
    ordered = sorted(month.sums, key=_interest, reverse=True)
    if not ordered:
        say(f"Credits of {month.month}: nothing was used")
        return
    rows: list[tuple[Cell, ...]] = [
        (over(each.customer, each.sku), *_terms(each)) for each in ordered[:_ROWS]
    ]
    if len(ordered) > 1:
        rows.append((Text("all"), *_terms(_total(ordered))))
    print_table(
        f"Credits of {month.month}: log = accepted + open + parked + unclaimed + carried",
        [
            Column("customer and SKU"),
            number("log"),
            number("accepted"),
            Column("the rest"),
        ],
        rows,
    )
    _say_more(len(ordered))
    for each in month.wrong:
        say(
            f"{each.customer}, {each.sku}: the terms do not add up to the log; please report it",
            style="bold red",
        )


def _terms(sums: Sums) -> tuple[str, ...]:
    rest = ((name, getattr(sums, name)) for name in _TERMS[2:])
    shown = ", ".join(f"{name} {format_credits(amount)}" for name, amount in rest if amount)
    return format_credits(sums.logged), format_credits(sums.accepted), shown


def _interest(sums: Sums) -> tuple[int, int]:
    """The order of rows: amounts not accepted first, then large ones."""
    return abs(sums.open) + abs(sums.parked) + abs(sums.unclaimed), sums.logged


def _total(all_of: Sequence[Sums]) -> Sums:
    total = {name: sum(getattr(each, name) for each in all_of) for name in _TERMS}
    return Sums(customer="", sku="", **total)


def _print_carries(found: ReportStatus) -> None:
    amounts: dict[str, list[int]] = {}
    for line in found.carries:
        amounts.setdefault(line.reason, []).append(line.amount_microcredits)
    for reason, of_reason in sorted(amounts.items()):
        say(
            f"carried this month, {reason}: {len(of_reason):,} lines, "
            f"{format_credits(sum(of_reason))} credits"
        )


def _print_findings(findings: Sequence[HealthFinding]) -> None:
    for each in findings:
        if each.level is not Level.OK and each.check != "Parked reports":
            say(f"{each.level}: {each.check}: {each.found}", style=_STYLES[each.level])
            say(f"  {each.meaning}")
            say(f"  remedy: {each.remedy}")
