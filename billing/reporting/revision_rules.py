"""Revisions that buckets need: when one is due, and its content. Pure.

There is no cursor: a bucket is due because the log's total differs from the total that its last
revision stood for. A total that commits late, however old its hour, differs just the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from billing.core.periods import hour_floor
from billing.providers.port import ProviderCause, ProviderMeter
from billing.providers.report_value import MAX_HOUR_VALUE, fits_an_hour, scaled
from billing.reporting.usage_report import TAKEN, AttentionCause, ReportState

HOUR: Final = timedelta(hours=1)


class Depth(StrEnum):
    """The reach of a comparison of totals."""

    RECENT = "recent"
    MONTH = "month"
    """As far back as any provider takes a figure."""
    ALL = "all"


REACH: Final[Mapping[Depth, timedelta | None]] = {
    Depth.RECENT: timedelta(days=3),
    Depth.MONTH: timedelta(days=36),
    Depth.ALL: None,
}
EVERY: Final[Mapping[Depth, timedelta]] = {
    Depth.RECENT: timedelta(0),
    Depth.MONTH: timedelta(hours=6),
    Depth.ALL: timedelta(days=1),
}
assert set(REACH) == set(EVERY) == set(Depth)  # noqa: S101 - a relation between constants


def depth_due(last: Mapping[Depth, datetime], now: datetime) -> Depth:
    """The deepest comparison whose time has come; a deeper one does the work of the others."""
    for depth in (Depth.ALL, Depth.MONTH):
        if depth not in last or now - last[depth] >= EVERY[depth]:
            return depth
    return Depth.RECENT


def covered(depth: Depth) -> tuple[Depth, ...]:
    """The comparisons that one of this depth includes, itself too."""
    order = tuple(Depth)
    return order[: order.index(depth) + 1]


def reaches_to(depth: Depth, now: datetime) -> datetime | None:
    """The first hour that a comparison looks at; None for all of them."""
    reach = REACH[depth]
    return None if reach is None else hour_floor(now - reach)


def closed_before(now: datetime, lag: timedelta) -> datetime:
    """Hours that start before this are closed: they ended at least ``lag`` ago.

    Args:
        now: The time.
        lag: How long most rows take to the log. What comes later still makes a new revision.
    """
    return hour_floor(now - lag)


class Holder(NamedTuple):
    """The place where a provider counts a customer's usage of one SKU."""

    provider: str
    customer_ref: str | None
    meter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Last:
    """A bucket's last revision. ``total_microcredits``: the bucket's, that it stood for."""

    holder: Holder
    revision: int
    state: ReportState
    cause: str
    outcome_unknown: bool
    total_microcredits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One customer's hour of one SKU: its total, and what is known of its reports.

    ``total_microcredits`` is what is to be reported in this hour: the log's, less what was carried
    out, and what was carried in. ``taken`` is what each holder has of it, by the last revision that
    it accepted. ``customer_ref`` is None where the provider does not know who it is.
    ``closed_until`` is the end of the last period that any provider has made final. ``carried_in``
    is the part of the total that was used in other hours.
    """

    customer: str
    sku: str
    hour: datetime
    total_microcredits: int
    customer_ref: str | None
    last: Last | None = None
    taken: Mapping[Holder, int] = field(default_factory=dict)
    closed_until: datetime | None = None
    carried_in_microcredits: int = 0

    def held_by(self, holder: Holder) -> int:
        """A holder's amount once it has everything that the others do not have."""
        others = sum(held for other, held in self.taken.items() if other != holder)
        return self.total_microcredits - others


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A revision to be written down.

    ``held_microcredits``: what the provider has of this bucket once it took this. ``parks_last``:
    the last revision waits unsent, and has to be parked for this one, with this cause.
    """

    revision: int
    holder: Holder
    state: ReportState
    cause: str
    value: int
    total_microcredits: int
    held_microcredits: int
    detail: str = ""
    parks_last: AttentionCause | None = None


FOLLOWS_THE_CUSTOMER: Final = frozenset(
    {ProviderCause.UNMAPPED_CUSTOMER.value, ProviderCause.CUSTOMER_MISSING.value}
)
"""Tried again by itself once the customer is another one at the provider."""

_PASSING: Final = frozenset(
    {
        AttentionCause.BELOW_ZERO.value,
        ProviderCause.INVALID_VALUE.value,
        ProviderCause.UNMAPPED_CUSTOMER.value,
        AttentionCause.PROVIDER_CHANGED.value,
        AttentionCause.NOTHING_TO_TELL.value,
        AttentionCause.BELOW_UNIT.value,
        AttentionCause.CARRIED.value,
        AttentionCause.NO_ANSWER.value,
    }
)
"""Causes that lie in the figure or in us: another figure is worth another try."""

_TOO_LARGE: Final = (
    f"over {MAX_HOUR_VALUE} units in one hour: a month of such hours has more than the 15 digits "
    "that a provider gives back exactly; count the SKU by a coarser meter (meter_decimals)"
)


def answered(last: Last) -> bool:
    """Whether a revision has its definite answer: only then may there be a next one."""
    return last.state in TAKEN or (
        last.state is ReportState.NEEDS_ATTENTION and not last.outcome_unknown
    )


def revise(bucket: Bucket, provider: str, meter: ProviderMeter, decimals: int) -> Revision | None:
    """The revision that a bucket needs now, if any.

    Args:
        bucket: With its last revision, at whatever provider.
        provider: The one that gets usage now. What others have accepted stays theirs: this one gets
            the rest.
        meter: Of the bucket's SKU.
        decimals: Of a credit that the meter counts.
    """
    holder = Holder(provider, bucket.customer_ref, meter.name)
    return made(bucket, holder, decimals) if _is_due(bucket, holder) else None


def _is_due(bucket: Bucket, holder: Holder) -> bool:
    last = bucket.last
    held = bucket.held_by(holder)
    if last is None:
        return held != 0
    meant_for = (last.holder.provider, last.holder.meter)
    if waits_unsent(last) and meant_for != (holder.provider, holder.meter):
        # For another provider, or for a meter of a former name, which nobody has checked.
        return True
    if not answered(last):
        return False
    if last.total_microcredits != bucket.total_microcredits:
        return True
    return held != bucket.taken.get(holder, 0) and _is_worth_another_try(last, holder)


def made(bucket: Bucket, holder: Holder, decimals: int) -> Revision:
    """The next revision of a bucket, whether or not it is due."""
    last = bucket.last
    held = bucket.held_by(holder)
    value = scaled(held, decimals).value
    cause = _cause(last, holder, held, value)
    if not cause and not value and holder not in bucket.taken:
        # A provider that never heard of it hears nothing: there is nothing left, or not yet a unit.
        cause = (AttentionCause.BELOW_UNIT if held else AttentionCause.NOTHING_TO_TELL).value
    return Revision(
        revision=last.revision + 1 if last else 1,
        holder=holder,
        state=ReportState.NEEDS_ATTENTION if cause else ReportState.PENDING,
        cause=cause,
        value=value,
        total_microcredits=bucket.total_microcredits,
        held_microcredits=held,
        detail=_TOO_LARGE
        if cause == ProviderCause.INVALID_VALUE and not fits_an_hour(value)
        else "",
        parks_last=AttentionCause.PROVIDER_CHANGED if last and waits_unsent(last) else None,
    )


def waits_unsent(last: Last) -> bool:
    """Whether nothing of the last revision ever left, so that another may stand for it."""
    return last.state is ReportState.PENDING and not last.outcome_unknown


def _is_worth_another_try(last: Last, holder: Holder) -> bool:
    """Whether a parked figure is tried again although it is the same."""
    if last.state is not ReportState.NEEDS_ATTENTION or last.cause == AttentionCause.BY_HAND:
        return False
    if last.holder.provider != holder.provider or last.cause == AttentionCause.NO_ANSWER:
        return True
    moved = holder.customer_ref not in (None, last.holder.customer_ref)
    return moved and last.cause in FOLLOWS_THE_CUSTOMER


def _cause(last: Last | None, holder: Holder, held: int, value: int) -> str:
    """The cause for which the new revision needs attention at once; empty: it is to be sent."""
    if (
        last is not None
        and last.state is ReportState.NEEDS_ATTENTION
        and last.cause == AttentionCause.BY_HAND
    ):
        return last.cause
    if held < 0:
        return AttentionCause.BELOW_ZERO.value
    if not fits_an_hour(value):
        return ProviderCause.INVALID_VALUE.value
    if holder.customer_ref is None:
        return ProviderCause.UNMAPPED_CUSTOMER.value
    if last is None or last.state is not ReportState.NEEDS_ATTENTION or last.holder != holder:
        return ""
    # What was refused for another reason would be refused again: the figure keeps up, parked.
    return "" if last.cause in _PASSING else last.cause
