"""What is carried to a later hour, and what becomes of the hour it was used in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from billing.providers.port import ProviderCause, ProviderMeter
from billing.providers.report_value import MAX_HOUR_VALUE
from billing.reporting.adjustments import (
    Adjustment,
    AdjustmentReason,
    AdjustmentTerms,
    BucketPlan,
    Leftover,
    closing_reason,
    left_over,
    plan_bucket,
    too_old_before,
)
from billing.reporting.revision_rules import Bucket, Holder, Last, Revision
from billing.reporting.usage_report import EVENT_OFFSET, OPEN, TAKEN, AttentionCause, ReportState

UNDER_WAY = datetime(2026, 11, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
AT = UNDER_WAY - 5 * HOUR
METER = ProviderMeter(sku="page-capture", name="m", display_name="Pages")
HERE = Holder("stripe", "cus_1", "m")
THERE = Holder("ledger", "acme", "m")
SEALED = {"closed_until": AT + HOUR}
MICRO = 1_000_000


def terms(**changes: Any) -> AdjustmentTerms:
    fields: dict[str, Any] = {
        "provider": "stripe",
        "meter": METER,
        "decimals": 6,
        "under_way": UNDER_WAY,
    }
    return AdjustmentTerms(**fields | changes)


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


def bucket(total: int, **changes: Any) -> Bucket:
    fields: dict[str, Any] = {
        "customer": "acme",
        "sku": "page-capture",
        "hour": AT,
        "total_microcredits": total,
        "customer_ref": "cus_1",
    }
    return Bucket(**fields | changes)


def carry(
    amount: int, reason: AdjustmentReason, since: datetime = AT, to: datetime = UNDER_WAY
) -> Adjustment:
    return Adjustment(from_hour=since, to_hour=to, amount_microcredits=amount, reason=reason)


def closing(revision: Revision | None) -> tuple[int, ReportState, str, int, int]:
    assert revision is not None
    return (
        revision.revision,
        revision.state,
        revision.cause,
        revision.total_microcredits,
        revision.held_microcredits,
    )


# -- closed at the provider ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("closed_until", "closed"),
    [
        (None, None),
        (AT, None),
        (AT + HOUR - timedelta(seconds=1), None),
        (AT + HOUR, AdjustmentReason.LATE),
        (AT + 9 * HOUR, AdjustmentReason.LATE),
    ],
)
def test_an_hour_is_sealed_when_it_ends_within_a_final_period(
    closed_until: datetime | None, closed: AdjustmentReason | None
) -> None:
    assert closing_reason(bucket(1, closed_until=closed_until), None) is closed


def test_an_hour_is_too_old_when_its_figure_would_be() -> None:
    now = AT + EVENT_OFFSET + timedelta(days=34)
    assert closing_reason(bucket(1), too_old_before(now, timedelta(days=34))) is None
    later = now + timedelta(microseconds=1)
    assert (
        closing_reason(bucket(1), too_old_before(later, timedelta(days=34)))
        is AdjustmentReason.TOO_OLD
    )
    assert too_old_before(now, None) is None


@pytest.mark.parametrize(
    ("closed", "more", "reason"),
    [
        (SEALED, {}, AdjustmentReason.LATE),
        ({}, {"too_old": AT + HOUR}, AdjustmentReason.TOO_OLD),
        (SEALED, {"too_old": AT + HOUR}, AdjustmentReason.LATE),
    ],
)
@pytest.mark.parametrize("state", sorted(TAKEN))
@pytest.mark.parametrize("total", [17, 3])
def test_what_a_closed_hour_came_to_since_is_carried_with_its_sign(
    closed: dict[str, Any],
    more: dict[str, Any],
    reason: AdjustmentReason,
    state: ReportState,
    total: int,
) -> None:
    found = plan_bucket(
        bucket(total, last=last(state=state), taken={HERE: 10}, **closed), terms(**more)
    )
    assert found.out == carry(total - 10, reason)
    assert closing(found.revision) == (
        2,
        ReportState.NEEDS_ATTENTION,
        AttentionCause.CARRIED,
        10,
        10,
    )
    after = bucket(
        10,
        taken={HERE: 10},
        last=last(revision=2, state=ReportState.NEEDS_ATTENTION, cause="carried"),
        **closed,
    )
    assert plan_bucket(after, terms(**more)) == BucketPlan()


def test_a_closed_hour_that_was_never_told_is_carried_whole() -> None:
    found = plan_bucket(bucket(17, **SEALED), terms())
    assert found.out == carry(17, AdjustmentReason.LATE)
    assert closing(found.revision) == (1, ReportState.NEEDS_ATTENTION, AttentionCause.CARRIED, 0, 0)


def test_what_waits_unsent_for_a_closed_hour_is_parked_for_the_line() -> None:
    waits = last(revision=3, state=ReportState.PENDING, total_microcredits=17)
    found = plan_bucket(bucket(17, last=waits, taken={HERE: 10}, **SEALED), terms())
    assert found.out == carry(7, AdjustmentReason.LATE)
    assert closing(found.revision) == (
        4,
        ReportState.NEEDS_ATTENTION,
        AttentionCause.CARRIED,
        10,
        10,
    )
    assert found.revision is not None
    assert found.revision.parks_last is AttentionCause.CARRIED


def test_a_closed_hour_that_came_back_to_what_was_taken_leaves_nothing_parked() -> None:
    parked = last(
        revision=2, state=ReportState.NEEDS_ATTENTION, cause="meter_missing", total_microcredits=17
    )
    found = plan_bucket(bucket(10, last=parked, taken={HERE: 10}, **SEALED), terms())
    assert found.out is None
    assert closing(found.revision) == (
        3,
        ReportState.NEEDS_ATTENTION,
        AttentionCause.CARRIED,
        10,
        10,
    )


@pytest.mark.parametrize(
    "cause", [ProviderCause.TOO_OLD, AttentionCause.PERIOD_CLOSED, AttentionCause.BELOW_ZERO]
)
def test_what_was_parked_of_a_closed_hour_is_carried(cause: str) -> None:
    parked = last(state=ReportState.NEEDS_ATTENTION, cause=str(cause))
    found = plan_bucket(bucket(10, last=parked, **SEALED), terms())
    assert found.out == carry(10, AdjustmentReason.LATE)


@pytest.mark.parametrize(
    "undecided",
    [
        last(state=ReportState.SENDING),
        last(state=ReportState.UNKNOWN, outcome_unknown=True),
        last(state=ReportState.SENDING, outcome_unknown=True),
        last(
            state=ReportState.NEEDS_ATTENTION,
            cause=ProviderCause.TOO_OLD.value,
            outcome_unknown=True,
        ),
    ],
)
def test_nothing_is_carried_while_a_figure_may_have_arrived(undecided: Last) -> None:
    assert plan_bucket(bucket(17, last=undecided, **SEALED), terms()) == BucketPlan()


def test_a_closed_hour_held_back_by_hand_stays_parked_and_keeps_up() -> None:
    held = last(state=ReportState.NEEDS_ATTENTION, cause=AttentionCause.BY_HAND.value)
    assert plan_bucket(bucket(10, last=held, **SEALED), terms()) == BucketPlan()
    found = plan_bucket(bucket(12, last=held, **SEALED), terms())
    assert found.out is None
    assert closing(found.revision) == (
        2,
        ReportState.NEEDS_ATTENTION,
        AttentionCause.BY_HAND,
        12,
        12,
    )


def test_a_closed_hour_of_an_unmapped_customer_waits_to_be_mapped() -> None:
    found = plan_bucket(bucket(17, customer_ref=None, **SEALED), terms())
    assert found.out is None
    assert closing(found.revision) == (
        1,
        ReportState.NEEDS_ATTENTION,
        ProviderCause.UNMAPPED_CUSTOMER,
        17,
        17,
    )
    parked = last(
        holder=Holder("stripe", None, "m"), state=ReportState.NEEDS_ATTENTION,
        total_microcredits=17, cause=ProviderCause.UNMAPPED_CUSTOMER.value,
    )  # fmt: skip
    assert (
        plan_bucket(bucket(17, customer_ref=None, last=parked, **SEALED), terms()) == BucketPlan()
    )
    assert plan_bucket(bucket(17, last=parked, **SEALED), terms()).out == carry(
        17, AdjustmentReason.LATE
    )


def test_what_a_former_provider_sealed_is_not_sent_to_the_next_one() -> None:
    moved = bucket(14, last=last(holder=THERE), taken={THERE: 10}, **SEALED)
    found = plan_bucket(moved, terms())
    assert found.out == carry(4, AdjustmentReason.LATE)
    assert closing(found.revision) == (
        2,
        ReportState.NEEDS_ATTENTION,
        AttentionCause.CARRIED,
        10,
        0,
    )


def test_the_hour_under_way_is_not_carried_into_itself() -> None:
    until = UNDER_WAY + HOUR
    now = bucket(17, hour=UNDER_WAY, last=last(), taken={HERE: 10}, closed_until=until)
    assert plan_bucket(now, terms()) == BucketPlan()


# -- whole units -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "decimals", "value", "rest"),
    [
        (12 * MICRO + 345_678, 0, 12, 345_678),
        (12 * MICRO + 345_678, 2, 1234, 5_678),
        (12 * MICRO, 0, 12, 0),
        (12_345_678, 6, 12_345_678, 0),
    ],
)
def test_an_hour_tells_whole_units_and_carries_what_is_less(
    total: int, decimals: int, value: int, rest: int
) -> None:
    found = plan_bucket(bucket(total), terms(decimals=decimals))
    assert found.out == (carry(rest, AdjustmentReason.REMAINDER) if rest else None)
    assert found.revision is not None
    assert (found.revision.state, found.revision.value) == (ReportState.PENDING, value)
    assert found.revision.held_microcredits == found.revision.total_microcredits == total - rest
    assert found.revision.held_microcredits == value * 10 ** (6 - decimals)


def test_less_than_a_unit_waits_for_the_next_hour_with_usage_which_takes_it_along() -> None:
    first = plan_bucket(bucket(300_000), terms(decimals=0))
    assert first.out is None
    assert closing(first.revision)[1:3] == (ReportState.NEEDS_ATTENTION, AttentionCause.BELOW_UNIT)
    later = bucket(4 * MICRO + 800_000, hour=AT + HOUR)
    found = plan_bucket(later, terms(decimals=0), [Leftover(AT, 300_000)])
    assert found.taken == (carry(300_000, AdjustmentReason.REMAINDER, to=AT + HOUR),)
    assert found.revision is not None
    assert found.revision.value == 5
    assert found.out == carry(100_000, AdjustmentReason.REMAINDER, since=AT + HOUR)


def test_an_hour_that_fell_below_a_unit_is_overwritten_with_zero() -> None:
    told = last(total_microcredits=MICRO)
    found = plan_bucket(bucket(300_000, last=told, taken={HERE: MICRO}), terms(decimals=0))
    assert found.out == carry(300_000, AdjustmentReason.REMAINDER)
    assert found.revision is not None
    assert (found.revision.state, found.revision.value) == (ReportState.PENDING, 0)


def test_late_usage_below_a_unit_is_carried_and_nothing_is_sent() -> None:
    told = last(total_microcredits=2 * MICRO)
    found = plan_bucket(
        bucket(2 * MICRO + 1, last=told, taken={HERE: 2 * MICRO}), terms(decimals=0)
    )
    assert found.out == carry(1, AdjustmentReason.REMAINDER)
    assert closing(found.revision) == (
        2,
        ReportState.NEEDS_ATTENTION,
        AttentionCause.CARRIED,
        2 * MICRO,
        2 * MICRO,
    )


def test_what_is_refused_keeps_its_whole_units_parked() -> None:
    parked = last(
        state=ReportState.NEEDS_ATTENTION,
        cause=ProviderCause.METER_MISSING.value,
        total_microcredits=2 * MICRO,
    )
    found = plan_bucket(bucket(2 * MICRO + 1, last=parked), terms(decimals=0))
    assert found.out == carry(1, AdjustmentReason.REMAINDER)
    expected = (2, ReportState.NEEDS_ATTENTION, ProviderCause.METER_MISSING, 2 * MICRO, 2 * MICRO)
    assert closing(found.revision) == expected


def test_the_hour_under_way_keeps_its_rest_until_it_is_over() -> None:
    now = bucket(12 * MICRO + 5, hour=UNDER_WAY)
    found = plan_bucket(now, terms(decimals=0))
    assert found.out is None
    assert found.revision is not None
    assert found.revision.total_microcredits == 12 * MICRO
    told = last(total_microcredits=12 * MICRO)
    again = bucket(12 * MICRO + 5, hour=UNDER_WAY, last=told, taken={HERE: 12 * MICRO})
    assert plan_bucket(again, terms(decimals=0)) == BucketPlan()


def test_what_was_carried_into_an_hour_and_does_not_fit_goes_on() -> None:
    full = bucket(MAX_HOUR_VALUE + 30, carried_in_microcredits=MAX_HOUR_VALUE)
    found = plan_bucket(full, terms())
    assert found.out == carry(30, AdjustmentReason.REMAINDER)
    assert found.revision is not None
    assert (found.revision.state, found.revision.value) == (ReportState.PENDING, MAX_HOUR_VALUE)


def test_an_hour_that_is_too_large_by_itself_is_parked_whole() -> None:
    found = plan_bucket(bucket(MAX_HOUR_VALUE + 30, carried_in_microcredits=29), terms())
    assert found.out is None
    assert found.revision is not None
    assert (found.revision.state, found.revision.cause) == (
        ReportState.NEEDS_ATTENTION,
        ProviderCause.INVALID_VALUE,
    )


@pytest.mark.parametrize("state", sorted(OPEN))
def test_nothing_of_an_hour_is_carried_before_its_last_figure_has_an_answer(
    state: ReportState,
) -> None:
    waits = last(state=state, outcome_unknown=True, total_microcredits=MICRO)
    assert plan_bucket(bucket(2 * MICRO + 5, last=waits), terms(decimals=0)) == BucketPlan()


# -- below zero ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("room", "taken"), [(100, -30), (30, -30), (20, -20)])
def test_a_later_hour_makes_up_for_a_negative_one_down_to_zero(room: int, taken: int) -> None:
    later = bucket(room, hour=AT + HOUR)
    found = plan_bucket(later, terms(), [Leftover(AT, -30)])
    assert found.taken == (carry(taken, AdjustmentReason.BELOW_ZERO, to=AT + HOUR),)
    if room + taken:
        assert found.revision is not None
        assert found.revision.value == room + taken
    else:
        assert found.revision is None


def test_an_hour_that_was_told_already_is_lowered_too() -> None:
    told = last(total_microcredits=100)
    later = bucket(100, hour=AT + HOUR, last=told, taken={HERE: 100})
    assert plan_bucket(later, terms()) == BucketPlan()
    found = plan_bucket(later, terms(), [Leftover(AT, -130), Leftover(AT - HOUR, -5)])
    assert [line.amount_microcredits for line in found.taken] == [-5, -95]
    assert found.revision is not None
    assert (found.revision.state, found.revision.value) == (ReportState.PENDING, 0)


@pytest.mark.parametrize(
    "unfit",
    [
        bucket(100),
        bucket(100, hour=AT - HOUR),
        bucket(100, hour=AT + HOUR, customer_ref=None),
        bucket(100, hour=AT + HOUR, closed_until=AT + 2 * HOUR),
        bucket(-100, hour=AT + HOUR),
        bucket(100, hour=AT + HOUR, last=last(state=ReportState.UNKNOWN, outcome_unknown=True)),
        bucket(100, hour=AT + HOUR, taken={THERE: 100}),
        bucket(
            100, hour=AT + HOUR,
            last=last(
                state=ReportState.NEEDS_ATTENTION, cause=ProviderCause.METER_MISSING.value,
                total_microcredits=90,
            ),
        ),
    ],
    ids=["itself", "earlier", "unmapped", "sealed", "negative", "unanswered", "elsewhere", "stuck"],
)  # fmt: skip
def test_what_cannot_be_lowered_takes_nothing(unfit: Bucket) -> None:
    assert plan_bucket(unfit, terms(), [Leftover(AT, -30)]).taken == ()


def test_what_is_told_already_does_not_take_less_than_a_unit_along() -> None:
    told = last(total_microcredits=2 * MICRO)
    later = bucket(2 * MICRO, hour=AT + HOUR, last=told, taken={HERE: 2 * MICRO})
    assert plan_bucket(later, terms(decimals=0), [Leftover(AT, 300_000)]) == BucketPlan()


@pytest.mark.parametrize(
    ("parked", "left"),
    [
        (bucket(-30), Leftover(AT, -30)),
        (bucket(-30, taken={THERE: 10}), Leftover(AT, -40)),
        (bucket(10, taken={THERE: 10}), None),
        (bucket(-30, customer_ref=None), None),
        (bucket(-30, **SEALED), None),
    ],
)
def test_what_an_hour_leaves_to_later_ones(parked: Bucket, left: Leftover | None) -> None:
    assert left_over(parked, terms()) == left
