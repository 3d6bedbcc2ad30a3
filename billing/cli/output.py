"""Output of commands: tables that fit a terminal, and JSON for machines, from the same objects.

Texts that customers wrote (names, subjects, task ids) reach a terminal only through ``printable``:
an escape sequence in a URL must not be able to write on an operator's screen.
"""

from __future__ import annotations

import json as json_text
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any, Final, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from billing.core.clock import format_instant
from billing.core.credits import format_credits

WIDTH: Final = 100
"""Columns of output that does not go to a terminal; tables are made to be read at this width."""


Cell = str | int | datetime | Text | None
Format = Literal["table", "csv", "json"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        name: Its heading.
        value: An attribute of the row, or what makes the cell of a row; None: the attribute that is
            called as the column is.
        numeric: Flush right, and never broken.
        whole: Never broken.
    """

    name: str
    value: str | Callable[[Any], Cell] | None = None
    numeric: bool = False
    whole: bool = False

    def of(self, row: object) -> Cell:
        """The cell of a row."""
        if callable(self.value):
            return self.value(row)
        found: Cell = attrgetter(self.value or self.name)(row)
        return found


def number(name: str, value: str | Callable[[Any], Cell] | None = None) -> Column:
    """A column of figures."""
    return Column(name, value, numeric=True)


def credits_column(name: str, value: str) -> Column:
    """A column of credits, from an attribute in microcredits."""
    read = attrgetter(value)

    def of(row: object) -> Cell:
        microcredits = read(row)
        return None if microcredits is None else format_credits(microcredits)

    return number(name, of)


def moment(name: str, value: str | Callable[[Any], Cell]) -> Column:
    """A column of instants, or of other words that are never broken."""
    return Column(name, value, whole=True)


def out() -> Console:
    """The console for results."""
    return _console(stderr=False)


def err() -> Console:
    """The console for warnings, errors and progress."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    return console


def printable(text: str) -> str:
    r"""``text`` with everything a terminal would act on written as ``\x1b`` and its like."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def instant(value: datetime | None) -> str:
    """An instant for people: UTC, to the second; a dash for none."""
    return "-" if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def cell(value: Cell) -> Text:
    """One cell of a table."""
    if isinstance(value, Text):
        return value
    if value is None or value == "":
        return Text("-", style="dim")
    if isinstance(value, datetime):
        return Text(instant(value))
    return Text(f"{value:,}" if isinstance(value, int) else printable(value))


def over(first: str | None, second: str | None) -> Text:
    """Two texts in one cell, the second beneath and dim: a task's id under what it is about."""
    return Text("\n").join(
        [Text(printable(first or "-")), Text(printable(second or "-"), style="dim")]
    )


def print_table(
    title: str, columns: Sequence[Column], rows: Iterable[object], *, empty: str = "nothing to show"
) -> None:
    """Print a table, or ``empty`` where it has no rows. Long texts are folded, never cut.

    Args:
        title: Of the table.
        columns: In their order.
        rows: Objects that the columns read, or tuples of cells.
        empty: The sentence for no rows.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(
            column.name,
            justify="right" if column.numeric else "left",
            no_wrap=column.numeric or column.whole,
            overflow="fold",
        )
    for row in rows:
        cells = row if type(row) is tuple else [column.of(row) for column in columns]
        table.add_row(*(cell(value) for value in cells))
    if table.row_count:
        say(title, style="bold")
        out().print(table)
    else:
        say(f"{title}: {empty}")


def print_facts(title: str, facts: Iterable[tuple[str, Cell]]) -> None:
    """Print names and values, one pair a line, under a title."""
    say(title, style="bold")
    grid = Table(box=None, show_header=False)
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(name, cell(value))
    out().print(grid)


def say(message: str, *, style: str | None = None) -> None:
    """Print a sentence of result; a long one is broken between words."""
    out().print(Text(printable(message), style=style or ""), overflow="fold")


def warn(message: str) -> None:
    """Print a warning to standard error."""
    err().print(Text(f"warning: {printable(message)}", style="yellow"), soft_wrap=True)


def show(json: bool, document: object, print_: Callable[[], object]) -> None:
    """Print one JSON document for machines, or have ``print_`` print for people."""
    if json:
        print_json(document)
    else:
        print_()


def show_table(
    json: bool,
    title: str,
    columns: Sequence[Column],
    rows: Sequence[object],
    *,
    document: Callable[[Any], object] = lambda row: row,
    empty: str = "none",
) -> None:
    """Print rows: as one JSON array of their documents, or as a table."""
    if json:
        print_json([document(row) for row in rows])
    else:
        print_table(title, columns, rows, empty=empty)


def document_of(value: Any, keys: str = "", **more: object) -> dict[str, Any]:  # noqa: ANN401 - any object
    """An object for machines.

    Args:
        value: A dataclass, or any object whose attributes are named.
        keys: Its attributes in their order, ``key=attribute`` where a key has another name; every
            field of the dataclass where empty.
        more: What comes after them.
    """
    pairs = [pair.partition("=") for pair in keys.split() or [each.name for each in fields(value)]]
    found = {key: attrgetter(attribute or key)(value) for key, _, attribute in pairs}
    return found | more


def print_json(document: object) -> None:
    """Print one JSON document, and nothing else, to standard output."""
    sys.stdout.write(json_text.dumps(document, indent=2, default=_jsonable) + "\n")


def _jsonable(value: object) -> object:
    if isinstance(value, datetime):
        return format_instant(value)
    if isinstance(value, Decimal):
        # Sums of amounts are numeric in PostgreSQL; JSON has them as the integers they are.
        return int(value) if value == value.to_integral_value() else str(value)
    if isinstance(value, bytes):
        return value.hex()
    if is_dataclass(value):
        return document_of(value)
    return str(value)
