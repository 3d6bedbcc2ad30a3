"""Several events of one customer in one message, as a JSON text sequence (RFC 7464). Pure.

A message costs RabbitMQ and both its ends much the same whether one event is in it or twenty. So
what a relay sends at once is packed by customer; the log judges and keeps every event by itself.

An event alone is its JSON object, as it always was. Several are each preceded by a record
separator, which no JSON text begins with and none contains, and followed by a line feed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from billing.core.clock import to_ms
from billing.core.usage_event import CONTENT_TYPE
from billing.transport.settled_figures import Encodable

MAX_PACK_BYTES: Final = 63_000
"""Of a message with several events: some ninety of them. What a consumer has not unpacked yet is
bounded by this, and the body still fits into one frame of AMQP."""

MAX_MESSAGE_BYTES: Final = 131_072
MAX_PARTS: Final = 1_000
"""Bounds of a message with several events, whoever packed it: twice what we write ourselves, and
more events than that can hold. Beyond them it is not split: one message of separators would be
millions of events."""

SEQUENCE_TYPE: Final = "application/json-seq"
_BEFORE: Final = b"\x1e"
_BEHIND: Final = b"\n"
_AROUND: Final = len(_BEFORE) + len(_BEHIND)


class Pack(NamedTuple):
    """One message.

    Attributes:
        customer: Whose events these are.
        message_id: The id of the first.
        metered_ms: When that one counts, in milliseconds since 1970.
        content_type: Of the body.
        body: As it goes over the wire.
    """

    customer: str
    message_id: str
    metered_ms: int
    content_type: str
    body: bytes


def packed(events: Iterable[Encodable]) -> list[Pack]:
    """The messages of some events, each event in one of them, in their order for each customer."""
    packs: list[Pack] = []
    filling: dict[str, _Filling] = {}
    for event in events:
        wire = event.to_wire()
        found = filling.get(event.customer)
        if found is not None and found.size + len(wire) + _AROUND <= MAX_PACK_BYTES:
            found.add(wire)
            continue
        if found is not None:
            packs.append(found.pack())
        filling[event.customer] = _Filling(event, wire)
    packs += [found.pack() for found in filling.values()]
    return packs


def parts_in(body: bytes) -> int:
    """How many events a message claims to have; counted without splitting it.

    Args:
        body: As it came from the broker.
    """
    return body.count(_BEFORE) if body.startswith(_BEFORE) else 1


def unpacked(body: bytes) -> list[bytes]:
    """The events of a message, each as it would be alone.

    What is no sequence is left whole, and so is one beyond ``MAX_MESSAGE_BYTES`` or ``MAX_PARTS``:
    the log keeps it as one dead letter.

    Args:
        body: As it came from the broker.
    """
    if not body.startswith(_BEFORE):
        return [body]
    if len(body) > MAX_MESSAGE_BYTES or parts_in(body) > MAX_PARTS:
        return [body]
    return [wire.removesuffix(_BEHIND) for wire in body[len(_BEFORE) :].split(_BEFORE)]


class _Filling:
    __slots__ = ("first", "size", "wires")

    def __init__(self, first: Encodable, wire: bytes) -> None:
        self.first = first
        self.wires = [wire]
        self.size = len(wire) + _AROUND

    def add(self, wire: bytes) -> None:
        self.wires.append(wire)
        self.size += len(wire) + _AROUND

    def pack(self) -> Pack:
        if len(self.wires) == 1:
            content_type, body = CONTENT_TYPE, self.wires[0]
        else:
            content_type = SEQUENCE_TYPE
            body = b"".join(part for wire in self.wires for part in (_BEFORE, wire, _BEHIND))
        return Pack(
            self.first.customer,
            str(self.first.id),
            to_ms(self.first.metered_at),
            content_type,
            body,
        )
