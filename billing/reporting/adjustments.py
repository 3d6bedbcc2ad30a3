"""Adjustments: amounts reported in a later hour than they were used in, signed. Pure.

An event is never dated anew. What its hour can no longer report to a provider leaves that hour
by a line and put into a later one, so that both come to what is said of them, and the sum of all
hours to the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from billing.providers.port import ProviderMeter
from billing.providers.report_value import CREDIT_DECIMALS, MAX_HOUR_VALUE, scaled
from billing.reporting.revision_rules import (
    HOUR,
    Bucket,
    Holder,
    Last,
    Revision,
    answered,
    made,
    revise,
    waits_unsent,
)
from billing.reporting.usage_report import EVENT_OFFSET, TAKEN, AttentionCause, ReportState


class AdjustmentReason(StrEnum):
    """The reason of an adjustment."""

    LATE = "late"
    """The provider's invoice for its hour is final."""
    TOO_OLD = "too_old"
    """The provider takes no figure of that age."""
    REMAINDER = "remainder"
    """Less than the meter's unit; or carried into an hour, and more than that hour can tell."""
    BELOW_ZERO = "below_zero"
    """Its hour is negative; a provider would bill 0 and forget the rest."""
    BILLED = "billed"
    """The provider's invoice has another figure than it had accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """An amount, of either sign, that is reported in ``to_hour`` instead of ``from_hour``."""

    from_hour: datetime
    to_hour: datetime
    amount_microcredits: int
    reason: AdjustmentReason


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustmentTerms:
    """Terms that a bucket's next step depends on, beside the bucket.

    ``provider``, ``meter`` and ``decimals`` (of a credit) are where it is reported. ``under_way``:
    the start of the hour of now, into which is carried. ``too_old``: the provider takes no hour
    that starts before; None: any.
    """

    provider: str
    meter: ProviderMeter
    decimals: int
    under_way: datetime
    too_old: datetime | None = None


@dataclass(frozen=True, slots=True)
class Leftover:
    """An amount that its hour cannot report: below zero, or less than the meter's unit."""

    hour: datetime
    amount_microcredits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketPlan:
    """The revision and the adjustments that a bucket needs.

    ``out`` leaves it, always with a revision that does without that amount. ``taken`` are lines out
    of leftovers into it.
    """

    revision: Revision | None = None
    out: Adjustment | None = None
    taken: tuple[Adjustment, ...] = ()


def too_old_before(now: datetime, max_age: timedelta | None) -> datetime | None:
    """Figures of hours that start before this are not taken any more; None where any are."""
    return None if max_age is None else now - max_age - EVENT_OFFSET


def closing_reason(bucket: Bucket, too_old: datetime | None) -> AdjustmentReason | None:
    """The reason why nothing is sent for a bucket any more; None where it may be.

    An hour in which a period ends is billed with the next one.
    """
    if bucket.closed_until is not None and bucket.hour + HOUR <= bucket.closed_until:
        return AdjustmentReason.LATE
    if too_old is not None and bucket.hour < too_old:
        return AdjustmentReason.TOO_OLD
    return None


def plan_bucket(
    bucket: Bucket, terms: AdjustmentTerms, leftovers: Sequence[Leftover] = ()
) -> BucketPlan:
    """Work out the revision and the adjustments that a bucket needs now.

    Args:
        bucket: What it comes to, and its last revision.
        terms: Where it is reported.
        leftovers: Of the customer's SKU; those of earlier hours are taken along.
    """
    reason = closing_reason(bucket, terms.too_old)
    # Whoever is known to nobody, or held back by hand, waits for a person, carried nowhere.
    if reason is not None and bucket.customer_ref is not None and not _by_hand(bucket.last):
        return _close(bucket, terms, reason)
    plain = revise(bucket, terms.provider, terms.meter, terms.decimals)
    taken = _take(bucket, terms, plain, leftovers)
    if plain is None and not taken:
        return BucketPlan()
    amount = sum(carry.amount_microcredits for carry in taken)
    grown = replace(
        bucket,
        total_microcredits=bucket.total_microcredits + amount,
        carried_in_microcredits=bucket.carried_in_microcredits + amount,
    )
    return replace(_whole_units(grown, terms), taken=taken)


def _by_hand(last: Last | None) -> bool:
    return (
        last is not None
        and last.state is ReportState.NEEDS_ATTENTION
        and last.cause == AttentionCause.BY_HAND
    )


def _close(bucket: Bucket, terms: AdjustmentTerms, reason: AdjustmentReason) -> BucketPlan:
    """Close an hour: it comes to what the providers have, and the rest is carried."""
    last = bucket.last
    if bucket.hour >= terms.under_way:
        return BucketPlan()
    if last is not None and not answered(last) and not waits_unsent(last):
        return BucketPlan()
    rest = bucket.total_microcredits - sum(bucket.taken.values())
    stood_for = 0 if last is None else last.total_microcredits
    open_still = last is not None and waits_unsent(last)
    if not rest and not open_still and stood_for == bucket.total_microcredits:
        return BucketPlan()
    return BucketPlan(revision=_closing(bucket, terms), out=_out(bucket, terms, rest, reason))


