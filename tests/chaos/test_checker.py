"""The checker finds every fault that is planted, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lab.chaos.checker import Evidence, Letter, Row, Rule, check
from lab.chaos.truth import Note, Word

PRICES = {"page": 100, "extra": 7, "tried": 10}


def note(word: Word, detail: str = "-", *, task: str = "t1", run: str = "r1") -> Note:
    return Note(word, task, run, detail)


def row(**overrides: Any) -> Row:
    fields: dict[str, Any] = {
        "task_id": "t1",
        "line": "page",
        "sku": "page",
        "customer": "acme",
        "outcome": "succeeded",
        "reason": "",
        "quantity": 1,
        "amount": 100,
        "shortfall": 0,
    }
    return Row(**fields | overrides)


def denied(**overrides: Any) -> Row:
    line = "denied:page:insufficient_credits"
    return row(line=line, outcome="denied", quantity=0, amount=0, **overrides)


RAN = [note(Word.ENDED, "page=1"), note(Word.SETTLED), note(Word.SUCCEEDED)]
GOOD = Evidence(sent=["t1"], notes=RAN, rows=[row()], prices=PRICES, balances={"acme": 0})


def rules(**changes: Any) -> list[Rule]:
    return [broken.rule for broken in check(replace(GOOD, **changes))]


def test_a_task_that_ran_and_was_charged_once_is_well():
    assert check(GOOD) == []


WELL: dict[str, dict[str, Any]] = {
    "a denial whose body did not run": {
        "notes": [note(Word.DENIED, "QuotaExceeded")],
        "rows": [denied()],
    },
    "a second run after a child died": {"notes": [note(Word.ENDED, "page=1", run="r0"), *RAN]},
    "a run after the task had been denied": {
        "notes": [note(Word.DENIED, run="r0"), *RAN],
        "rows": [denied(), row()],
    },
    "a failure that costs nothing": {
        "notes": [note(Word.FAILED, "ValueError")],
        "rows": [row(line="failed:page:1", outcome="failed", quantity=0, amount=0)],
    },
    "a failure that is charged": {
        "notes": [note(Word.USED, "tried=3"), note(Word.FAILED, "ValueError")],
        "rows": [row(line="tried", sku="tried", outcome="failed", quantity=3, amount=30)],
    },
    "two SKUs of one task": {
        "notes": [note(Word.ENDED, "extra=2,page=1"), note(Word.SETTLED)],
        "rows": [row(), row(line="extra", sku="extra", quantity=2, amount=14)],
    },
    "what neither hold nor balance covered": {"rows": [row(amount=60, shortfall=40)]},
    "work that was done and never settled": {
        "notes": [note(Word.ENDED, "page=1"), note(Word.FAILED, "WorkerLostError")],
        "rows": [],
    },
    "a leased run, as any other": {"notes": [note(Word.LEASED), *RAN]},
    "a leased child that was lost: no line, and nothing charged": {
        "notes": [note(Word.LEASED), note(Word.FAILED, "TimeLimitExceeded", run="-")],
        "rows": [],
    },
    "spent once more, of what a lost tail of Redis had forgotten": {
        "balances": {"acme": -100},
        "forgotten": {"acme": 100},
    },
    "a second telling, kept": {"letters": [Letter(reason="conflict", task_id="t1", line="page")]},
    "another one, from a wrong clock": {
        "letters": [Letter(reason="in_the_future", task_id="t1", line="page")]
    },
}


@pytest.mark.parametrize("change", WELL.values(), ids=WELL.keys())
def test_what_may_be(change: dict[str, Any]):
    assert rules(**change) == []


PLANTED: dict[str, tuple[Rule, dict[str, Any]]] = {
    "settled and not logged": (Rule.LOST, {"rows": []}),
    "a leased run that was acknowledged and is not logged": (
        Rule.LOST,
        {"notes": [note(Word.LEASED), *RAN], "rows": []},
    ),
    "a failure in a body, and no line of it": (
        Rule.SILENT,
        {"notes": [note(Word.FAILED, "ValueError")], "rows": []},
    ),
    "a leased one, too": (
        Rule.SILENT,
        {"notes": [note(Word.LEASED), note(Word.FAILED, "ValueError")], "rows": []},
    ),
    "one of two SKUs not logged": (
        Rule.LOST,
        {"notes": [note(Word.ENDED, "extra=2,page=1"), note(Word.SETTLED)]},
    ),
    "succeeded, and logged as failed only": (
        Rule.LOST,
        {"rows": [row(line="failed:page:1", outcome="failed", quantity=0, amount=0)]},
    ),
    "one line twice": (Rule.TWICE, {"rows": [row(), row(amount=0, shortfall=100)]}),
    "one SKU charged in two lines": (
        Rule.TWICE,
        {
            "notes": [*RAN, note(Word.USED, "page=1", run="r0")],
            "rows": [row(), row(line="failed:page:1", outcome="failed")],
        },
    ),
    "charged without a body": (Rule.PHANTOM, {"notes": [note(Word.FAILED, "ValueError")]}),
    "another quantity": (Rule.FIGURES, {"rows": [row(quantity=2, amount=200)]}),
    "another amount": (Rule.FIGURES, {"rows": [row(amount=99)]}),
    "a body in a refused run": (Rule.DENIED_RAN, {"notes": [*RAN, note(Word.DENIED)]}),
    "a denial with an amount": (
        Rule.DENIED_RAN,
        {"notes": [], "rows": [replace(denied(), amount=1)]},
    ),
    "an open hold": (Rule.LEAKED, {"open_holds": ["acme t1"]}),
    "books that disagree": (Rule.BOOKS, {"books": ["settled acme"]}),
    "a task without an end": (Rule.UNFINISHED, {"sent": ["t1", "t2"]}),
    "an event that could not be logged": (
        Rule.DEAD,
        {"letters": [Letter(reason="delivery_limit", task_id="t1", line="extra")]},
    ),
    "a conflict with nothing": (
        Rule.DEAD,
        {"letters": [Letter(reason="conflict", task_id="t9", line="page")]},
    ),
    "more settled than granted": (Rule.UPSIDE_DOWN, {"balances": {"acme": -1}}),
    "more spent than a lost tail had forgotten": (
        Rule.UPSIDE_DOWN,
        {"balances": {"acme": -101}, "forgotten": {"acme": 100}},
    ),
    "what another customer's tail had forgotten": (
        Rule.UPSIDE_DOWN,
        {"balances": {"acme": -1}, "forgotten": {"other": 100}},
    ),
    "usage in no report": (Rule.UNREPORTED, {"unreported": ["acme page"]}),
}


@pytest.mark.parametrize(("rule", "change"), PLANTED.values(), ids=PLANTED.keys())
def test_what_must_never_be(rule: Rule, change: dict[str, Any]):
    assert rules(**change) == [rule]
