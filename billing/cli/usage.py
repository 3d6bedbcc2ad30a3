"""``billing usage``: totals of a customer's month, from the rollups."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer

from billing.cli.context import CustomerId, Json, Month, container_of
from billing.cli.output import Cell, Column, document_of, number, print_json, print_table, say
from billing.core.credits import format_credits
from billing.core.money import format_cost, format_money, margin_of
from billing.core.periods import Period, month_labelled, month_of
from billing.postgres.replica import AsOf
from billing.usage_log.totals import Totals
from billing.usage_log.usage_queries import By, UsageRow

if TYPE_CHECKING:
    from billing.container import Container


def usage(
    context: typer.Context,
    customer: CustomerId,
    month: Month = None,
    by: Annotated[By, typer.Option(help="What to group by.")] = By.SKU,
    json: Json = False,
) -> None:
    """Show a customer's usage of a month: counts, credits, provider cost and margin."""
    container = container_of(context)
    period = month_for(container, customer, month)
    as_of = container.as_of()
    rows = container.usage_read.by(customer, period, by)
    total = container.usage_read.total(customer, period)
    subjects = _subjects(container, customer, period) if by is By.SKU else {}
    if json:
        print_json(
            {
                **period_document(customer, period),
                **as_of_document(as_of),
                "by": by,
                "currency": container.settings.currency,
                "rows": [_row_document(each, by, subjects) for each in rows],
                "total": total,
            }
        )
        return
    _print(container, customer, period, by, rows, total, subjects)
    if as_of is not None:
        say(str(as_of))


def month_for(container: Container, customer: str, month: str | None) -> Period:
    """The month of that label, else the present one, on the customer's wall clocks.

    Raises:
        NotFound: There is no such customer.
        InvalidValue: The label is not a month.
    """
    time_zone = container.customers.get(customer).time_zone
    if month is None:
        return month_of(container.clock.now(), time_zone)
    return month_labelled(month, time_zone)


def period_document(customer: str, period: Period) -> dict[str, object]:
    """The customer and the month, half-open and UTC, for machines."""
    return {"customer": customer} | document_of(
        period, "month=label period_start=start period_end=end"
    )


def as_of_document(as_of: AsOf | None) -> dict[str, object]:
    """The instant an answer is of, for machines; nothing where there is no replica."""
    return document_of(as_of, "as_of=at from_replica=replica") if as_of else {}


def _subjects(container: Container, customer: str, period: Period) -> dict[str, int]:
    """Distinct subjects by SKU; they are counted per UTC month, whatever the customer's zone."""
    return container.usage_read.subjects(customer, date.fromisoformat(f"{period.label}-01"))


def _row_document(row: UsageRow, by: By, subjects: dict[str, int]) -> dict[str, object]:
    document: dict[str, object] = {by.value: row.key}
    if by is By.STATUS:
        document["reason"] = row.reason
    if by is By.SKU:
        document["subjects"] = subjects.get(row.key, 0)
    return {**document, **document_of(row.totals)}


def _print(
    container: Container,
    customer: str,
    period: Period,
    by: By,
    rows: list[UsageRow],
    total: Totals,
    subjects: dict[str, int],
) -> None:
    extra = {By.STATUS: [Column("reason")], By.SKU: [number("subjects")]}.get(by, [])
    figures = ("events", "quantity", "credits", "shortfall", "cost", "margin")
    columns = [Column(by.value), *extra, *(number(name) for name in figures)]

    def figures_of(totals: Totals) -> tuple[Cell, ...]:
        settings = container.settings
        margin = margin_of(
            totals.amount_microcredits,
            totals.cost_micros,
            credit_value=settings.credit_value,
            currency=settings.currency,
        )
        return (
            totals.events,
            totals.quantity,
            format_credits(totals.amount_microcredits),
            format_credits(totals.shortfall_microcredits),
            format_cost(totals.cost_micros, settings.currency),
            format_money(margin.margin, settings.currency),
        )

    def first_of(row: UsageRow) -> tuple[Cell, ...]:
        if by is By.STATUS:
            return (row.key, row.reason)
        return (row.key, subjects.get(row.key, 0)) if by is By.SKU else (row.key,)

    table: list[tuple[Cell, ...]] = [(*first_of(row), *figures_of(row.totals)) for row in rows]
    if table:
        table.append(("total", *((None,) * len(extra)), *figures_of(total)))
    print_table(f"Usage of {customer} in {period.label}", columns, table, empty="none")
    if rows:
        worth = f"{container.settings.credit_value} {container.settings.currency}"
        say(f"margin: credits at {worth} each, less provider cost")
