"""What ``billing report status`` prints for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.text import Text

from billing.cli.output import Cell, Column, over, print_facts, print_table, say
from billing.cli.report_tables import hour_text
from billing.core.credits import format_credits
from billing.health.cause_help import words_of_parked
from billing.health.report_rules import HARMLESS, span_text
from billing.health.report_status import ReportedTotals, ReportStatus
from billing.health.rules import HealthFinding, Level
from billing.reporting.report_store import Sums
from billing.reporting.usage_report import ReportState

_ROWS: Final = 20
"""The most customers and SKUs that a table lists; --json has them all."""

_STYLES: Final = {Level.WARN: "yellow", Level.FAIL: "red"}


def print_status(found: ReportStatus) -> None:
    """Where usage is, and what needs somebody."""
    late = "nothing waits" if found.since is None else f"{span_text(found.now - found.since)} ago"
    oldest = None if found.oldest_open is None else hour_text(found.oldest_open)
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
    for books in found.books:
        _print_books(books)
    _print_carries(found)
    _print_findings(found.findings)
    if not found.needs_somebody:
        say("nobody is needed", style="green")


def _print_states(found: ReportStatus) -> None:
    print_table(
        "Hours by the state of their last report",
        [Column("state"), Column("reports", numeric=True), Column("credits", numeric=True)],
        [
            (state.value, count.reports, format_credits(count.amount_microcredits))
            for state in ReportState
            if (count := found.counts.get(state)) is not None
        ],
        empty="none yet",
    )


def _print_parked(found: ReportStatus) -> None:
    if not found.parked:
        return
    print_table(
        "Parked, by cause",
        [
            Column("cause", whole=True),
            Column("reports", numeric=True),
            Column("credits", numeric=True),
            Column("oldest hour (UTC)", whole=True),
            Column("meaning"),
        ],
        [
            (
                each.cause,
                each.reports,
                format_credits(each.amount_microcredits),
                hour_text(each.oldest),
                words_of_parked(each.cause).meaning,
            )
            for each in found.parked
        ],
    )
    for each in found.parked:
        if each.cause not in HARMLESS:
            say(f"remedy for {each.cause}: {words_of_parked(each.cause).remedy}")


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
    if found.seals:
        print_table(
            "Periods that the provider has made final lately",
            [
                Column("customer and meter"),
                Column("until (UTC)", whole=True),
                Column("billed units", numeric=True),
                Column("invoice"),
                Column("compared (UTC)", whole=True),
            ],
            [
                (
                    over(seal.customer, seal.meter),
                    hour_text(seal.period_end),
                    seal.billed_value,
                    seal.invoice_ref,
                    seal.settled_at or "waits for answers",
                )
                for seal in found.seals[:_ROWS]
            ],
        )
        _say_more(len(found.seals))


def _say_more(rows: int) -> None:
    if rows > _ROWS:
        say(f"the first {_ROWS} of {rows:,}; all of them with --json")


def _print_books(books: ReportedTotals) -> None:
    ordered = sorted(books.sums, key=_interest, reverse=True)
    if not ordered:
        say(f"Credits of {books.month}: nothing was used")
        return
    rows: list[tuple[Cell, ...]] = [
        (over(each.customer, each.sku), *_terms(each)) for each in ordered[:_ROWS]
    ]
    if len(ordered) > 1:
        rows.append((Text("all"), *_terms(_total(ordered))))
    print_table(
        f"Credits of {books.month}: log = accepted + open + parked + unclaimed + carried",
        [
            Column("customer and SKU"),
            Column("log", numeric=True),
            Column("accepted", numeric=True),
            Column("the rest"),
        ],
        rows,
    )
    _say_more(len(ordered))
    for each in books.wrong:
        say(
            f"{each.customer}, {each.sku}: the terms do not add up to the log; please report it",
            style="bold red",
        )


_TERMS: Final = ("logged", "accepted", "open", "parked", "unclaimed", "carried")


_REST: Final = ("open", "parked", "unclaimed", "carried")


def _terms(sums: Sums) -> tuple[str, ...]:
    rest = ((name, getattr(sums, name)) for name in _REST)
    told = ", ".join(f"{name} {format_credits(amount)}" for name, amount in rest if amount)
    return format_credits(sums.logged), format_credits(sums.accepted), told


def _interest(sums: Sums) -> tuple[int, int]:
    """What is not accepted comes first, then what is much."""
    return abs(sums.open) + abs(sums.parked) + abs(sums.unclaimed), sums.logged


def _total(all_of: Sequence[Sums]) -> Sums:
    total = {name: sum(getattr(each, name) for each in all_of) for name in _TERMS}
    return Sums(customer="", sku="", **total)


def _print_carries(found: ReportStatus) -> None:
    amounts: dict[str, list[int]] = {}
    for line in found.carries:
        amounts.setdefault(line.reason.value, []).append(line.amount_microcredits)
    for reason, of_reason in sorted(amounts.items()):
        say(
            f"carried this month, {reason}: {len(of_reason):,} lines, "
            f"{format_credits(sum(of_reason))} credits"
        )


def _print_findings(findings: Sequence[HealthFinding]) -> None:
    for each in findings:
        if each.level is not Level.OK and each.check != "Parked reports":
            say(f"{each.level.value}: {each.check}: {each.found}", style=_STYLES[each.level])
            say(f"  {each.meaning}")
            say(f"  remedy: {each.remedy}")
