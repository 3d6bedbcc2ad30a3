"""What commands print: tables that fit a terminal, and JSON for machines.

Texts that customers wrote (names, subjects, task ids) reach a terminal only through ``printable``:
an escape sequence in a URL must not be able to write on an operator's screen.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from billing.core.clock import format_instant

WIDTH: Final = 100
"""Columns of output that does not go to a terminal; tables are made to be read at this width."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table. ``whole`` cells are never broken; nor are ``numeric`` ones."""

    name: str
    numeric: bool = False
    whole: bool = False


Cell = str | int | datetime | Text | None


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
    title: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell]],
    *,
    empty: str = "nothing to show",
) -> None:
    """Print a table, or ``empty`` where it has no rows. Long texts are folded, never cut."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(
            column.name,
            justify="right" if column.numeric else "left",
            no_wrap=column.numeric or column.whole,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(cell(value) for value in row))
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


def print_json(document: object) -> None:
    """Print one JSON document, and nothing else, to standard output."""
    sys.stdout.write(json.dumps(document, indent=2, default=_jsonable) + "\n")


def _jsonable(value: object) -> object:
    if isinstance(value, datetime):
        return format_instant(value)
    if isinstance(value, Decimal):
        # Sums of amounts are numeric in PostgreSQL; JSON has them as the integers they are.
        return int(value) if value == value.to_integral_value() else str(value)
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


Format = Literal["table", "csv", "json"]
