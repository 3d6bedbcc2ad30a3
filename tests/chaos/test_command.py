"""What ``make chaos`` answers: 0 only if every invariant holds and every fault was shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.chaos import __main__ as command
from lab.chaos.checker import Broken, Rule
from lab.chaos.errors import ChaosError
from lab.chaos.run import Result
from lab.chaos.schedule import Turn


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_LOCAL_DIR", str(tmp_path))
    for name in ("signal", "structlog", "logging"):
        # Neither this process's signals nor its log are the command's here.
        monkeypatch.setattr(command, name, _Nothing())


class _Nothing:
    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_more: self


def answering(monkeypatch: pytest.MonkeyPatch, result: Result | Exception) -> list[Turn]:
    """The next run comes to this; what it was to do is in the list afterwards."""
    asked: list[Turn] = []

    def run(_folder: Path, _seed: int, schedule: Iterator[Turn], **_more: object) -> Result:
        asked.extend(schedule)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(command, "run", run)
    return asked


def test_the_short_form_asks_for_one_death_of_each_part(monkeypatch: pytest.MonkeyPatch):
    asked = answering(monkeypatch, Result(seed=1))
    assert command.main(["--short", "--seed", "1"]) == 0
    assert {turn.fault for turn in asked} == set(command._SHORT_FAULTS)
    assert {turn.hits for turn in asked} == {1}


@pytest.mark.parametrize("rule", list(Rule))
def test_one_broken_invariant_is_a_failure(rule: Rule, monkeypatch: pytest.MonkeyPatch):
    answering(monkeypatch, Result(seed=1, broken=[Broken(rule=rule, task_id="t1")]))
    assert command.main(["--short"]) == 1


def test_a_run_that_cannot_go_on_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    answering(monkeypatch, ChaosError("not drained"))
    assert command.main(["--short"]) == 1
