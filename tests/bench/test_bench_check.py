"""What a build is held to: a ratio that is half as good as committed, twice in a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.bench import run
from lab.bench.check import both_times, compared, fallen, unchecked
from lab.bench.effort import CHECK
from lab.bench.report import MIN_REPETITIONS, Context, Figure, compare

CONTEXT = Context(cores=2, model="m", versions={}, settings={}, loads=(0.1, 0.2))


def record(
    ratio: float, unit: str = "rows/s", name: str = "write", suite: str = "ingest"
) -> dict[str, Any]:
    return {"suite": suite, "name": name, "unit": unit, "ratio": ratio}


@pytest.mark.parametrize(
    ("unit", "committed", "found", "falls"),
    [
        ("rows/s", 0.6, 0.6, False),
        ("rows/s", 0.6, 0.31, False),
        ("rows/s", 0.6, 0.3, False),
        ("rows/s", 0.6, 0.29, True),
        ("rows/s", 0.6, 5.0, False),
        ("tasks/s", 120.0, 59.0, True),
        ("checks/s", 0.5, 0.2, True),
        ("ms", 1.4, 2.7, False),
        ("ms", 1.4, 2.9, True),
        ("ms", 1.4, 0.1, False),
        ("µs/task", 2.0, 4.1, True),
        ("µs/task", 2.0, 0.5, False),
        ("s", 1.0, 2.1, True),
        ("MB", 1.0, 2.1, True),
    ],
)
def test_half_as_good_is_a_fall(unit: str, committed: float, found: float, falls: bool) -> None:
    told = fallen([record(found, unit)], [record(committed, unit)])
    assert bool(told) is falls


@pytest.mark.parametrize(
    ("unit", "found", "words"),
    [
        ("rows/s", 0.2, "ingest, write: the ratio has fallen by half or worse: 0.200"),
        ("ms", 2.0, "ingest, write: the ratio has doubled or worse: 2.00"),
    ],
)
def test_a_fall_names_its_figure_and_both_ratios(unit: str, found: float, words: str) -> None:
    [fall] = fallen([record(found, unit)], [record(0.6, unit)])
    assert fall.told() == f"{words}, committed 0.600"


def test_only_what_both_have_is_compared_and_no_99th_percentile() -> None:
    found = [record(1, name="a"), record(1, name="b"), record(1, name="reserve p99")]
    committed = [record(9, name="b"), record(9, name="c"), record(9, name="reserve p99")]
    assert [ours["name"] for ours, _ in compared(found, committed)] == ["b"]


def test_a_name_in_another_suite_is_another_figure() -> None:
    assert fallen([record(1, suite="quota")], [record(9, suite="ingest")]) == []


def test_a_suite_of_which_nothing_was_compared_is_told() -> None:
    found = [record(1, name="a"), record(1, suite="quota", name="reserve p99")]
    suites = ["ingest", "quota", "consume"]
    assert unchecked(suites, found, found) == ["quota", "consume"]
    assert unchecked(["ingest"], found, []) == ["ingest"]


def test_what_has_fallen_only_once_is_forgiven() -> None:
    committed = [record(1, name=name) for name in "abc"]
    first = fallen([record(0.1, name="a"), record(0.2, name="b")], committed)
    again = fallen([record(0.3, name="b"), record(0.1, name="c")], committed)
    assert [(fall.name, fall.ratio) for fall in both_times(first, again)] == [("b", 0.3)]


def test_the_effort_of_a_check_repeats_as_often_as_any() -> None:
    assert CHECK.repetitions >= MIN_REPETITIONS


# -- the command -----------------------------------------------------------------------------------


def figure(suite: str, ratio: float) -> Figure:
    return compare(suite, "write", "rows/s", "raw COPY", [(ratio, 1.0)] * MIN_REPETITIONS)


class Runs:
    """In place of measuring: what each run finds, and the suites that it was asked for."""

    def __init__(self, *found: list[Figure]) -> None:
        self.found = list(found)
        self.asked: list[list[str]] = []

    def __call__(self, asked: Any, *_: object) -> tuple[list[Figure], Context, list[str]]:
        self.asked.append(list(asked.suite))
        return self.found.pop(0), CONTEXT, []


def checked(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *committed: float) -> int:
    against = tmp_path / "latest.json"
    names = ("ingest", "quota")
    against.write_text(
        json.dumps([record(each, suite=name) for name, each in zip(names, committed, strict=False)])
    )
    monkeypatch.setenv("WEIGHBRIDGE_LOCAL_DIR", str(tmp_path))
    monkeypatch.setattr(run, "_measure", runs)
    return run.main(["--check", "--against", str(against), "--suite", "ingest", "--suite", "quota"])


def test_a_check_without_a_fall_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs([figure("ingest", 0.5), figure("quota", 1)])
    assert checked(runs, tmp_path, monkeypatch, 0.6, 1) == 0


def test_a_fall_is_measured_again_alone_and_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs([figure("ingest", 0.1), figure("quota", 1)], [figure("ingest", 0.5)])
    assert checked(runs, tmp_path, monkeypatch, 0.6, 1) == 0
    assert runs.asked == [["ingest", "quota"], ["ingest"]]


def test_a_fall_that_comes_again_fails_and_names_its_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs([figure("ingest", 0.1), figure("quota", 1)], [figure("ingest", 0.2)])
    assert checked(runs, tmp_path, monkeypatch, 0.6, 1) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "FAILED: ingest, write: the ratio has fallen by half or worse: 0.200, committed" in told


def test_a_suite_that_was_not_measured_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checked(Runs([figure("quota", 1)]), tmp_path, monkeypatch, 0.6, 1) == 1
    assert "FAILED: ingest: nothing was compared" in capsys.readouterr().err


def test_without_committed_figures_it_says_who_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_LOCAL_DIR", str(tmp_path))
    assert run.main(["--check", "--against", str(tmp_path / "none.json")]) == 1
    assert "make bench ARGS=--page writes them" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("other", ["--quick", "--check"])
def test_short_rounds_make_no_page(other: str) -> None:
    with pytest.raises(SystemExit):
        run.main(["--page", other])


def test_soak_is_only_measured_when_named() -> None:
    assert "soak" not in run.SUITES
    assert "soak" in run.ON_REQUEST
    assert not set(run.CHECKED) - set(run.SUITES)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], list(run.SUITES)),
        (["--page"], ["soak", *run.SUITES]),
        (["--suite", "soak", "--suite", "quota"], ["soak", "quota"]),
        (["--page", "--suite", "quota"], ["quota"]),
    ],
)
def test_which_suites_are_measured(arguments: list[str], names: list[str]) -> None:
    assert run._names(run._parse(arguments)) == names
