"""One report's life, as rules: states and edges, its identifier, its value, its next step. Pure.

A report is one revision of one bucket (customer, SKU, UTC hour) for one provider. It is written
down complete before anything is sent, and never changed afterwards but for its state.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from billing.core.errors import InvalidValue
from billing.providers.port import ProviderAnswer, ProviderVerdict
from billing.providers.report_value import MAX_IDENTIFIER

DEDUPLICATED_FOR: Final = timedelta(hours=22)
"""How long the same identifier is surely dropped by a provider: 24 hours, less a margin."""

EVENT_OFFSET: Final = timedelta(minutes=1)
"""Where in its hour a figure is dated: inside it whatever a clock or a rounding does, and never in
the future, also where the hour under way is reported before its end."""

_ENVIRONMENT: Final = re.compile(r"[a-z0-9-]{1,20}")


class ReportState(StrEnum):
    """Where a report stands."""

    PENDING = "pending"
    """Written down. The provider does not have it."""
    SENDING = "sending"
    """Claimed by one reporter until its lease ends."""
    UNKNOWN = "unknown"
    """Sent at least once; nobody knows whether it arrived. Sent again under the same identifier."""
    ACCEPTED = "accepted"
    """The provider says that it has it."""
    CONFIRMED = "confirmed"
    """It was read back."""
    PARKED = "parked"
    """Needs a person or a set-up. Nothing of it is lost: it counts as parked."""


OPEN: Final = frozenset({ReportState.PENDING, ReportState.SENDING, ReportState.UNKNOWN})
TAKEN: Final = frozenset({ReportState.ACCEPTED, ReportState.CONFIRMED})

EDGES: Final[Mapping[ReportState, frozenset[ReportState]]] = {
    ReportState.PENDING: frozenset({ReportState.SENDING, ReportState.PARKED}),
    ReportState.SENDING: frozenset(
        {ReportState.ACCEPTED, ReportState.UNKNOWN, ReportState.PENDING, ReportState.PARKED}
    ),
    ReportState.UNKNOWN: frozenset({ReportState.SENDING, ReportState.PARKED}),
    ReportState.ACCEPTED: frozenset({ReportState.CONFIRMED, ReportState.PARKED}),
    ReportState.CONFIRMED: frozenset(),
    ReportState.PARKED: frozenset({ReportState.PENDING, ReportState.UNKNOWN, ReportState.ACCEPTED}),
}
assert set(EDGES) == set(ReportState)  # noqa: S101 - a relation between constants
assert set(ReportState) == OPEN | TAKEN | {ReportState.PARKED}  # noqa: S101 - as above


class ParkedBy(StrEnum):
    """Why a report is parked, where it was not the provider's answer (``provider.Cause``)."""

    BELOW_ZERO = "below_zero"
    """The hour's figure is negative: a provider bills 0 and forgets the rest."""
    PROVIDER_CHANGED = "provider_changed"
    """It was never sent, and another provider gets this usage."""
    NO_ANSWER = "no_answer"
    """A meter that adds gave no answer while it would have dropped a repeat: read it back. Once
    it is known not to have arrived, the hour is told anew."""
    NOTHING_TO_TELL = "nothing_to_tell"
    """What it was about is gone before any provider heard of it; its amount is 0."""
    BELOW_UNIT = "below_unit"
    """Less than the meter's unit: the next hour with usage takes it along."""
    SEALED = "sealed"
    """It was open when the provider made its period final. What did not arrive is carried."""
    CARRIED = "carried"
    """What the hour came to beyond what the provider has was carried on; its amount is 0."""
    BY_HAND = "by_hand"
    DIFFERS = "differs"
    """It was accepted, and what was read back is another figure, however often it was sent."""


BILLED: Final = "billed"
"""The cause of a confirmed revision that says what the provider's invoice billed."""

AT_REST: Final = frozenset({ParkedBy.CARRIED, ParkedBy.NOTHING_TO_TELL})
"""Parked with an amount of 0: nobody has to do anything."""


def may_become(before: ReportState, after: ReportState) -> bool:
    """Whether a report may go from one state to the other."""
    return after in EDGES[before]


