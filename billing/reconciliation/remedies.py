"""The remedy of a discrepancy, and its probable cause. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from billing.reconciliation.invariants import Discrepancy, DiscrepancyKind


class Remedy(StrEnum):
    """The way to repair it; Redis and the rollups are repaired from PostgreSQL."""

    SYNC_GRANTS = "sync_grants"
    """The fence gets the sum of the grants, and Redis the fence."""
    REBUILD = "rebuild"
    """Redis gets the account anew, under the next epoch; open holds stay."""
    MEND_HOLDS = "mend_holds"
    """Holds, their list and their sum are made to agree."""
    ROLL_UP = "roll_up"
    """The bucket is summed up again from the log."""
    PUBLISH_AGAIN = "publish_again"
    """The event is in this node's journal and nowhere else: it is published from there."""
    BY_HAND = "by_hand"
    """No rule can say what is right; a person reads the lines."""


class DiscrepancyCause(StrEnum):
    """The probable cause, where that can be known."""

    UNKNOWN = ""
    EVENT_LOST = "event_lost"
    """Charged, and the event is neither in the log nor on its way."""
    REDIS_BEHIND = "redis_behind"
    """Redis knows less than the log: it lost its newest data, or a settlement was taken back."""
    REDIS_AHEAD = "redis_ahead"
    """Redis counted what the log never got."""
    EDITED = "edited"
    """Nothing that Weighbridge does leaves this: somebody changed it by hand."""
    LOG_CHANGED = "log_changed"
    """Rows of the hour are not those that were logged; the rollup may well be right."""
    HOLD_LEFT = "hold_left"
    """A hold outlived its task and every sweep."""


_REMEDIES: Final[Mapping[DiscrepancyKind, Remedy]] = {
    DiscrepancyKind.AVAILABLE: Remedy.MEND_HOLDS,
    DiscrepancyKind.NEGATIVE: Remedy.BY_HAND,
    DiscrepancyKind.GRANTED: Remedy.SYNC_GRANTS,
    DiscrepancyKind.SETTLED: Remedy.REBUILD,
    DiscrepancyKind.ROLLUP: Remedy.ROLL_UP,
    DiscrepancyKind.DUPLICATE: Remedy.BY_HAND,
    DiscrepancyKind.OVERDUE_HOLD: Remedy.MEND_HOLDS,
    DiscrepancyKind.DENIED_BUT_RAN: Remedy.BY_HAND,
    DiscrepancyKind.LOST_EVENT: Remedy.PUBLISH_AGAIN,
}
assert set(_REMEDIES) == set(DiscrepancyKind)  # noqa: S101 - a relation between constants


def remedy_of(discrepancy: Discrepancy) -> Remedy:
    """Look up the remedy of a kind."""
    return _REMEDIES[discrepancy.kind]


def cause_of(discrepancy: Discrepancy, lost_microcredits: int) -> DiscrepancyCause:
    """Guess the cause.

    Args:
        discrepancy: The difference.
        lost_microcredits: Sum of the customer's lost events, as far as they are known.
    """
    match discrepancy.kind:
        case DiscrepancyKind.LOST_EVENT:
            return DiscrepancyCause.EVENT_LOST
        case DiscrepancyKind.SETTLED:
            ahead = discrepancy.found - discrepancy.expected
            if ahead < 0:
                return DiscrepancyCause.REDIS_BEHIND
            return (
                DiscrepancyCause.EVENT_LOST
                if lost_microcredits == ahead
                else DiscrepancyCause.REDIS_AHEAD
            )
        case DiscrepancyKind.ROLLUP | DiscrepancyKind.GRANTED:
            return DiscrepancyCause.EDITED
        case DiscrepancyKind.OVERDUE_HOLD:
            return DiscrepancyCause.HOLD_LEFT
        case _:
            return DiscrepancyCause.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloggedUsage:
    """Usage of a customer that is charged and not logged yet.

    ``in_outbox`` counts the customer's events; ``in_queue`` the messages of everybody in RabbitMQ,
    None where that cannot be known.
    """

    in_outbox: int
    in_queue: int | None

    def __str__(self) -> str:
        queue = "an unknown number" if self.in_queue is None else str(self.in_queue)
        return f"{self.in_outbox} in the outbox, {queue} in the queue"


def must_wait(discrepancy: Discrepancy, unlogged: UnloggedUsage) -> bool:
    """Whether a repair now could give out credits twice.

    A rebuilt account begins from the log. Usage that Redis has counted and the log has not got yet
    would be available again until it arrives; so where Redis is ahead, nothing may be unlogged.
    Where Redis is behind, a rebuild only takes credits away, and that is never too early.
    """
    ahead = discrepancy.kind is DiscrepancyKind.SETTLED and discrepancy.found > discrepancy.expected
    return ahead and (unlogged.in_outbox > 0 or unlogged.in_queue != 0)
