"""What a run of scale says of its books and its interruption."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.scale.verdict import UNAVAILABLE, Attempt, Row, books, interruption, percentile


def _attempt(task: str, *, at: float = 0, outcome: str = "admitted", amount: int = 5) -> Attempt:
    charged = amount if outcome == "admitted" else 0
    return Attempt(
        at=at, answer_seconds=0.5, customer="acme", task=task, outcome=outcome, amount=charged
    )


def _row(task: str, amount: int = 5) -> Row:
    return Row(customer="acme", task=task, amount=amount)


def test_books_are_exact_where_each_admitted_task_is_logged_once():
    found = books(
        [_attempt("a"), _attempt("b"), _attempt("c", outcome="insufficient_credits")],
        [_row("a"), _row("b")],
        {"acme": 10},
    )
    assert found.exact
    assert (found.admitted, found.logged, found.over_ceiling) == (2, 2, 0)


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ([_row("a")], "lost"),
        ([_row("a"), _row("b"), _row("b")], "twice"),
        ([_row("a"), _row("b"), _row("x")], "unknown"),
        ([_row("a"), _row("b", 4)], "amounts_differ"),
    ],
)
def test_each_way_to_be_wrong_has_a_name(rows: list[Row], wrong: str):
    found = books([_attempt("a"), _attempt("b")], rows, {"acme": 100})
    assert getattr(found, wrong) == 1
    assert not found.exact


def test_a_customer_charged_beyond_what_was_given_is_over_the_ceiling():
    found = books([_attempt("a"), _attempt("b")], [_row("a"), _row("b")], {"acme": 7})
    assert (found.over_ceiling, found.worst_excess_microcredits) == (1, 3)


def test_an_interruption_lasts_from_the_first_unanswered_attempt_to_the_end_of_the_last():
    found = interruption(
        [
            _attempt("before", at=1, outcome=UNAVAILABLE),
            _attempt("a", at=10),
            _attempt("b", at=11, outcome=UNAVAILABLE),
            _attempt("c", at=13, outcome=UNAVAILABLE),
            _attempt("d", at=14, outcome="insufficient_credits"),
        ],
        since=10,
    )
    assert (found.unanswered, found.seconds, found.attempts) == (2, 2.5, 4)


def test_without_an_unanswered_attempt_there_was_no_interruption():
    found = interruption([_attempt("a", at=10)], since=10)
    assert (found.unanswered, found.seconds) == (0, 0.0)
    assert interruption([], since=0).slowest_answer_seconds == 0


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_one_of_the_values_with_so_many_at_or_below_it(
    values: list[float], percent: int
):
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert percentile([], percent) == 0
