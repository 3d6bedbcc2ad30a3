"""Reading back as rules: what an hour has to show, what follows, when it is looked at again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.reporting.confirmation_rules import (
    APART,
    DAILY,
    FIRST_READ_BACK,
    LAG,
    LATER,
    MAX_RESENT,
    SHORTEST_WAIT,
    Awaited,
    Entry,
    ReadBackFinding,
    after_no_answer,
    awaited,
    judge,
    judge_gone,
    next_read_back,
    put_off_until,
)
from billing.reporting.revision_rules import Holder
from billing.reporting.usage_report import ReportState

NOW = datetime(2026, 11, 10, 12, 30, tzinfo=UTC)
HOUR = datetime(2026, 11, 10, 9, tzinfo=UTC)
HERE = Holder("stripe", "cus_1", "wb.pages")
ELSEWHERE = Holder("stripe", "cus_2", "wb.pages")
MINUTE = timedelta(minutes=1)
PLAIN = Entry(
    id=1, hour=HOUR, revision=1, holder=HERE, value=100,
    held_microcredits=100, state=ReportState.ACCEPTED, cause="taken", outcome_unknown=False,
    answered_at=NOW - 2 * LAG, confirm_at=NOW, confirmed_at=None, readings=0, resent=0,
    period_closed=False,
)  # fmt: skip


def entry(**changes: Any) -> Entry:
    """An accepted figure of 100, two hours after its answer, whose reading is due."""
    return replace(PLAIN, **changes)


def alone(one: Entry, *older: Entry) -> Awaited:
    """The only report of an hour that is to be read back."""
    [found] = awaited([one, *older], HERE)
    return found


def finding(one: Awaited, read: int | None, *, oldest: datetime | None = None) -> ReadBackFinding:
    return judge(one, read, NOW, oldest=oldest).finding


FRESH = {"answered_at": NOW - FIRST_READ_BACK}


@pytest.mark.parametrize(
    ("changes", "read", "expected"),
    [
        ({}, 100, ReadBackFinding.CONFIRM),
        (FRESH, 100, ReadBackFinding.CONFIRM),
        ({"confirm_at": NOW + LAG}, 100, ReadBackFinding.CONFIRM),
        ({"confirm_at": NOW + LAG, "answered_at": NOW - MINUTE}, 100, ReadBackFinding.LEAVE),
        ({"answered_at": NOW - MINUTE}, 100, ReadBackFinding.CONFIRM),  # told to be read at once
        ({"value": 10**15 - 1}, 10**15 - 1, ReadBackFinding.CONFIRM),
        ({"value": 10**15 - 1}, 10**15 - 2, ReadBackFinding.RESEND),
        (FRESH, 99, ReadBackFinding.WAIT),
        (FRESH, None, ReadBackFinding.WAIT),
        ({"answered_at": NOW - LAG + MINUTE}, None, ReadBackFinding.WAIT),
        ({"answered_at": NOW - LAG}, None, ReadBackFinding.RESEND),
        ({}, 99, ReadBackFinding.RESEND),
        ({}, 0, ReadBackFinding.RESEND),
        ({}, 101, ReadBackFinding.RESEND),
        ({"confirm_at": NOW + LAG}, 99, ReadBackFinding.LEAVE),
        ({"resent": MAX_RESENT - 1}, 99, ReadBackFinding.RESEND),
        ({"resent": MAX_RESENT}, 99, ReadBackFinding.PARK),
        ({"resent": MAX_RESENT}, 100, ReadBackFinding.CONFIRM),
        ({"period_closed": True}, 99, ReadBackFinding.CLOSE),
        ({"period_closed": True, **FRESH}, 99, ReadBackFinding.WAIT),
        ({"period_closed": True}, 100, ReadBackFinding.CONFIRM),
    ],
    ids=str,
)
def test_an_accepted_figure_is_compared_exactly_with_the_hour(
    changes: dict[str, Any], read: int | None, expected: ReadBackFinding
) -> None:
    assert finding(alone(entry(**changes)), read) is expected


@pytest.mark.parametrize(
    ("answered", "read", "expected"),
    [
        (2 * LAG, 0, ReadBackFinding.CONFIRM),
        (FIRST_READ_BACK, 0, ReadBackFinding.CONFIRM),
        (2 * LAG, None, ReadBackFinding.CONFIRM),
        (FIRST_READ_BACK, None, ReadBackFinding.WAIT),
        (2 * LAG, 5, ReadBackFinding.RESEND),
    ],
)
def test_no_figure_is_a_zero_only_once_the_provider_has_had_its_time(
    answered: timedelta, read: int | None, expected: ReadBackFinding
) -> None:
    assert finding(alone(entry(value=0, answered_at=NOW - answered)), read) is expected


@given(value=st.integers(0, 10**15 - 1), age=st.integers(0, 10**6))
def test_a_missing_figure_never_confirms_one_that_is_not_zero(value: int, age: int) -> None:
    one = entry(value=value, answered_at=NOW - age * MINUTE)
    if value:
        assert finding(alone(one), None) is not ReadBackFinding.CONFIRM


def test_what_is_too_old_to_be_taken_is_parked_and_not_sent() -> None:
    one = alone(entry())
    assert finding(one, 99, oldest=HOUR) is ReadBackFinding.RESEND
    assert finding(one, 99, oldest=HOUR + timedelta(hours=1)) is ReadBackFinding.PARK


# ---- which reports an hour is read for ----


def test_a_bucket_with_an_open_revision_is_left_alone() -> None:
    for state in (ReportState.PENDING, ReportState.SENDING, ReportState.UNKNOWN):
        later = entry(id=2, revision=2, state=state)
        assert awaited([entry(), later], HERE) == []


def test_only_the_last_accepted_figure_of_an_hour_is_read() -> None:
    rows = [entry(), entry(id=2, revision=2, value=110)]
    [one] = awaited(rows, HERE)
    assert (one.entry.id, one.entry.value, [each.id for each in one.older]) == (2, 110, [1])
    assert awaited([rows[0], replace(rows[1], state=ReportState.CONFIRMED)], HERE) == []


def test_what_another_place_counts_is_not_part_of_the_hour_here() -> None:
    rows = [entry(), entry(id=2, revision=2, holder=ELSEWHERE, value=5)]
    [here] = awaited(rows, HERE)
    [there] = awaited(rows, ELSEWHERE)
    assert (here.entry.value, there.entry.value) == (100, 5)
    assert (here.is_last, here.behind_rest) == (False, True)
    assert (there.is_last, there.behind_rest) == (True, False)


BEFORE = Holder("file", "acme", "wb.pages")


@pytest.mark.parametrize(
    ("last", "changes", "expected"),
    [
        # Nothing of the hour is left to be told, or it was told to the customer's next self.
        ({"state": ReportState.NEEDS_ATTENTION, "cause": "carried"}, {}, ReadBackFinding.RESEND),
        (
            {"state": ReportState.NEEDS_ATTENTION, "cause": "nothing_to_tell"},
            {},
            ReadBackFinding.RESEND,
        ),
        ({"holder": ELSEWHERE}, {}, ReadBackFinding.RESEND),
        ({"holder": ELSEWHERE, "state": ReportState.CONFIRMED}, {}, ReadBackFinding.RESEND),
        ({"holder": ELSEWHERE}, {"resent": MAX_RESENT}, ReadBackFinding.PARK),
        # The last one waits for a person, or for another reading.
        ({"state": ReportState.NEEDS_ATTENTION, "cause": "too_old"}, {}, ReadBackFinding.WAIT),
        ({"state": ReportState.NEEDS_ATTENTION, "cause": "by_hand"}, {}, ReadBackFinding.WAIT),
        (
            {"state": ReportState.NEEDS_ATTENTION, "cause": "carried", "outcome_unknown": True},
            {},
            ReadBackFinding.WAIT,
        ),
        # Another provider gets usage now: what is written down would go there.
        ({"holder": BEFORE}, {}, ReadBackFinding.WAIT),
    ],
    ids=str,
)
def test_an_earlier_figure_is_told_again_only_where_the_last_one_stands_in_nobodys_way(
    last: dict[str, Any], changes: dict[str, Any], expected: ReadBackFinding
) -> None:
    rows = [entry(**changes), entry(**{"id": 2, "revision": 2, "value": 5, **last})]
    one = awaited(rows, HERE)[0]
    assert one.entry.id == 1
    assert finding(one, 99) is expected
    assert finding(one, 100) is ReadBackFinding.CONFIRM


def test_hours_are_judged_each_for_itself() -> None:
    rows = [entry(id=n, hour=HOUR - n * timedelta(hours=1), value=n) for n in range(24)]
    found = awaited(reversed(rows), HERE)
    assert [one.entry.hour for one in found] == sorted(row.hour for row in rows)
    assert {one.entry.value for one in found} == set(range(24))


# ---- outcome_unknown ones ----


def outcome_unknown(**changes: Any) -> Entry:
    """A figure that may have arrived: an answer was lost, and a later attempt was refused."""
    return entry(
        **{
            "state": ReportState.NEEDS_ATTENTION,
            "cause": "too_old",
            "outcome_unknown": True,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("before", "present", "absent", "neither"),
    [
        (None, 100, None, 70),
        (None, 100, 0, 70),
        (30, 100, 30, None),
        (30, 100, 30, 0),
    ],
)
def test_a_doubtful_figure_is_there_or_twice_not_there_or_a_persons_to_decide(
    before: int | None, *, present: int, absent: int | None, neither: int | None
) -> None:
    older = [] if before is None else [
        entry(id=9, value=before, state=ReportState.CONFIRMED)
    ]  # fmt: skip
    one = alone(outcome_unknown(revision=2), *older)
    again = alone(outcome_unknown(revision=2, readings=1), *older)
    assert finding(one, present) is ReadBackFinding.CONFIRM
    first = judge(one, absent, NOW, oldest=None)
    assert (first.finding, first.readings) == (ReadBackFinding.WAIT, 1)
    assert first.confirm_at is not None
    assert first.confirm_at - NOW >= APART
    assert finding(again, absent) is ReadBackFinding.CLEAR
    # Something between makes the first reading worthless.
    between = judge(again, neither, NOW, oldest=None)
    assert (between.finding, between.readings) == (ReadBackFinding.WAIT, 0)


def test_a_doubtful_figure_is_not_given_up_before_the_provider_has_had_its_time() -> None:
    early = alone(outcome_unknown(readings=1, answered_at=NOW - LAG + MINUTE))
    assert finding(early, None) is ReadBackFinding.WAIT


def test_what_was_parked_because_it_differs_waits_for_a_person_or_for_agreement() -> None:
    one = alone(outcome_unknown(cause="differs", readings=5))
    assert finding(one, None) is ReadBackFinding.WAIT
    assert finding(one, 99) is ReadBackFinding.WAIT
    assert finding(one, 100) is ReadBackFinding.CONFIRM


def test_in_a_period_whose_invoice_is_final_nothing_stays_doubtful() -> None:
    assert finding(alone(outcome_unknown(period_closed=True)), 99) is ReadBackFinding.CLEAR
    assert (
        finding(alone(outcome_unknown(period_closed=True, cause="differs")), None)
        is ReadBackFinding.CLEAR
    )


def test_a_doubtful_figure_and_the_accepted_one_before_it_are_told_apart() -> None:
    rows = [entry(), outcome_unknown(id=2, revision=2, value=110)]
    before, after = awaited(rows, HERE)
    assert [finding(before, 100), finding(after, 100)] == [
        ReadBackFinding.CONFIRM,
        ReadBackFinding.WAIT,
    ]
    assert [finding(before, 110), finding(after, 110)] == [
        ReadBackFinding.WAIT,
        ReadBackFinding.CONFIRM,
    ]


def test_a_refusal_that_leaves_no_doubt_is_not_read_back() -> None:
    refused = outcome_unknown(outcome_unknown=False)
    assert awaited([refused], HERE) == []
    [before] = awaited([entry(), replace(refused, id=2, revision=2)], HERE)
    assert before.entry.id == 1


def test_without_a_doubtful_figure_an_hour_shows_the_last_one_before_it() -> None:
    rows = [entry(value=30), entry(id=2, revision=2, value=50, state=ReportState.CONFIRMED)]
    [one] = awaited([*rows, outcome_unknown(id=3, revision=3, value=70)], HERE)
    assert one.without == 50


def test_what_was_told_of_a_missing_customer_counts_nowhere_unless_it_is_billed() -> None:
    assert judge_gone(alone(entry())).finding is ReadBackFinding.GONE
    assert judge_gone(alone(outcome_unknown())).finding is ReadBackFinding.GONE
    assert judge_gone(alone(entry(period_closed=True))).finding is ReadBackFinding.CLOSE
    assert judge_gone(alone(outcome_unknown(period_closed=True))).finding is ReadBackFinding.CLEAR


# ---- when ----


@pytest.mark.parametrize(
    ("age", "then"),
    [
        (timedelta(0), FIRST_READ_BACK),
        (FIRST_READ_BACK, LAG),
        (timedelta(minutes=20), LAG),
        (timedelta(minutes=50), timedelta(minutes=65)),
        (LAG, LAG + LATER),
        (timedelta(hours=7), timedelta(hours=13)),
        (timedelta(hours=23), timedelta(hours=29)),
        (DAILY, 2 * DAILY),
        (timedelta(days=9), timedelta(days=10)),
    ],
)
def test_a_figure_is_read_after_15_minutes_an_hour_then_every_six_and_daily(
    age: timedelta, then: timedelta
) -> None:
    assert next_read_back(NOW - age, NOW) == NOW - age + then


@given(age=st.integers(0, 10**7))
def test_readings_come_closer_than_a_quarter_of_an_hour_only_before_the_first(age: int) -> None:
    wait = next_read_back(NOW - timedelta(seconds=age), NOW) - NOW
    assert timedelta(0) < wait <= DAILY
    assert wait >= APART or age < FIRST_READ_BACK.total_seconds()


@given(ages=st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)))
def test_the_longer_a_provider_is_silent_the_longer_are_the_waits(ages: tuple[int, int]) -> None:
    younger, older = (
        after_no_answer(NOW - timedelta(seconds=age), NOW) - NOW for age in sorted(ages)
    )
    assert SHORTEST_WAIT <= younger <= older <= LATER


SPACING = timedelta(hours=6)


@pytest.mark.parametrize(
    ("due", "agreed", "expected"),
    [
        ({}, NOW - timedelta(hours=1), NOW + timedelta(hours=5)),
        ({}, NOW - SPACING, None),
        ({}, None, None),
        ({"readings": 1}, NOW - timedelta(hours=1), None),
        ({"resent": 1}, NOW - timedelta(hours=1), None),
        (
            {"state": ReportState.NEEDS_ATTENTION, "outcome_unknown": True},
            NOW - timedelta(hours=1),
            None,
        ),
    ],
)
def test_only_first_readings_are_put_off_and_only_where_another_agreed_lately(
    due: dict[str, Any], agreed: datetime | None, expected: datetime | None
) -> None:
    before = entry(
        id=2, hour=HOUR - timedelta(hours=1), state=ReportState.CONFIRMED, confirmed_at=agreed,
        confirm_at=None,
    )  # fmt: skip
    assert put_off_until([entry(**due), before], HERE, SPACING, NOW) == expected
    assert put_off_until([entry(**due), before], HERE, timedelta(0), NOW) is None
    moved = [entry(**due), replace(before, holder=ELSEWHERE)]
    assert put_off_until(moved, HERE, SPACING, NOW) is None
