"""The progress of the run: one bar for submission, one per customer, one for the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from lab.demo.results import End, tally
from lab.demo.scenario import CustomerPlan

_SUBMITTED = "submitted"
_LOGGED = "in the log"


class Bars:
    """Bars for the length of a ``with`` block; where nobody looks, their last state is printed.

    Args:
        console: Where to.
        plans: Whose bars.
    """

    def __init__(self, console: Console, plans: Sequence[CustomerPlan]) -> None:
        self._progress = Progress(
            TextColumn("    {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
        )
        total = sum(plan.expected.tasks for plan in plans)
        totals = {
            _SUBMITTED: total,
            **{plan.id: plan.expected.tasks for plan in plans},
            _LOGGED: total,
        }
        notes = {plan.id: plan.habit for plan in plans}
        self._bars = {
            name: self._progress.add_task(name.ljust(10), total=count, note=notes.get(name, ""))
            for name, count in totals.items()
        }
        self._habits = notes

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, *, submitted: int, logged: int, by_customer: Mapping[str, Counter[End]]) -> None:
        """Show where everything is."""
        self._progress.update(self._bars[_SUBMITTED], completed=submitted)
        self._progress.update(self._bars[_LOGGED], completed=logged)
        for customer, habit in self._habits.items():
            ends = by_customer.get(customer, Counter())
            self._progress.update(
                self._bars[customer], completed=ends.total(), note=note(ends, habit)
            )


def note(ends: Counter[End], habit: str) -> str:
    """What is said beside a customer's bar."""
    counts = {outcome: tally(ends, outcome) for outcome in ("failed", "denied")}
    return ", ".join([habit, *(f"{count:,} {name}" for name, count in counts.items() if count)])
