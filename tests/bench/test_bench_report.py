"""The pure parts of the benchmarks: statistics, caveats, the table and the JSON form."""

from __future__ import annotations

import json
import random
import statistics
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lab.bench.effort import FULL, QUICK
from lab.bench.report import (
    MIN_REPETITIONS,
    Context,
    Figure,
    Goal,
    Spread,
    as_json,
    caveats,
    compare,
    number,
    percentile,
    records,
    spread,
    table,
)

WIDTH = 100
CONTEXT = Context(
    cores=2,
    model="Example CPU at 3 GHz",
    versions={"Python": "3.11.7", "Celery": "5.7.0", "RabbitMQ": "3.10.8"},
    settings={"fsync": "on", "appendonly": "yes"},
    loads=(0.1, 1.9),
)
PAIRS = [(10.0, 5.0), (12.0, 4.0), (8.0, 8.0), (11.0, 10.0), (9.0, 3.0)]


def make_figure(**overrides: Any) -> Figure:
    figure = compare("quota", "reserve p50", "ms", "PING p50", PAIRS)
    return replace(figure, **overrides)


def printed(figures: list[Figure], notes: list[str] | None = None) -> str:
    console = Console(width=WIDTH, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table(figures, CONTEXT, notes or []))
    return capture.get()


# -- statistics ----------------------------------------------------------------------------------


def test_a_spread_is_median_lowest_and_highest() -> None:
    assert spread([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)


def test_the_median_of_an_even_number_lies_between_the_middle_two() -> None:
    assert spread([1.0, 2.0, 4.0, 100.0]).median == 3.0


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [float("inf")]])
def test_there_is_no_spread_of_nothing_nor_of_what_is_no_number(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="no spread"):
        spread(samples)


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 50.0), (99, 99.0), (100, 100.0), (0.1, 1.0), (99.1, 100.0)]
)
def test_percentiles_of_a_hundred_samples_are_their_ranks(percent: float, expected: float) -> None:
    samples = [float(value) for value in range(1, 101)]
    random.Random(7).shuffle(samples)
    assert percentile(samples, percent) == expected


def test_every_percentile_of_one_sample_is_that_sample() -> None:
    assert {percentile([4.0], percent) for percent in (1, 50, 99, 100)} == {4.0}


