"""How far a command with a known amount of work is: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from billing.cli.output import err

Item = TypeVar("Item")


def shown(items: Iterable[Item], *, name: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar on standard error that grows by one for each; gone at the end.

    Args:
        items: Made as they are taken.
        name: What is being done.
        total: How many there will be; None where nobody knows.
    """
    console = err()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(name, total=total)
        for item in items:
            yield item
            bar.advance(task)
