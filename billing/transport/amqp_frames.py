"""The frames of one published event, as AMQP 0-9-1 has them on the wire. Pure.

py-amqp builds and sends a message at a time, each with a system call of its own. A relay sends
hundreds: their frames are put together here and sent at once.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

_FRAME_END: Final = b"\xce"
_FRAME: Final = Struct(">BHI")
_METHOD, _HEADER, _BODY = 1, 2, 3
_OVERHEAD: Final = 8
"""Of a frame around its payload."""

_BASIC_PUBLISH: Final = Struct(">HHH")
_BASIC, _PUBLISH = 60, 40
_MANDATORY: Final = b"\x01"

_CONTENT: Final = Struct(">HHQH")
_CONTENT_TYPE, _DELIVERY_MODE, _MESSAGE_ID, _TIMESTAMP, _TYPE = (
    1 << 15,
    1 << 12,
    1 << 7,
    1 << 6,
    1 << 5,
)
_PERSISTENT: Final = b"\x02"
_SECONDS: Final = Struct(">Q")
_SHORT_TEXT: Final = 255


def published(
    channel: int,
    *,
    exchange: str,
    routing_key: str,
    content_type: str,
    message_id: str,
    message_type: str,
    timestamp: int,
    body: bytes,
    frame_max: int,
) -> bytes:
    """``basic.publish`` of one persistent message, mandatory: unroutable, it comes back.

    Args:
        channel: The channel's number.
        exchange: Where to.
        routing_key: For whom.
        content_type: Of the body.
        message_id: Of the message.
        message_type: Its type.
        timestamp: Whole seconds since 1970.
        body: Its body; more than one frame where it is longer than one may be.
        frame_max: The longest frame that was agreed on, in bytes.

    Raises:
        ValueError: A text is longer than AMQP can say, 255 bytes.
    """
    publish = _BASIC_PUBLISH.pack(_BASIC, _PUBLISH, 0)
    method = b"".join((publish, _short(exchange), _short(routing_key), _MANDATORY))
    flags = _CONTENT_TYPE | _DELIVERY_MODE | _MESSAGE_ID | _TIMESTAMP | _TYPE
    header = b"".join(
        (
            _CONTENT.pack(_BASIC, 0, len(body), flags),
            _short(content_type),
            _PERSISTENT,
            _short(message_id),
            _SECONDS.pack(timestamp),
            _short(message_type),
        )
    )
    largest = frame_max - _OVERHEAD
    bodies = [body[start : start + largest] for start in range(0, len(body), largest)]
    return b"".join(
        (
            *_frame(_METHOD, channel, method),
            *_frame(_HEADER, channel, header),
            *(part for each in bodies for part in _frame(_BODY, channel, each)),
        )
    )


def _frame(kind: int, channel: int, payload: bytes) -> tuple[bytes, bytes, bytes]:
    return _FRAME.pack(kind, channel, len(payload)), payload, _FRAME_END


def _short(text: str) -> bytes:
    encoded = text.encode()
    if len(encoded) > _SHORT_TEXT:
        raise ValueError(f"{text[:40]!r}… is {len(encoded)} bytes; AMQP says at most 255 of it")
    return bytes((len(encoded),)) + encoded