def identifier_of(
    environment: str, provider: str, meter: str, customer: str, hour: datetime, revision: int
) -> str:
    """The name of one revision: ``{env}:{provider}:{meter}:{customer}:{hour}:r{revision}``.

    The same for every attempt, and never that of another figure. Where it is over 100 characters,
    the middle is replaced by a SHA-256 digest of all of it.

    Raises:
        InvalidValue: The environment is not 1 to 20 of a-z, 0-9 and ``-``, or the revision
            is below 1.
    """
    if not _ENVIRONMENT.fullmatch(environment):
        raise InvalidValue("environment", environment, "use 1 to 20 of a-z, 0-9 and -")
    if revision < 1:
        raise InvalidValue("revision", revision, "revisions count from 1")
    label = hour.astimezone(UTC).strftime("%Y%m%dT%HZ")
    full = f"{environment}:{provider}:{meter}:{customer}:{label}:r{revision}"
    if len(full) <= MAX_IDENTIFIER:
        return full
    return f"{environment}:{hashlib.sha256(full.encode()).hexdigest()}:r{revision}"


class Step(StrEnum):
    """What is to be done with a report."""

    SEND = "send"
    WAIT = "wait"
    RECLAIM = "reclaim"
    """Its reporter is gone in the middle of sending: it becomes unknown."""
    READ_BACK = "read_back"
    """It may not be sent again before it was read back."""
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the next step depends on.

    ``next_at``: not to be sent before. ``lease_until``: while sending. ``first_sent_at``: None
    where no byte ever left. ``overwrites``: of its meter.
    """

    state: ReportState
    next_at: datetime
    lease_until: datetime | None = None
    first_sent_at: datetime | None = None
    overwrites: bool = True


def next_step(report: Standing, now: datetime) -> Step:
    """What to do with a report at ``now``.

    On a meter that overwrites the same figure may be sent at any age: no later one was sent,
    because none is before this one has a definite answer. On a meter that adds, a
    repeat is harmless only while the provider is sure to drop it.
    """
    if report.state in TAKEN or report.state is ReportState.PARKED:
        return Step.NOTHING
    if report.state is ReportState.SENDING:
        gone = report.lease_until is None or report.lease_until <= now
        return Step.RECLAIM if gone else Step.WAIT
    first = report.first_sent_at
    undecided = report.state is ReportState.UNKNOWN and not report.overwrites
    if undecided and (first is None or now - first >= DEDUPLICATED_FOR):
        return Step.READ_BACK
    return Step.SEND if report.next_at <= now else Step.WAIT


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """What an answer makes of a report.

    ``doubtful``: it may have arrived although the provider has not said so.
    """

    state: ReportState
    doubtful: bool


def after_answer(answer: ProviderAnswer, *, doubtful: bool) -> SendOutcome:
    """The state after an answer to a report that was being sent.

    Args:
        answer: The provider's.
        doubtful: Whether an attempt before ended without one. Then a refusal tells of this attempt
            only, and whether the earlier one arrived stays open.
    """
    match answer.verdict:
        case ProviderVerdict.ACCEPTED:
            return SendOutcome(ReportState.ACCEPTED, doubtful=False)
        case ProviderVerdict.UNKNOWN:
            return SendOutcome(ReportState.UNKNOWN, doubtful=True)
        case ProviderVerdict.REFUSED:
            return SendOutcome(ReportState.PARKED, doubtful)
        case ProviderVerdict.STOPPED:
            return SendOutcome(ReportState.UNKNOWN if doubtful else ReportState.PENDING, doubtful)


FIRST_WAIT: Final = timedelta(seconds=5)
LONGEST_WAIT: Final = timedelta(hours=1)
_DOUBLINGS: Final = 10
assert FIRST_WAIT * 2**_DOUBLINGS >= LONGEST_WAIT  # noqa: S101 - a relation between constants


def backoff(attempts: int, jitter: float) -> timedelta:
    """How long to wait after ``attempts`` without a definite answer.

    Args:
        attempts: One or more.
        jitter: 0 to 1. The wait lies between half of the full one and all of it.
    """
    doublings: int = min(max(attempts, 1) - 1, _DOUBLINGS)
    full: timedelta = min(FIRST_WAIT * (1 << doublings), LONGEST_WAIT)
    return full * (0.5 + 0.5 * jitter)
