"""Which buckets need a new revision, and which."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.providers.port import ProviderCause, ProviderMeter
from billing.providers.report_value import MAX_HOUR_VALUE
from billing.reporting.revision_rules import (
    EVERY,
    REACH,
    Bucket,
    Depth,
    Holder,
    Last,
    Revision,
    answered,
    closed_before,
    covered,
    depth_due,
    reaches_to,
    revise,
)
from billing.reporting.usage_report import OPEN, TAKEN, AttentionCause, ReportState

NOW = datetime(2026, 11, 10, 12, 30, tzinfo=UTC)
METER = ProviderMeter(sku="page-capture", name="m", display_name="Pages")
HERE = Holder("stripe", "cus_1", "m")
THERE = Holder("ledger", "acme", "m")
BEFORE = Holder("stripe", "cus_0", "m")


def last(**changes: Any) -> Last:
    fields: dict[str, Any] = {
        "holder": HERE,
        "revision": 1,
        "state": ReportState.ACCEPTED,
        "cause": "",
        "outcome_unknown": False,
        "total_microcredits": 10,
    }
    return Last(**fields | changes)


def revision(
    total: int, meter: ProviderMeter = METER, decimals: int = 6, **changes: Any
) -> Revision | None:
    fields: dict[str, Any] = {
        "customer": "acme",
        "sku": "page-capture",
        "hour": datetime(2026, 11, 10, 11, tzinfo=UTC),
        "total_microcredits": total,
        "customer_ref": "cus_1",
    }
    return revise(Bucket(**fields | changes), "stripe", meter, decimals)


def made(total: int, meter: ProviderMeter = METER, decimals: int = 6, **changes: Any) -> Revision:
    found = revision(total, meter, decimals, **changes)
    assert found is not None
    return found


def test_a_bucket_never_reported_gets_its_first_revision() -> None:
    new = made(10)
    assert (new.revision, new.state, new.value, new.held_microcredits) == (
        1,
        ReportState.PENDING,
        10,
        10,
    )


def test_an_hour_without_an_amount_is_never_reported() -> None:
    assert revision(0) is None


@pytest.mark.parametrize("state", sorted(TAKEN))
def test_an_unchanged_total_needs_nothing(state: ReportState) -> None:
    assert revision(10, last=last(state=state), taken={HERE: 10}) is None


@pytest.mark.parametrize("total", [11, 9, 0])
def test_a_changed_total_is_a_new_revision_with_the_whole_figure(total: int) -> None:
    new = made(total, last=last(), taken={HERE: 10})
    assert (new.revision, new.state, new.value) == (2, ReportState.PENDING, total)


@pytest.mark.parametrize("state", sorted(OPEN))
@pytest.mark.parametrize("outcome_unknown", [False, True])
@pytest.mark.parametrize("total", [10, 11, 0])
def test_nothing_is_due_before_the_last_revision_has_its_answer(
    state: ReportState, outcome_unknown: bool, total: int
) -> None:
    assert revision(total, last=last(state=state, outcome_unknown=outcome_unknown)) is None


def test_a_refusal_that_may_hide_an_effect_is_no_answer() -> None:
    parked = last(
        state=ReportState.NEEDS_ATTENTION, cause=ProviderCause.TOO_OLD.value, outcome_unknown=True
    )
    assert not answered(parked)
    assert revision(11, last=parked) is None


def test_a_negative_figure_is_parked_and_not_sent() -> None:
    new = made(-1)
    assert (new.state, new.cause, new.value) == (
        ReportState.NEEDS_ATTENTION,
        AttentionCause.BELOW_ZERO,
        -1,
    )
    again = made(
        4, last=last(state=ReportState.NEEDS_ATTENTION, cause=new.cause, total_microcredits=-1)
    )
    assert (again.state, again.value) == (ReportState.PENDING, 4)


def test_zero_is_sent_only_to_overwrite() -> None:
    parked = last(state=ReportState.NEEDS_ATTENTION, cause=ProviderCause.TOO_OLD.value)
    over = made(0, last=last(), taken={HERE: 10})
    assert (over.state, over.value) == (ReportState.PENDING, 0)
    never_taken = made(0, last=parked)
    assert (never_taken.state, never_taken.value) == (ReportState.NEEDS_ATTENTION, 0)


def test_a_figure_that_makes_a_month_of_sixteen_digits_is_parked_and_says_what_to_do() -> None:
    assert made(MAX_HOUR_VALUE).state is ReportState.PENDING
    new = made(MAX_HOUR_VALUE + 1)
    assert (new.state, new.cause) == (ReportState.NEEDS_ATTENTION, ProviderCause.INVALID_VALUE)
    assert "meter_decimals" in new.detail
    assert made(10 * MAX_HOUR_VALUE, decimals=5).state is ReportState.PENDING
    assert made(MAX_HOUR_VALUE).detail == ""


def test_less_than_a_unit_waits_and_is_not_sent_as_zero() -> None:
    new = made(999_999, decimals=0)
    assert (new.state, new.cause, new.value) == (
        ReportState.NEEDS_ATTENTION,
        AttentionCause.BELOW_UNIT,
        0,
    )
    waits = last(state=ReportState.NEEDS_ATTENTION, cause=new.cause, total_microcredits=999_999)
    assert revision(999_999, decimals=0, last=waits) is None
    assert made(1_000_000, decimals=0, last=waits).state is ReportState.PENDING


def test_what_is_known_not_to_have_arrived_is_told_anew() -> None:
    silent = last(
        state=ReportState.NEEDS_ATTENTION,
        cause=AttentionCause.NO_ANSWER.value,
        outcome_unknown=True,
    )
    assert revision(10, last=silent) is None
    new = made(10, last=replace(silent, outcome_unknown=False))
    assert (new.state, new.revision, new.value) == (ReportState.PENDING, 2, 10)


def test_an_unmapped_customers_figure_is_parked_and_sent_when_the_customer_is_mapped() -> None:
    new = made(10, customer_ref=None)
    assert (new.state, new.cause) == (ReportState.NEEDS_ATTENTION, ProviderCause.UNMAPPED_CUSTOMER)
    unmapped = last(state=ReportState.NEEDS_ATTENTION, cause=new.cause, holder=new.holder)
    assert revision(10, last=unmapped, customer_ref=None) is None
    accrued = made(12, last=unmapped, customer_ref=None)
    assert (accrued.state, accrued.cause) == (
        ReportState.NEEDS_ATTENTION,
        ProviderCause.UNMAPPED_CUSTOMER,
    )
    mapped = made(10, last=unmapped)
    assert (mapped.state, mapped.holder, mapped.revision) == (ReportState.PENDING, HERE, 2)


def test_what_was_refused_stays_parked_and_keeps_up_with_the_log() -> None:
    parked = last(state=ReportState.NEEDS_ATTENTION, cause=ProviderCause.METER_MISSING.value)
    assert revision(10, last=parked) is None
    new = made(12, last=parked)
    assert (new.state, new.cause, new.value) == (
        ReportState.NEEDS_ATTENTION,
        ProviderCause.METER_MISSING,
        12,
    )


def test_a_customer_that_is_another_one_there_gets_only_what_the_old_one_did_not() -> None:
    gone = last(state=ReportState.NEEDS_ATTENTION, cause=ProviderCause.CUSTOMER_MISSING.value,
                holder=BEFORE, revision=2, total_microcredits=15)  # fmt: skip
    new = made(15, last=gone, taken={BEFORE: 10})
    assert (new.state, new.holder, new.value, new.held_microcredits) == (
        ReportState.PENDING,
        HERE,
        5,
        5,
    )


def test_a_new_provider_gets_what_the_former_one_has_not() -> None:
    moved = last(holder=THERE)
    assert revision(10, last=moved, taken={THERE: 10}) is None
    new = made(14, last=moved, taken={THERE: 10})
    assert (new.revision, new.value, new.held_microcredits) == (2, 4, 4)


def test_a_lower_total_than_the_former_provider_has_is_parked() -> None:
    new = made(9, last=last(holder=THERE), taken={THERE: 10})
    assert (new.state, new.cause, new.value) == (
        ReportState.NEEDS_ATTENTION,
        AttentionCause.BELOW_ZERO,
        -1,
    )


def test_what_waits_unsent_for_another_provider_is_handed_over() -> None:
    new = made(10, last=last(holder=THERE, state=ReportState.PENDING))
    assert new.parks_last is AttentionCause.PROVIDER_CHANGED
    assert (new.state, new.value, new.revision) == (ReportState.PENDING, 10, 2)


def test_what_may_have_arrived_elsewhere_is_not_handed_over() -> None:
    for state in (ReportState.SENDING, ReportState.UNKNOWN):
        assert revision(12, last=last(holder=THERE, state=state, outcome_unknown=True)) is None


def test_what_was_refused_elsewhere_is_due_here() -> None:
    refused = last(
        holder=THERE, state=ReportState.NEEDS_ATTENTION, cause=ProviderCause.TOO_OLD.value
    )
    assert made(10, last=refused).state is ReportState.PENDING


def test_what_a_person_holds_back_stays_so_at_every_provider() -> None:
    held = last(state=ReportState.NEEDS_ATTENTION, cause=AttentionCause.BY_HAND.value, holder=THERE)
    assert revision(10, last=held) is None
    assert made(12, last=held).cause == AttentionCause.BY_HAND


@given(
    totals=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    at=st.lists(st.sampled_from([HERE, THERE, BEFORE]), min_size=8, max_size=8),
    answers=st.lists(st.sampled_from(["taken", "refused", "hand", "none"]), min_size=8, max_size=8),
)
def test_once_nothing_is_due_the_books_come_to_the_log(
    totals: list[int], at: list[Holder], answers: list[str]
) -> None:
    """Totals change, providers and customers change, answers differ; then all is taken."""
    known: Last | None = None
    taken: dict[Holder, int] = {}
    for step, total in enumerate([*totals, *[totals[-1]] * 3]):
        holder = at[step] if step < len(totals) else HERE
        answer = answers[step] if step < len(totals) else "taken"
        bucket = Bucket(
            customer="acme", sku="s", hour=NOW, total_microcredits=total,
            customer_ref=holder.customer_ref, last=known, taken=taken,
        )  # fmt: skip
        new = revise(bucket, holder.provider, METER, 6)
        if new is None:
            continue
        others = sum(held for at_other, held in taken.items() if at_other != new.holder)
        assert others + new.held_microcredits == total
        assert new.revision == (known.revision + 1 if known else 1)
        state, cause = new.state, new.cause
        if state is ReportState.PENDING:
            assert new.value >= 0
            if answer == "taken":
                state, taken[new.holder] = ReportState.ACCEPTED, new.held_microcredits
            elif answer == "refused":
                state, cause = ReportState.NEEDS_ATTENTION, ProviderCause.TOO_OLD.value
            elif answer == "hand":
                state, cause = ReportState.NEEDS_ATTENTION, AttentionCause.BY_HAND.value
        known = last(
            holder=new.holder, revision=new.revision, state=state, cause=cause,
            total_microcredits=total,
        )  # fmt: skip
    left = totals[-1] - sum(taken.values())
    if known is None or known.state in TAKEN:
        assert left == 0
    assert known is None or known.total_microcredits == totals[-1] or not answered(known)


@pytest.mark.parametrize(
    ("now", "lag", "closed"),
    [
        ("12:30", 5, "12:00"),
        ("12:04", 5, "11:00"),
        ("12:05", 5, "12:00"),
        ("12:00", 0, "12:00"),
        ("12:30", 60, "11:00"),
    ],
)
def test_an_hour_is_closed_when_it_ended_a_lag_ago(now: str, lag: int, closed: str) -> None:
    def at(text: str) -> datetime:
        return datetime.fromisoformat(f"2026-11-10T{text}:00+00:00")

    assert closed_before(at(now), timedelta(minutes=lag)) == at(closed)


def test_the_first_comparison_is_of_everything() -> None:
    assert depth_due({}, NOW) is Depth.ALL
    assert set(covered(Depth.ALL)) == set(Depth)


def test_each_depth_has_its_turn() -> None:
    last_at = dict.fromkeys(Depth, NOW)
    turns = []
    for hours in range(1, 26):
        now = NOW + timedelta(hours=hours)
        depth = depth_due(last_at, now)
        last_at |= dict.fromkeys(covered(depth), now)
        turns.append(depth)
    assert [turns.count(depth) for depth in Depth] == [21, 3, 1]
    assert max(EVERY.values()) == EVERY[Depth.ALL]


def test_after_an_outage_the_whole_log_is_compared() -> None:
    assert depth_due(dict.fromkeys(Depth, NOW), NOW + timedelta(days=36)) is Depth.ALL
    assert reaches_to(Depth.ALL, NOW) is None


@pytest.mark.parametrize("depth", [Depth.RECENT, Depth.MONTH])
def test_a_comparison_begins_at_a_whole_hour(depth: Depth) -> None:
    start = reaches_to(depth, NOW)
    reach = REACH[depth]
    assert start is not None
    assert reach is not None
    assert start == NOW.replace(minute=0) - reach