@pytest.mark.parametrize(("samples", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_a_percentile_that_does_not_exist_is_an_error(samples: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(samples, percent)


@given(
    st.lists(st.floats(0, 1e9), min_size=1, max_size=200),
    st.floats(0.001, 100, exclude_min=True),
)
def test_a_percentile_is_the_least_sample_that_enough_samples_do_not_pass(
    samples: list[float], percent: float
) -> None:
    found = percentile(samples, percent)
    enough = len(samples) * percent / 100
    assert found in samples
    assert sum(sample <= found for sample in samples) >= enough
    assert sum(sample < found for sample in samples) < enough


# -- figures -------------------------------------------------------------------------------------


def test_the_ratio_is_the_median_of_the_ratios_of_each_repetition() -> None:
    figure = make_figure()
    assert figure.ratio == Spread(2.0, 1.0, 3.0)
    assert figure.value == Spread(10.0, 8.0, 12.0)
    assert figure.baseline == Spread(5.0, 3.0, 10.0)
    assert figure.repetitions == 5


def test_the_ratio_is_not_the_ratio_of_the_medians() -> None:
    pairs = [(10.0, 1.0), (20.0, 10.0), (30.0, 30.0), (40.0, 20.0), (50.0, 50.0)]
    figure = compare("s", "n", "u", "b", pairs)
    assert figure.value.median / figure.baseline.median == 1.5
    assert figure.ratio.median == 2.0


def test_a_machine_that_slows_down_for_some_repetitions_leaves_the_ratio_alone() -> None:
    pairs = [(100.0, 50.0), (50.0, 25.0), (10.0, 5.0), (40.0, 20.0), (200.0, 100.0)]
    assert compare("s", "n", "u", "b", pairs).ratio == Spread(2.0, 2.0, 2.0)


def test_fewer_than_five_repetitions_are_no_figure() -> None:
    assert MIN_REPETITIONS == 5
    with pytest.raises(ValueError, match="4 repetitions; 5 are needed"):
        compare("quota", "reserve", "ms", "PING", PAIRS[:4])


@pytest.mark.parametrize("baseline", [0.0, -1.0])
def test_a_baseline_of_nothing_is_an_error_that_names_the_figure(baseline: float) -> None:
    with pytest.raises(ValueError, match="quota, reserve: a baseline of zero"):
        compare("quota", "reserve", "ms", "PING", [*PAIRS, (1.0, baseline)])


@given(st.lists(st.tuples(st.floats(0.1, 1e6), st.floats(0.1, 1e6)), min_size=5, max_size=30))
def test_every_median_lies_within_its_spread(pairs: list[tuple[float, float]]) -> None:
    figure = compare("s", "n", "u", "b", pairs)
    for side in (figure.value, figure.baseline, figure.ratio):
        assert side.low <= side.median <= side.high
    assert figure.ratio.median == statistics.median(value / base for value, base in pairs)


@pytest.mark.parametrize("effort", [FULL, QUICK])
def test_each_effort_repeats_often_enough(effort: Any) -> None:
    assert effort.repetitions >= MIN_REPETITIONS


def test_an_effort_with_too_few_repetitions_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="4 repetitions"):
        replace(QUICK, repetitions=4)


def test_the_full_effort_measures_rounds_of_three_seconds_and_the_quick_one_less() -> None:
    assert FULL.round_seconds >= 3.0
    assert QUICK.round_seconds < FULL.round_seconds


# -- caveats -------------------------------------------------------------------------------------


def test_a_shared_machine_is_always_a_caveat() -> None:
    [only] = caveats(replace(CONTEXT, loads=(0.1, 0.2)), quick=False)
    assert "share this machine's cores" in only


def test_load_before_the_run_is_called_other_work() -> None:
    told = caveats(replace(CONTEXT, loads=(3.25, 4.0)), quick=False)
    [line] = [line for line in told if line.startswith("Load average")]
    assert line.startswith("Load average 3.2 before and 4.0 after, on 2 cores.")
    assert "other work" in line


def test_load_that_only_rose_during_the_run_is_the_runs_own() -> None:
    told = caveats(replace(CONTEXT, loads=(0.1, 1.9)), quick=False)
    [line] = [line for line in told if line.startswith("Load average")]
    assert line.endswith("the rise is this run.")
    assert "other work" not in line


def test_load_counts_by_the_core() -> None:
    many = replace(CONTEXT, cores=64, loads=(3.0, 4.0))
    assert not any(line.startswith("Load") for line in caveats(many, quick=False))


def test_quick_figures_are_not_to_be_quoted() -> None:
    assert any("do not quote" in line for line in caveats(CONTEXT, quick=True))
    assert not any("do not quote" in line for line in caveats(CONTEXT, quick=False))


# -- goals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "told", "met"),
    [
        (Goal(ratio_at_least=0.7), "ratio ≥ 0.7", True),
        (Goal(ratio_at_least=2.1), "ratio ≥ 2.1", False),
        (Goal(ratio_at_most=2), "ratio ≤ 2", True),
        (Goal(ratio_at_most=1.9), "ratio ≤ 1.9", False),
        (Goal(ratio_at_least=1, value_at_least=10_000), "ratio ≥ 1, ≥ 10,000 ms", False),
        (Goal(value_at_least=10), "≥ 10 ms", True),
        (Goal(value_at_most=50), "≤ 50 ms", True),
        (Goal(ratio_at_most=3, value_at_most=9), "ratio ≤ 3, ≤ 9 ms", False),
    ],
)
def test_a_goal_is_met_by_the_medians(goal: Goal, told: str, met: bool) -> None:
    figure = make_figure(goal=goal)
    assert (goal.told(figure.unit), figure.met) == (told, met)
    assert ("NOT MET" in printed([figure])) is not met


def test_a_figure_without_a_goal_is_neither_met_nor_missed() -> None:
    assert make_figure().met is None


# -- for machines --------------------------------------------------------------------------------


def test_the_json_is_a_list_of_figures_with_medians_and_ranges() -> None:
    assert json.loads(as_json([make_figure(goal=Goal(ratio_at_most=2))])) == [
        {
            "suite": "quota",
            "name": "reserve p50",
            "value": 10.0,
            "unit": "ms",
            "baseline": 5.0,
            "ratio": 2.0,
            "against": "PING p50",
            "target": "ratio ≤ 2",
            "met": True,
            "goal": {
                "ratio_at_least": None,
                "ratio_at_most": 2,
                "value_at_least": None,
                "value_at_most": None,
            },
            "repetitions": 5,
            "value_range": [8.0, 12.0],
            "baseline_range": [3.0, 10.0],
            "ratio_range": [1.0, 3.0],
        }
    ]


def test_the_json_of_nothing_is_an_empty_list() -> None:
    assert as_json([]) == "[]\n"


def test_stored_numbers_keep_six_digits() -> None:
    figure = make_figure(
        value=Spread(1 / 3, 1e-9 / 3, 1e9 / 3), ratio=Spread(123_456_789.0, 0.0, 2.0)
    )
    [record] = records([figure])
    assert record["value"] == 0.333333
    assert record["value_range"] == [3.33333e-10, 333_333_000.0]
    assert record["ratio"] == 123_457_000.0


def test_what_is_no_number_is_never_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json([make_figure(value=Spread(float("nan"), 0.0, 1.0))])


# -- for people ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.0439, "0.0439"),
        (0.1, "0.100"),
        (2.3456, "2.35"),
        (45.67, "45.7"),
        (617.4, "617"),
        (14_137.0, "14,100"),
        (107_400.0, "107,000"),
        (-2.3456, "-2.35"),
    ],
)
def test_numbers_are_shown_with_three_significant_digits(value: float, shown: str) -> None:
    assert number(value) == shown


