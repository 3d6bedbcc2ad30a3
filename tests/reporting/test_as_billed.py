"""Which hours are said to have been billed otherwise than was accepted, and how."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.reporting.adjustments import Holding, as_billed

UNDER_WAY = datetime(2026, 11, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def holding(hours_ago: int, value: int, answered: int | None = None) -> Holding:
    at = UNDER_WAY - (hours_ago if answered is None else answered) * HOUR
    return Holding(UNDER_WAY - hours_ago * HOUR, at, value)


THREE = (holding(3, 10), holding(2, 20), holding(1, 30))


@pytest.mark.parametrize(
    ("billed", "changed"),
    [
        (60, {}),
        (65, {1: 35}),
        (55, {1: 25}),
        (30, {1: 0}),
        (25, {1: 0, 2: 15}),
        (0, {1: 0, 2: 0, 3: 0}),
    ],
)
def test_what_was_answered_last_is_corrected_first(billed: int, changed: dict[int, int]) -> None:
    expected = {UNDER_WAY - ago * HOUR: value for ago, value in changed.items()}
    assert as_billed(THREE, billed) == expected


def test_the_answer_counts_and_not_the_hour() -> None:
    late = [holding(3, 10, answered=0), holding(1, 30)]
    assert as_billed(late, 35) == {UNDER_WAY - 3 * HOUR: 5}


@given(values=st.lists(st.integers(0, 50), min_size=1, max_size=8), billed=st.integers(0, 500))
def test_the_hours_add_up_to_what_was_billed(values: list[int], billed: int) -> None:
    before = [holding(ago, value) for ago, value in enumerate(values)]
    changed = as_billed(before, billed)
    after = [changed.get(each.hour, each.value) for each in before]
    assert sum(after) == billed
    assert min(after) >= 0
    raised = [new for each, new in zip(before, after, strict=True) if new > each.value]
    lowered = [new for each, new in zip(before, after, strict=True) if new < each.value]
    assert not (raised and lowered)
