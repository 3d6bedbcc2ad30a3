"""A page of some suites keeps what it had of the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.bench.report import Figure, Goal, as_json, compare, from_records, records
from lab.bench.run import CONTEXT, RESULTS, with_earlier

PAIRS = [(10.0, 5.0), (12.0, 4.0), (8.0, 8.0), (11.0, 10.0), (9.0, 3.0)]
GOAL = Goal(ratio_at_least=0.5, value_at_least=10_000)


def figure(suite: str, name: str = "one", goal: Goal | None = None) -> Figure:
    return compare(suite, name, "ms", "another", PAIRS, goal)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    before = [figure("soak"), figure("quota", "of before"), figure("gone")]
    (tmp_path / RESULTS).write_text(as_json(before))
    told = {"caveats": ["soak: slow", "quota: of before", "Of the machine."]}
    (tmp_path / CONTEXT).write_text(json.dumps(told))
    return tmp_path


@pytest.mark.parametrize("goal", [None, GOAL])
def test_what_is_recorded_is_read_again(goal: Goal | None) -> None:
    (again,) = from_records(json.loads(json.dumps(records([figure("quota", goal=goal)]))))
    assert records([again]) == records([figure("quota", goal=goal)])
    assert again.goal == goal


def test_the_other_suites_stay_in_their_order_with_their_caveats(folder: Path) -> None:
    figures, notes = with_earlier([figure("quota", "new")], ["quota: new"], folder)
    assert [(each.suite, each.name) for each in figures] == [("soak", "one"), ("quota", "new")]
    assert notes[:2] == ["quota: new", "soak: slow"]
    assert notes[2].startswith("Of an earlier run on this machine: soak.")


def test_without_an_earlier_page_there_is_nothing_to_keep(tmp_path: Path) -> None:
    assert with_earlier([figure("quota")], ["quota: new"], tmp_path) == (
        [figure("quota")],
        ["quota: new"],
    )
