"""Memory over time: what a row of samples says, and how it is read."""

from __future__ import annotations

import os

import pytest

from lab.bench import cpu
from lab.bench.memory import LEAST, Sample, after_warm_up, per_hour, quarters, resident


def row(*megabytes: float) -> list[Sample]:
    return [Sample(float(at), each) for at, each in enumerate(megabytes)]


@pytest.mark.parametrize(
    ("samples", "slope"),
    [
        (row(*[100.0] * 40), 0.0),
        (row(*[100.0 + at for at in range(40)]), 3600.0),
        (row(*[100.0 - at / 3600 for at in range(40)]), -1.0),
        ([Sample(at * 60.0, 50 + at * 60 / 3600) for at in range(30)], 1.0),
    ],
)
def test_the_slope_is_in_megabytes_an_hour(samples: list[Sample], slope: float) -> None:
    assert per_hour(samples) == pytest.approx(slope, abs=1e-6)


def test_flat_memory_has_equal_quarters() -> None:
    assert quarters(row(*[100.0] * 40)) == [(100.0, 100.0)] * 5


def test_quarters_are_the_last_and_the_first_in_five_slices() -> None:
    pairs = quarters(row(*[float(at) for at in range(40)]))
    assert pairs == [(30.5, 0.5), (32.5, 2.5), (34.5, 4.5), (36.5, 6.5), (38.5, 8.5)]


def test_one_peak_in_a_slice_does_not_make_a_leak() -> None:
    samples = row(*[100.0] * 55, 900.0, *[100.0] * 4)
    assert [last / first for last, first in quarters(samples)] == [1.0] * 5


def test_what_leaks_shows_in_every_slice() -> None:
    samples = row(*[100.0 + at for at in range(40)])
    assert all(last / first > 1.2 for last, first in quarters(samples))


def test_the_warm_up_is_left_out() -> None:
    samples = row(*[900.0] * 10, *[100.0] * 40)
    assert {sample.megabytes for sample in after_warm_up(samples)} == {100.0}


def test_too_few_samples_are_no_row() -> None:
    with pytest.raises(ValueError, match=f"19 samples after the warm-up; {LEAST} are needed"):
        after_warm_up(row(*[1.0] * 23))


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux tells it")  # noqa: PTH110
def test_memory_that_this_process_takes_is_seen() -> None:
    before = resident([os.getpid()])
    taken = bytearray(os.urandom(50_000_000))
    assert 40 < resident([os.getpid()]) - before < 80
    assert len(taken) == 50_000_000
    assert os.getpid() in cpu.family(os.getpid())
    assert resident([2**22 + 1]) == 0
