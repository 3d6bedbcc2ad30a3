"""What the demo prints at its end: receipts, one table of all customers, the checklist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final
from urllib.parse import urlsplit

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from billing.cli.output import printable
from billing.core.credits import format_credits
from billing.core.errors import DenialReason
from billing.core.money import format_cost, margin_of
from billing.core.reservation import ReleaseCause
from billing.usage_log.receipts import ReceiptLine
from lab.demo.books import Books, CustomerBooks
from lab.demo.checks import Check
from lab.demo.reported import Delivery
from lab.demo.scenario import CustomerPlan

WORDS: Final[Mapping[str, str]] = {
    DenialReason.INSUFFICIENT_CREDITS: "out of credits",
    DenialReason.BUDGET_EXCEEDED: "monthly budget used up",
    DenialReason.SKU_BUDGET_EXCEEDED: "monthly budget of this SKU used up",
    ReleaseCause.EXCEPTION: "the page could not be had; not charged",
    ReleaseCause.SOFT_TIME_LIMIT: "ran out of time; charged for the pages it got to",
}
"""What the reason of a denial or failure means, for people."""

_MONEY = Decimal("0.001")


def print_receipts(
    console: Console, plans: Sequence[CustomerPlan], books: Books, *, currency: str
) -> None:
    """The newest lines of every customer's receipt."""
    of_customer = {book.customer: book for book in books.customers}
    console.print()
    for plan in plans:
        latest = of_customer[plan.id].latest
        table = _table(f"{plan.id}: the last {len(latest)} lines of its receipt")
        for name, width in (("time", 8), ("SKU", 20), ("outcome", 9)):
            table.add_column(name, no_wrap=True, width=width)
        for name, width in (("units", 5), ("credits", 7), (f"cost {currency}", 8)):
            table.add_column(name, justify="right", no_wrap=True, width=width)
        table.add_column("what for, or why not", no_wrap=True, overflow="ellipsis", ratio=1)
        for line in latest:
            table.add_row(*_receipt_row(line))
        console.print(table)


def _receipt_row(line: ReceiptLine) -> list[str]:
    return [
        f"{line.metered_at:%H:%M:%S}",
        line.sku,
        line.outcome.value,
        f"{line.quantity:,}",
        format_credits(line.amount_microcredits),
        format_cost(line.cost_micros, "").strip() if line.cost_micros else "-",
        printable(about(line.subject, line.reason)),
    ]


def about(subject: str | None, reason: str) -> str:
    """What a line was about: why it failed or was denied, then its subject without the host."""
    shown = subject or ""
    if shown.startswith("http://"):
        parts = urlsplit(shown)
        shown = parts._replace(scheme="", netloc="").geturl() or "/"
    return ": ".join(filter(None, [reason, shown])) or "-"


def print_overview(
    console: Console,
    plans: Sequence[CustomerPlan],
    books: Books,
    *,
    credit_value: str,
    currency: str,
) -> None:
    """One row per customer, and under the table why tasks were denied."""
    table = _table(f"Customers (amounts in credits; cost and margin in {currency})")
    table.add_column("customer", no_wrap=True)
    for name in (
        *("tasks", "done", "failed", "denied"),
        *("granted", "held", "settled", "balance", "cost", "margin"),
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for book in books.customers:
        table.add_row(*_overview_row(book, credit_value=credit_value, currency=currency))
    console.print(table)
    console.print(
        Text(
            "  held: the sum of all holds of these tasks; what was not settled was given back.",
            style="dim",
        )
    )
    for plan in plans:
        console.print(_story(plan, books))


def print_delivery(console: Console, delivery: Delivery, provider: str) -> None:
    """What of the usage has got to the billing provider, per customer and SKU."""
    table = _table(f"Reported to {provider}, and read back (credits)")
    for name in ("customer", "SKU"):
        table.add_column(name, no_wrap=True)
    for name in ("log", "rollups", "reported", "confirmed"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in delivery.rows:
        figures = (row.logged, row.rolled_up, row.reported, row.confirmed)
        table.add_row(
            row.customer, row.sku, *map(format_credits, figures),
            style="" if row.agrees else "bold red",
        )  # fmt: skip
    console.print(table)
    console.print(
        Text(
            f"  {delivery.requests:,} requests for {delivery.events:,} lines of the log: one "
            "figure per customer, SKU and hour.",
            style="dim",
        )
    )


def _overview_row(book: CustomerBooks, *, credit_value: str, currency: str) -> list[str]:
    money = margin_of(book.settled, book.cost_micros, credit_value=credit_value, currency=currency)
    return [
        book.customer,
        f"{sum(book.outcomes.values()):,}",
        *(f"{book.lines(outcome):,}" for outcome in ("succeeded", "failed", "denied")),
        *(
            format_credits(amount)
            for amount in (book.granted, book.held, book.settled, book.available)
        ),
        f"{money.cost.quantize(_MONEY):,}",
        f"{money.margin.quantize(_MONEY):,}",
    ]


def _story(plan: CustomerPlan, books: Books) -> Text:
    outcomes = next(book.outcomes for book in books.customers if book.customer == plan.id)
    told = [
        f"{count:,} {outcome}: {WORDS.get(reason, '')} ({reason})"
        for (outcome, reason), count in sorted(outcomes.items())
        if outcome != "succeeded"
    ]
    line = Text.assemble("  ", (plan.id.ljust(9), "bold"), f" {plan.habit}")
    for each in told:
        line.append(f"\n            {each}", style="yellow")
    return line


def print_checklist(console: Console, checks: Sequence[Check], tick: str) -> None:
    """Every check with its evidence, and what violates it."""
    console.print(Text("\nInvariants", style="bold"))
    for check in checks:
        mark, style = (tick, "green") if check.holds else ("x", "bold red")
        console.print(
            Text.assemble(
                (f"  {mark} ", style),
                check.claim,
                (f"\n      {check.evidence}", "dim"),
            )
        )
        for violation in check.violations:
            console.print(Text(f"      {printable(violation)}", style="red"))


def print_next(console: Console, commands: Mapping[str, str]) -> None:
    """What to look at next."""
    console.print(Text("\nWhat to look at next", style="bold"))
    width = max(map(len, commands), default=0)
    for command, meaning in commands.items():
        line = Text.assemble("  ", (command.ljust(width), "cyan"), f"  {meaning}")
        console.print(line, soft_wrap=True)


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
        expand=True,
    )
