"""What the benchmark sees while reports leave: rates by part, and memory that grows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lab.bench.drain import Watch, resident
from lab.bench.report import Goal, compare


def watched(count: int, *, parts: int = 5, memory: Callable[[int], float]) -> Watch:
    """A run of so many reports, one a millisecond, in which memory is as told."""
    at = 0
    watch = Watch(count, parts, seconds=lambda: at / 1000, memory=lambda: memory(at))
    for number in range(1, count + 1):
        at = number
        watch.taken(number)
    return watch


def test_each_part_has_its_rate_and_its_most_memory() -> None:
    watch = watched(1000, memory=lambda at: 100 if at != 500 else 130)
    assert watch.rates() == pytest.approx([1000.0] * 5)
    assert watch.memory() == [(100, 100), (100, 100), (130, 100), (100, 100), (100, 100)]
    assert (watch.grown(), watch.seconds()) == (30, 1.0)


def test_a_count_that_does_not_divide_leaves_the_rest_unwatched() -> None:
    watch = watched(1004, memory=lambda _: 100)
    assert len(watch.rates()) == len(watch.memory()) == 5


def test_memory_that_grows_with_every_report_misses_the_goal() -> None:
    goal = Goal(ratio_at_most=1.1)
    leaking = watched(100_000, memory=lambda at: 150 + at / 1000)  # a KiB each
    flat = watched(100_000, memory=lambda at: 150 + (at > 0))
    assert compare("reporting", "memory", "MiB", "before", leaking.memory(), goal).met is False
    assert compare("reporting", "memory", "MiB", "before", flat.memory(), goal).met is True


def test_memory_is_that_of_now_and_not_the_most_there_ever_was() -> None:
    before = resident()
    much = bytearray(64 * 1024 * 1024)
    assert resident() > before + 60
    del much
    assert resident() < before + 30
