"""A schedule follows from its seed."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lab.chaos.schedule import Kind, Turn, turns

KINDS = [
    Kind(name="flush"),
    Kind(name="kill", hits=2, many=True),
    Kind(name="cut", seconds=(1.0, 9.0)),
    Kind(name="edge", last=True),
]


def schedule(seed: int, *, rounds: int = 3, quick: bool = False, hits: int = 50) -> list[Turn]:
    return list(turns(seed, KINDS, rounds=rounds, quick=quick, hits=hits))


@given(st.integers(0, 2**31))
def test_the_same_seed_is_the_same_schedule(seed: int):
    assert schedule(seed) == schedule(seed)


def test_another_seed_is_another_order():
    orders = {tuple(turn.fault for turn in schedule(seed)) for seed in range(20)}
    assert len(orders) > 1


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_every_fault_comes_once_in_each_round(seed: int, rounds: int):
    found = schedule(seed, rounds=rounds)
    assert Counter(turn.fault for turn in found) == {kind.name: rounds for kind in KINDS}
    assert [turn.number for turn in found] == list(range(1, len(found) + 1))


@given(st.integers(0, 2**31))
def test_what_belongs_to_the_end_of_a_round_is_there(seed: int):
    assert [turn.fault for turn in schedule(seed)][3::4] == ["edge"] * 3


@given(st.integers(0, 2**31), st.integers(1, 7), st.integers(1, 60))
def test_all_rounds_together_hit_as_often_as_was_asked(seed: int, rounds: int, hits: int):
    found = schedule(seed, rounds=rounds, hits=hits)
    assert sum(turn.hits for turn in found if turn.fault == "kill") >= hits
    assert {turn.hits for turn in found if turn.fault == "flush"} == {1}


def test_the_quick_form_is_shorter():
    quick = {turn.fault: turn for turn in schedule(1, rounds=1, quick=True)}
    full = {turn.fault: turn for turn in schedule(1, rounds=1)}
    assert (quick["cut"].seconds, full["cut"].seconds) == (1.0, 9.0)
    assert (quick["kill"].hits, full["kill"].hits) == (2, 50)