@given(st.floats(1e-6, 1e12))
def test_a_shown_number_is_off_by_half_a_percent_at_most(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.00501)


def test_a_row_tells_suite_figure_value_unit_baseline_and_ratio() -> None:
    lines = printed([make_figure()]).splitlines()
    [heading] = [line.split() for line in lines if "baseline" in line and "suite" in line]
    assert heading == ["suite", "figure", "value", "unit", "baseline", "ratio", "target"]
    [first] = [index for index, line in enumerate(lines) if "reserve p50" in line]
    assert lines[first].split() == ["quota", "reserve", "p50", "10.0", "ms", "5.00", "2.00", "-"]
    assert lines[first + 1].split() == [
        *("against", "PING", "p50"),
        *("8.00-12.0", "3.00-10.0", "1.00-3.00"),
    ]


def test_a_suite_is_named_once() -> None:
    text = printed([make_figure(), make_figure(name="settle p50"), make_figure(suite="ingest")])
    assert text.count("quota") == 1
    assert text.count("ingest") == 1


def test_machine_versions_settings_and_caveats_stand_below_the_table() -> None:
    text = " ".join(printed([make_figure()], ["load average 6", "a short run"]).split())
    for expected in (
        "Median of 5 or more",
        "Machine: 2 cores, Example CPU at 3 GHz",
        "Versions: Python 3.11.7, Celery 5.7.0, RabbitMQ 3.10.8",
        "Servers: fsync on, appendonly yes",
        "- load average 6 - a short run",
    ):
        assert expected in text


def test_the_number_of_repetitions_told_is_that_of_the_figure_with_the_fewest() -> None:
    text = printed([make_figure(repetitions=9), make_figure(repetitions=7)])
    assert "Median of 7 or more" in text


def test_large_figures_fit_a_hundred_columns_and_lose_no_digit() -> None:
    wide = Spread(107_000.0, 37_800.0, 1_234_000.0)
    figure = make_figure(
        suite="transport",
        name="publish, batches of 5,000",
        against="one-by-one confirms",
        unit="events/s",
        value=wide,
        baseline=wide,
        ratio=Spread(10.9, 8.13, 12.6),
    )
    text = printed([figure])
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert text.count("37,800-1,230,000") == 2
    assert "8.13-12.6" in text


def test_square_brackets_in_a_name_are_text_and_no_markup() -> None:
    assert "[bold]reserve" in printed([make_figure(name="[bold]reserve")])
