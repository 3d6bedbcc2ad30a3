"""An event's bytes with the figures that the quota store decided. Pure.

An event is encoded once, by whoever settles it, and the store decides no more than three integers.
They are put into the ready bytes: 0.3 µs, where decoding and encoding anew takes 35.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

import orjson

from billing.core.event_ids import instant_of
from billing.core.usage_event import FIELDS, MAX_BODY_BYTES, SCHEMA, UsageEvent
from billing.core.usage_event_json import from_wire

_NAMES: Final = frozenset({*FIELDS, "schema"})
# Keys are sorted, so the amount is the first. None of these can be within a text: its quotation
# marks would have a backslash before them; nor a dimension, whose value begins with one.
_AMOUNT: Final = b'{"amount_microcredits":'
_EPOCH: Final = b',"quota_epoch":0,"'
_SHORTFALL: Final = b',"shortfall_microcredits":0,"'


class Encodable(Protocol):
    """An event that can be sent: a ``UsageEvent``, or the bytes of one."""

    @property
    def customer(self) -> str:
        """Whose it is."""
        ...

    @property
    def id(self) -> UUID:
        """The event's id."""
        ...

    @property
    def metered_at(self) -> datetime:
        """The instant the usage belongs to."""
        ...

    def to_wire(self) -> bytes:
        """The event as one JSON object."""
        ...


@dataclass(frozen=True, slots=True)
class EncodedEvent:
    """The bytes of an event, and what is needed to send them."""

    customer: str
    id: UUID
    wire: bytes

    @property
    def metered_at(self) -> datetime:
        """The instant the usage belongs to: the one in the id."""
        return instant_of(self.id)

    def to_wire(self) -> bytes:
        """The event as one JSON object."""
        return self.wire


def settled_wire(wire: bytes, *, amount: int, shortfall: int, quota_epoch: int) -> bytes:
    """The bytes of an event with its figures: those of ``from_wire(wire).settled(…).to_wire()``.

    Args:
        wire: The event as ``UsageEvent.to_wire`` encodes it.
        amount: Microcredits charged.
        shortfall: Microcredits that nothing covered.
        quota_epoch: The epoch that counted them.

    Raises:
        InvalidEvent: It is not encoded so, and is no event either.
    """
    before, epoch, rest = wire.partition(_EPOCH)
    between, short, after = rest.partition(_SHORTFALL)
    if not epoch or not short or not before.startswith(_AMOUNT):
        event = from_wire(wire)
        return event.settled(amount=amount, shortfall=shortfall, quota_epoch=quota_epoch).to_wire()
    return b'%b%d%b,"quota_epoch":%d,"%b,"shortfall_microcredits":%d,"%b' % (
        _AMOUNT, amount, before[before.index(b",") :], quota_epoch, between, shortfall, after,
    )  # fmt: skip


def settled_event(
    event: UsageEvent, wire: bytes, *, amount: int, shortfall: int, quota_epoch: int
) -> EncodedEvent:
    """An event with its figures, from the bytes it was encoded to."""
    settled = settled_wire(wire, amount=amount, shortfall=shortfall, quota_epoch=quota_epoch)
    return EncodedEvent(event.customer, event.id, settled)


def read_settled(wire: bytes, *, amount: int, shortfall: int, quota_epoch: int) -> EncodedEvent:
    """The event of an outbox entry.

    Its names are looked at, not its values: the consumer checks those, and keeps with its reason
    what it cannot log. An entry with other names is checked here as strictly.

    Raises:
        InvalidEvent: It is not an event.
        ValueError: It is not JSON, or its id cannot be; likewise TypeError, AttributeError and
            OverflowError.
    """
    found = orjson.loads(wire) if len(wire) <= MAX_BODY_BYTES else None
    if isinstance(found, dict) and found.keys() == _NAMES and found["schema"] == SCHEMA:
        customer, identifier = found["customer"], UUID(found["id"])
        # Whoever sends it asks for its instant, which not every id has.
        instant_of(identifier)
        if isinstance(customer, str):
            settled = settled_wire(
                wire, amount=amount, shortfall=shortfall, quota_epoch=quota_epoch
            )
            return EncodedEvent(customer, identifier, settled)
    event = from_wire(wire).settled(amount=amount, shortfall=shortfall, quota_epoch=quota_epoch)
    return EncodedEvent(event.customer, event.id, event.to_wire())
