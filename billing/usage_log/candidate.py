"""An event that may be logged, in the form that a batch needs.

That is what is compared, what is added up, and its row as COPY takes it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, NamedTuple

from billing.core import row_hash as leaf
from billing.core.clock import to_ms
from billing.core.row_hash import Unlogged
from billing.core.usage_event import Outcome, UsageEvent
from billing.core.usage_event_json import from_wire
from billing.usage_log import rows

HOUR_MS: Final = 3_600_000
_SUCCEEDED: Final = Outcome.SUCCEEDED.value


class Candidate(NamedTuple):
    """A valid event, with the message it came in.

    ``key`` is its id in 16 bytes, ``hour`` the number of its UTC hour since 1970, ``outcome`` the
    outcome's value; amounts are in microcredits, the provider's cost in micros. ``row`` is None
    where a figure does not fit its column. ``around`` is what its leaf will be made of.
    """

    key: bytes
    customer: str
    sku: str
    outcome: str
    reason: str
    hour: int
    quantity: int
    amount: int
    shortfall: int
    cost: int
    epoch: int
    subject: str | None
    fingerprint: bytes
    row: bytes | None
    around: Unlogged
    body: bytes

    @property
    def event(self) -> UsageEvent:
        """All of the event, read from the message again: for the rare case that needs it."""
        return from_wire(self.body)

    @property
    def used_subject(self) -> str | None:
        """What was used: neither of a denial nor of a failure that cost nothing."""
        return self.subject if self.amount or self.outcome == _SUCCEEDED else None


def candidate_of(event: UsageEvent, body: bytes) -> Candidate:
    """The candidate of an event that was read from ``body``."""
    fingerprint = event.fingerprint()
    return Candidate(
        key=event.id.bytes,
        customer=event.customer,
        sku=event.sku,
        outcome=event.outcome.value,
        reason=event.reason,
        hour=to_ms(event.metered_at) // HOUR_MS,
        quantity=event.quantity,
        amount=event.amount_microcredits,
        shortfall=event.shortfall_microcredits,
        cost=event.cost_micros,
        epoch=event.quota_epoch,
        subject=event.subject,
        fingerprint=fingerprint,
        row=rows.row_of(event, fingerprint),
        around=leaf.unlogged_of(leaf.row_of(event, fingerprint)),
        body=body,
    )


def hour_at(number: int) -> datetime:
    """The start of the UTC hour of that number."""
    return datetime.fromtimestamp(number * HOUR_MS // 1000, UTC)
