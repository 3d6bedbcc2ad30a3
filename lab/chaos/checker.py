"""The invariants after a run, pure: what bodies and Celery told against what the log has.

Two sources that know nothing of each other are compared: the file of truth, written by the tasks'
bodies, and the fulfillment log. What is in neither cannot be judged and need not be.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from lab.chaos.truth import Note, Word

OF_A_BODY: Final = "ValueError"
"""What bodies raise. Other failures were seen by the main process only, when the child was gone."""


class Rule(StrEnum):
    """What must never be."""

    LOST = "lost"
    """Settled, and not in the log: never billed."""
    TWICE = "charged twice"
    """One thing a task used is in the log more than once, or charged more than once."""
    SILENT = "failed without a line"
    """A body failed in a living process, and the log has no line of the task."""
    PHANTOM = "charged but never ran"
    """A charge whose body did not reach its end."""
    FIGURES = "wrong figures"
    """Another quantity or amount than what the body used."""
    DENIED_RAN = "denied but ran"
    """A refused run whose body ran."""
    LEAKED = "hold leaked"
    """A hold that is open although everything is over."""
    BOOKS = "books disagree"
    """Redis, log and rollups do not agree (reconcile)."""
    UNFINISHED = "never ended"
    """A task that the broker had confirmed and that never came to an end."""
    DEAD = "dead letter"
    """An event that could not be logged and is no second telling of a logged one."""
    UPSIDE_DOWN = "upside down"
    """More settled than granted."""
    CEILING = "above the ceiling"
    """leased + held + settled was more than granted, at an instant of the run."""
    UNREPORTED = "not reported"
    """Usage of a closed hour that is in no report."""
    NOT_SHOWN = "not shown"
    """A fault of which nothing shows that it hit."""
    NOT_RECOVERED = "not recovered"
    """After a fault had ended, a new task's event did not reach the log in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the log, as far as it is checked. Amounts in microcredits."""

    task_id: str
    line: str
    sku: str
    customer: str
    outcome: str
    reason: str
    quantity: int
    amount: int
    shortfall: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """One broken invariant."""

    rule: Rule
    task_id: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """An open dead letter."""

    reason: str
    task_id: str
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that a verdict is found from.

    ``sent``: tasks whose submission the broker confirmed. ``prices``: microcredits of one unit by
    SKU. ``balances``: granted less logged, by customer. ``books``: what reconcile found, in words.
    ``forgotten``: settled microcredits that a Redis without its newest data no longer knew of, by
    customer; so much, and not one more, could be spent once again until the books were repaired.
    """

    sent: Iterable[str]
    notes: Sequence[Note]
    rows: Sequence[Row]
    prices: Mapping[str, int]
    open_holds: Sequence[str] = ()
    books: Sequence[str] = ()
    letters: Sequence[Letter] = ()
    balances: Mapping[str, int] = field(default_factory=dict)
    forgotten: Mapping[str, int] = field(default_factory=dict)
    unreported: Sequence[str] = ()


def check(evidence: Evidence) -> list[Broken]:
    """Everything that is broken; empty when all is well."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in evidence.rows:
        rows[row.task_id].append(row)
    notes: dict[str, list[Note]] = defaultdict(list)
    for note in evidence.notes:
        notes[note.task_id].append(note)
    found: list[Broken] = []
    for task_id in sorted(rows.keys() | notes.keys()):
        found += _of_task(task_id, notes[task_id], rows[task_id], evidence.prices)
    found += _unfinished(evidence.sent, notes, rows)
    found += _letters(evidence.letters, rows)
    found += [Broken(rule=Rule.LEAKED, detail=text) for text in evidence.open_holds]
    found += [Broken(rule=Rule.BOOKS, detail=text) for text in evidence.books]
    found += [Broken(rule=Rule.UNREPORTED, detail=text) for text in evidence.unreported]
    found += [
        Broken(rule=Rule.UPSIDE_DOWN, detail=f"{customer}: {left} microcredits")
        for customer, left in sorted(evidence.balances.items())
        if left < -evidence.forgotten.get(customer, 0)
    ]
    return found


