"""Deliveries read from AMQP's frames, several at a time. Pure.

A delivery is three frames (AMQP 0-9-1, section 2.3.5): the method ``basic.deliver``, the content's
header, and the content. py-amqp reads each of them by several calls and makes objects of all that
is in them, which takes ten times as long as the few bytes that are wanted here. So of the usage
channel's frames, ordinary deliveries are taken here; whatever else comes is py-amqp's.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from struct import Struct
from typing import Final, NamedTuple

from amqp.exceptions import UnexpectedFrame

_METHOD, _HEADER, _BODY = 1, 2, 3
_DELIVER: Final = 60 << 16 | 60
_BASIC: Final = 60
_AROUND: Final = 8
"""Bytes of a frame besides its payload: type, channel and size before it, an end mark after it."""

_BEFORE: Final = 7
_END: Final = 0xCE
_frame = Struct(">BHI").unpack_from
_method = Struct(">BHIIB").unpack_from
_header = Struct(">BHIHHQ").unpack_from
_tag = Struct(">Q").unpack_from
_METHOD_FIXED: Final = 12
_HEADER_FIXED: Final = 19


Take = Callable[[int, int, bytes], None]


class Frame(NamedTuple):
    """A whole frame, as py-amqp takes it, and where it ends."""

    kind: int
    channel: int
    payload: bytes
    end: int


def take_deliveries(
    buffer: bytes, position: int, channels: AbstractSet[int], take: Take
) -> tuple[int, bool]:
    """Take the ordinary deliveries of some channels that stand at a position, one after the other.

    Ordinary is a content of one frame. It ends at the first frame that is anything else, or at a
    delivery of which not enough has come.

    Args:
        buffer: What has come.
        position: Where a frame begins in it.
        channels: Numbers of the channels.
        take: Gets channel, delivery tag and body of each.

    Returns:
        The position behind them, and whether the rest of a delivery has to come first.
    """
    end = len(buffer)
    partial = False
    while position + _METHOD_FIXED <= end:
        kind, channel, size, method, name_size = _method(buffer, position)
        if kind != _METHOD or channel not in channels or method != _DELIVER:
            break
        header_at = position + size + _AROUND
        if partial := header_at + _HEADER_FIXED > end:
            break
        kind, number, size, of_class, _, content = _header(buffer, header_at)
        if kind != _HEADER or number != channel or of_class != _BASIC or not content:
            break
        body_at = header_at + size + _AROUND
        if partial := body_at + _BEFORE > end:
            break
        kind, number, size = _frame(buffer, body_at)
        if kind != _BODY or number != channel or size != content:
            break
        body_end = body_at + size + _AROUND
        if partial := body_end > end:
            break
        if not buffer[header_at - 1] == buffer[body_at - 1] == buffer[body_end - 1] == _END:
            break
        (tag,) = _tag(buffer, position + _METHOD_FIXED + name_size)
        take(channel, tag, buffer[body_at + _BEFORE : body_end - 1])
        position = body_end
    return position, partial


def frame_at(buffer: bytes, position: int) -> Frame | None:
    """The frame at a position; None where it has not come wholly.

    Raises:
        amqp.exceptions.UnexpectedFrame: It has no end mark where it ends.
    """
    if position + _AROUND > len(buffer):
        return None
    kind, number, size = _frame(buffer, position)
    end = position + size + _AROUND
    if end > len(buffer):
        return None
    if buffer[end - 1] != _END:
        raise UnexpectedFrame("a frame without an end mark")
    return Frame(kind, number, buffer[position + _BEFORE : end - 1], end)
