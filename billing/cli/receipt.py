"""``billing receipt``: the lines of the log, one by one, as a table, CSV or JSON."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from billing.cli.context import Month, container_of
from billing.cli.output import Column, Format, document_of, over, print_table, say
from billing.cli.usage import as_of_document, month_for, period_document
from billing.core.clock import format_instant
from billing.core.credits import format_credits
from billing.core.errors import NotFound
from billing.core.money import format_cost
from billing.core.periods import Period
from billing.core.usage_event import FIELDS
from billing.usage_log.receipts import ReceiptLine
from billing.usage_log.totals import Totals

if TYPE_CHECKING:
    from billing.container import Container

_PAGE: Final = 5_000
_TABLE_LINES: Final = 1_000

_METERED_BEHIND: Final = "customer"
_HIDDEN: Final = {"id", "quota_epoch"}


def _columns() -> Iterator[str]:
    yield "event_id"
    for name in FIELDS:
        if name not in _HIDDEN:
            yield name
        if name == _METERED_BEHIND:
            yield "metered_at"
    yield "logged_at"


_FIELDS: Final = tuple(_columns())
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def receipt(
    context: typer.Context,
    customer: Annotated[
        str | None, typer.Argument(help="A customer's id.", metavar="[CUSTOMER]")
    ] = None,
    month: Month = None,
    task: Annotated[
        str | None, typer.Option(help="One task instead of a month.", metavar="TASK_ID")
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="table, csv or json; csv and json have every line.")
    ] = "table",
    json_: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Print the itemised receipt of a customer's month, or of one task."""
    container = container_of(context)
    form = "json" if json_ else form
    if task is not None:
        _of_task(container, task, customer, form)
        return
    if customer is None:
        raise typer.BadParameter("name a CUSTOMER, or a task with --task")
    period = month_for(container, customer, month)
    as_of = container.as_of()
    head = {**period_document(customer, period), **as_of_document(as_of)}
    totals = container.receipts_read.totals(customer, period)
    _print(
        f"Receipt of {customer} for {period.label}",
        head,
        _pages(container, customer, period),
        totals,
        form,
    )
    if as_of is not None and form == "table":
        say(str(as_of))


def _of_task(container: Container, task: str, customer: str | None, form: Format) -> None:
    found = container.receipts.for_task(task) or container.receipts.archived_task(task)
    lines = [each for each in found if customer is None or each.customer == customer]
    if not lines:
        raise NotFound("receipt line of task", task, f"see: billing explain {task}")
    totals = Totals(
        events=len(lines),
        quantity=sum(each.quantity for each in lines),
        amount_microcredits=sum(each.amount_microcredits for each in lines),
        shortfall_microcredits=sum(each.shortfall_microcredits for each in lines),
        cost_micros=sum(each.cost_micros for each in lines),
    )
    _print(f"Receipt of task {task}", {"task_id": task}, iter(lines), totals, form)


def _pages(container: Container, customer: str, period: Period) -> Iterator[ReceiptLine]:
    """Every line of the period, a page at a time: a month may have millions."""
    page = container.receipts_read.lines(customer, period, limit=_PAGE)
    while page:
        yield from page
        page = container.receipts_read.lines(customer, period, after_id=page[-1].id, limit=_PAGE)


def _print(
    title: str,
    head: dict[str, object],
    lines: Iterator[ReceiptLine],
    totals: Totals,
    form: Format,
) -> None:
    if form == "csv":
        _print_csv(lines)
    elif form == "json":
        _print_json(head, lines, totals)
    else:
        _print_table(title, lines, totals)


def line_document(line: ReceiptLine) -> dict[str, object]:
    """A line of the log for machines."""
    values = {name: getattr(line, name) for name in _FIELDS if name != "event_id"}
    values["outcome"] = line.outcome.value
    return {"event_id": str(line.id), **{name: _plain(value) for name, value in values.items()}}


def _plain(value: object) -> object:
    return format_instant(value) if isinstance(value, datetime) else value


def _print_json(head: dict[str, object], lines: Iterable[ReceiptLine], totals: Totals) -> None:
    """One document, written line by line: it need not fit into memory."""
    head = {
        **{name: _plain(value) for name, value in head.items()},
        "total": document_of(totals),
    }
    sys.stdout.write(json.dumps(head)[:-1] + ', "lines": [')
    for index, line in enumerate(lines):
        sys.stdout.write((",\n " if index else "\n ") + json.dumps(line_document(line)))
    sys.stdout.write("\n]}\n")


def _print_csv(lines: Iterable[ReceiptLine]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_FIELDS)
    for line in lines:
        writer.writerow([_csv_cell(value) for value in line_document(line).values()])


def _csv_cell(value: Any) -> object:  # noqa: ANN401 - a JSON value
    """A value that no spreadsheet takes for a formula (OWASP, "CSV Injection")."""
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def _print_table(title: str, lines: Iterator[ReceiptLine], totals: Totals) -> None:
    shown = [line for line, _ in zip(lines, range(_TABLE_LINES), strict=False)]
    print_table(
        title,
        [
            Column("metered (UTC)", whole=True),
            Column("SKU and task"),
            Column("outcome"),
            Column("units", numeric=True),
            Column("credits", numeric=True),
            Column("cost", numeric=True),
        ],
        [
            (
                each.metered_at,
                over(each.sku, each.task_id),
                over(each.outcome.value, each.reason) if each.reason else each.outcome.value,
                each.quantity,
                format_credits(each.amount_microcredits),
                format_cost(each.cost_micros, each.currency),
            )
            for each in shown
        ],
        empty="no lines",
    )
    if shown:
        amount = format_credits(totals.amount_microcredits)
        cost = format_cost(totals.cost_micros, shown[0].currency)
        say(f"total: {totals.events:,} lines, {amount} credits, provider cost {cost}")
    if totals.events > len(shown):
        say(f"the first {len(shown):,} of {totals.events:,} lines; --format csv or json has all")