def _whole_units(bucket: Bucket, terms: AdjustmentTerms) -> BucketPlan:
    """A revision in whole units of the meter; what is left goes on to the hour under way."""
    holder = Holder(terms.provider, bucket.customer_ref, terms.meter.name)
    rest = _rest(bucket, holder, terms.decimals)
    rounded = replace(bucket, total_microcredits=bucket.total_microcredits - rest)
    new = revise(rounded, terms.provider, terms.meter, terms.decimals)
    if not rest or bucket.hour >= terms.under_way:
        # Of the hour under way the rest stays; it is told when the hour is over.
        return BucketPlan(revision=new)
    if new is None:
        accepted = bucket.last is not None and bucket.last.state in TAKEN
        new = _closing(rounded, terms) if accepted else made(rounded, holder, terms.decimals)
    return BucketPlan(revision=new, out=_out(bucket, terms, rest, AdjustmentReason.REMAINDER))


def _rest(bucket: Bucket, holder: Holder, decimals: int) -> int:
    """The rest that an hour cannot report: less than a unit, or above what fits into it.

    The latter only of what came from other hours, after a long outage: an hour that is by itself
    too large is parked and needs a coarser meter.
    """
    held = bucket.held_by(holder)
    whole = scaled(held, decimals)
    if bucket.customer_ref is None or held <= 0:
        return 0
    over = held - MAX_HOUR_VALUE * 10 ** (CREDIT_DECIMALS - decimals)
    if over > 0:
        return over if over <= bucket.carried_in_microcredits else 0
    # Not yet a unit, and never told: it waits where it is.
    waits = not whole.value and holder not in bucket.taken
    return 0 if waits else whole.remainder_microcredits


def _closing(bucket: Bucket, terms: AdjustmentTerms) -> Revision:
    """A revision that stands for what the providers have, with nothing to send."""
    holder = Holder(terms.provider, bucket.customer_ref, terms.meter.name)
    last = bucket.last
    own = bucket.taken.get(holder, 0)
    return Revision(
        revision=last.revision + 1 if last else 1,
        holder=holder,
        state=ReportState.NEEDS_ATTENTION,
        cause=AttentionCause.CARRIED.value,
        value=scaled(own, terms.decimals).value,
        total_microcredits=sum(bucket.taken.values()),
        held_microcredits=own,
        parks_last=AttentionCause.CARRIED if last and waits_unsent(last) else None,
    )


def _out(
    bucket: Bucket, terms: AdjustmentTerms, amount: int, reason: AdjustmentReason
) -> Adjustment | None:
    if not amount:
        return None
    return Adjustment(
        from_hour=bucket.hour,
        to_hour=terms.under_way,
        amount_microcredits=amount,
        reason=reason,
    )


def _take(
    bucket: Bucket, terms: AdjustmentTerms, plain: Revision | None, leftovers: Sequence[Leftover]
) -> tuple[Adjustment, ...]:
    """Lines out of earlier leftovers, never more below zero than the hour is above it.

    Less than a unit is taken along where something is reported anyway; an amount below zero also
    lowers an hour that was reported already.
    """
    if bucket.customer_ref is None:
        return ()
    reports = plain is not None and (
        plain.state is ReportState.PENDING or plain.cause == AttentionCause.BELOW_UNIT
    )
    accepted = plain is None and bucket.last is not None and bucket.last.state in TAKEN
    room = bucket.held_by(Holder(terms.provider, bucket.customer_ref, terms.meter.name))
    lines: list[Adjustment] = []
    for each in sorted(leftovers, key=lambda one: one.hour):
        below = each.amount_microcredits < 0
        amount = max(each.amount_microcredits, -room) if below else each.amount_microcredits
        if (
            each.hour >= bucket.hour
            or room <= 0
            or not amount
            or not (reports or (accepted and below))
        ):
            continue
        room += amount
        lines.append(
            Adjustment(
                from_hour=each.hour,
                to_hour=bucket.hour,
                amount_microcredits=amount,
                reason=AdjustmentReason.BELOW_ZERO if below else AdjustmentReason.REMAINDER,
            )
        )
    return tuple(lines)


def left_over(bucket: Bucket, terms: AdjustmentTerms) -> Leftover | None:
    """The amount that a bucket leaves to a later hour; None where it belongs to its own.

    A bucket that is closed at its provider leaves nothing: what it comes to is carried otherwise.
    """
    if bucket.customer_ref is None or closing_reason(bucket, terms.too_old) is not None:
        return None
    amount = bucket.held_by(Holder(terms.provider, bucket.customer_ref, terms.meter.name))
    return Leftover(bucket.hour, amount) if amount else None


@dataclass(frozen=True, slots=True)
class Holding:
    """A figure that a provider accepted for an hour, in its meter's smallest unit."""

    hour: datetime
    answered_at: datetime
    value: int


def as_billed(holdings: Sequence[Holding], billed: int) -> dict[datetime, int]:
    """The hours' values that add up to what was billed, of those that have to change.

    What was answered last is the likeliest to have come too late: it is raised, or lowered to 0 and
    then the one before it.

    Args:
        holdings: One per hour.
        billed: The invoice's value for all of them.

    Returns:
        New values by hour; empty where nothing differs, and where there is no hour to raise.
    """
    changed: dict[datetime, int] = {}
    difference = billed - sum(holding.value for holding in holdings)
    for holding in sorted(holdings, key=lambda h: (h.answered_at, h.hour), reverse=True):
        if not difference:
            break
        value = max(holding.value + difference, 0)
        if value != holding.value:
            changed[holding.hour] = value
            difference -= value - holding.value
    return changed