def _of_task(
    task_id: str, notes: Sequence[Note], rows: Sequence[Row], prices: Mapping[str, int]
) -> list[Broken]:
    found = [*_lost(task_id, notes, rows), *_silent(task_id, notes, rows), *_twice(task_id, rows)]
    found += _charged_rightly(task_id, notes, rows, prices)
    ran = {note.run for note in notes if note.word in (Word.ENDED, Word.USED)}
    refused = {note.run for note in notes if note.word is Word.DENIED}
    if ran & refused:
        found.append(Broken(rule=Rule.DENIED_RAN, task_id=task_id, detail="in one run"))
    found += [
        Broken(rule=Rule.DENIED_RAN, task_id=task_id, detail=f"{row.line}: {row}")
        for row in rows
        if row.outcome == "denied" and (row.quantity or row.amount)
    ]
    return found


def _lost(task_id: str, notes: Sequence[Note], rows: Sequence[Row]) -> list[Broken]:
    """What was said to be settled, or to have succeeded, and is not there as done."""
    if not any(note.word in (Word.SETTLED, Word.SUCCEEDED) for note in notes):
        return []
    wanted = {sku for note in notes if note.word is Word.ENDED for sku in note.used}
    there = {row.sku for row in rows if row.outcome == "succeeded"}
    return [
        Broken(rule=Rule.LOST, task_id=task_id, detail=f"settled, no line of {sku}")
        for sku in sorted(wanted - there)
    ]


def _silent(task_id: str, notes: Sequence[Note], rows: Sequence[Row]) -> list[Broken]:
    """A failure is a line, too, under a lease as well.

    But for a child that was lost: of an exact task the main process tells it if it can in time, of
    a leased one nobody does (``docs/decisions/0015-leased-credits.md``). That is all that a leased
    task may lack; whatever else holds for an exact one is asked of it in the same way.
    """
    failed = any(note.word is Word.FAILED and note.detail == OF_A_BODY for note in notes)
    return [Broken(rule=Rule.SILENT, task_id=task_id)] if failed and not rows else []


def _twice(task_id: str, rows: Sequence[Row]) -> list[Broken]:
    lines = Counter(row.line for row in rows)
    charged = Counter(row.sku for row in rows if row.amount)
    doubled = {f"line {line}" for line, count in lines.items() if count > 1}
    doubled |= {f"{sku} charged in {n} lines" for sku, n in charged.items() if n > 1}
    return [Broken(rule=Rule.TWICE, task_id=task_id, detail=text) for text in sorted(doubled)]


def _charged_rightly(
    task_id: str, notes: Sequence[Note], rows: Sequence[Row], prices: Mapping[str, int]
) -> list[Broken]:
    """Each charge against what bodies said they used: any run's, for the first settle counts."""
    used: dict[tuple[str, str], set[int]] = defaultdict(set)
    for note in notes:
        outcome = {Word.ENDED: "succeeded", Word.USED: "failed"}.get(note.word)
        if outcome:
            for sku, quantity in note.used.items():
                used[outcome, sku].add(quantity)
    found = []
    for row in rows:
        if row.outcome == "denied" or (row.outcome == "failed" and not row.amount):
            continue
        told = used[row.outcome, row.sku]
        if not told:
            detail = f"{row.line} {row.outcome}: {row.amount}"
            found.append(Broken(rule=Rule.PHANTOM, task_id=task_id, detail=detail))
        elif row.quantity not in told:
            detail = f"{row.line}: logged {row.quantity}, used {sorted(told)}"
            found.append(Broken(rule=Rule.FIGURES, task_id=task_id, detail=detail))
        elif row.amount + row.shortfall != row.quantity * prices[row.sku]:
            detail = f"{row.line}: {row.amount} and short of {row.shortfall}"
            found.append(Broken(rule=Rule.FIGURES, task_id=task_id, detail=detail))
    return found


_ENDS = (Word.SETTLED, Word.SUCCEEDED, Word.FAILED, Word.DENIED)


def _unfinished(
    sent: Iterable[str], notes: Mapping[str, Sequence[Note]], rows: Mapping[str, Sequence[Row]]
) -> list[Broken]:
    found = []
    for task_id in sent:
        words = [note.word for note in notes.get(task_id, ())]
        if not rows.get(task_id) and not any(word in _ENDS for word in words):
            detail = ", ".join(words) or "never began"
            found.append(Broken(rule=Rule.UNFINISHED, task_id=task_id, detail=detail))
    return found


def _letters(letters: Iterable[Letter], rows: Mapping[str, Sequence[Row]]) -> list[Broken]:
    """What is about a logged line is a second telling of it: kept for a person, nothing is lost."""
    return [
        Broken(rule=Rule.DEAD, task_id=letter.task_id, detail=f"{letter.reason} {letter.line}")
        for letter in letters
        if letter.line not in {row.line for row in rows.get(letter.task_id, ())}
    ]
