"""One report's life, as rules: states and edges, its identifier, its value, its next step. Pure.

A report is one revision of one bucket (customer, SKU, UTC hour) for one provider. It is written
down complete before anything is sent, and never changed afterwards but for its state.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from billing.core.errors import InvalidValue
from billing.providers.port import ProviderAnswer, ProviderVerdict
from billing.providers.report_value import MAX_IDENTIFIER

EVENT_OFFSET: Final = timedelta(minutes=1)
"""Where in its hour a figure is dated: inside it whatever a clock or a rounding does, and never in
the future, also where the hour under way is reported before its end."""

_ENVIRONMENT: Final = re.compile(r"[a-z0-9-]{1,20}")


class ReportState(StrEnum):
    """The state of a report."""

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
    NEEDS_ATTENTION = "parked"
    """Needs a person or a set-up. Nothing of it is lost: it counts as parked."""


OPEN: Final = frozenset({ReportState.PENDING, ReportState.SENDING, ReportState.UNKNOWN})
TAKEN: Final = frozenset({ReportState.ACCEPTED, ReportState.CONFIRMED})

assert set(ReportState) == OPEN | TAKEN | {ReportState.NEEDS_ATTENTION}  # noqa: S101 - a relation between constants


class AttentionCause(StrEnum):
    """The cause for which a report needs attention, where it is no ``ProviderCause``."""

    BELOW_ZERO = "below_zero"
    """The hour's figure is negative: a provider bills 0 and forgets the rest."""
    PROVIDER_CHANGED = "provider_changed"
    """It was never sent, and another provider gets this usage."""
    NO_ANSWER = "no_answer"
    """A person said that it never arrived: its hour is reported anew."""
    NOTHING_TO_TELL = "nothing_to_tell"
    """What it was about is gone before any provider heard of it; its amount is 0."""
    BELOW_UNIT = "below_unit"
    """Less than the meter's unit: the next hour with usage takes it along."""
    PERIOD_CLOSED = "sealed"
    """It was open when the provider made its period final. What did not arrive is carried."""
    CARRIED = "carried"
    """What the hour came to beyond what the provider has was carried on; its amount is 0."""
    BY_HAND = "by_hand"
    DIFFERS = "differs"
    """It was accepted, and what was read back is another figure, however often it was sent."""


BILLED: Final = "billed"
"""The cause of a confirmed revision that says what the provider's invoice billed."""

AT_REST: Final = frozenset({AttentionCause.CARRIED, AttentionCause.NOTHING_TO_TELL})
"""Parked with an amount of 0: nobody has to do anything."""


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


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """The state of a report after an answer.

    ``outcome_unknown``: it may have arrived although the provider has not said so.
    """

    state: ReportState
    outcome_unknown: bool


def after_answer(answer: ProviderAnswer, *, outcome_unknown: bool) -> SendOutcome:
    """The state after an answer to a report that was being sent.

    Args:
        answer: The provider's.
        outcome_unknown: Whether an attempt before ended without one. Then a refusal tells of this
            attempt only, and whether the earlier one arrived stays open.
    """
    match answer.verdict:
        case ProviderVerdict.ACCEPTED:
            return SendOutcome(ReportState.ACCEPTED, outcome_unknown=False)
        case ProviderVerdict.UNKNOWN:
            return SendOutcome(ReportState.UNKNOWN, outcome_unknown=True)
        case ProviderVerdict.REFUSED:
            return SendOutcome(ReportState.NEEDS_ATTENTION, outcome_unknown)
        case ProviderVerdict.STOPPED:
            return SendOutcome(
                ReportState.UNKNOWN if outcome_unknown else ReportState.PENDING, outcome_unknown
            )


FIRST_WAIT: Final = timedelta(seconds=5)
LONGEST_WAIT: Final = timedelta(hours=1)
_DOUBLINGS: Final = 10
assert FIRST_WAIT * 2**_DOUBLINGS >= LONGEST_WAIT  # noqa: S101 - a relation between constants


def backoff(attempts: int, jitter: float) -> timedelta:
    """The wait after ``attempts`` without a definite answer.

    Args:
        attempts: One or more.
        jitter: 0 to 1. The wait lies between half of the full one and all of it.
    """
    doublings: int = min(max(attempts, 1) - 1, _DOUBLINGS)
    full: timedelta = min(FIRST_WAIT * (1 << doublings), LONGEST_WAIT)
    return full * (0.5 + 0.5 * jitter)
