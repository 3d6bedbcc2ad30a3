"""Deliveries taken from frames: the same, in the same order, as py-amqp makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from struct import pack, unpack_from
from typing import Any

import amqp
import pytest
from amqp.method_framing import frame_handler
from hypothesis import given
from hypothesis import strategies as st

from billing.usage_log.express import Express
from billing.usage_log.frames import frame_at, take_deliveries

CHANNEL, ANOTHER, FOREIGN = 3, 4, 7
DELIVER = 60 << 16 | 60
Seen = list[tuple[object, ...]]


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def delivery(
    tag: int, *parts: bytes, channel: int = CHANNEL, consumer: bytes = b"None1", key: bytes = b"k"
) -> list[bytes]:
    """The frames of a delivery whose body comes in these parts."""
    method = pack(">IB", DELIVER, len(consumer)) + consumer + pack(">QB", tag, 0)
    method += b"\x05usage" + bytes([len(key)]) + key
    header = pack(">HHQH", 60, 0, sum(map(len, parts)), 0x1000) + b"\x02"
    return [
        frame(1, channel, method),
        frame(2, channel, header),
        *(frame(3, channel, part) for part in parts),
    ]


HEARTBEAT = frame(8, 0, b"")
QOS_OK = frame(1, CHANNEL, pack(">HH", 60, 11))
OTHER_OK = frame(1, FOREIGN, pack(">HH", 60, 11))

bodies = st.binary(max_size=40).filter(bool)
streams = st.lists(
    st.one_of(
        bodies.map(lambda body: ("small", body)),
        bodies.map(lambda body: ("beside", body)),
        st.lists(bodies, min_size=2, max_size=3).map(lambda parts: ("large", *parts)),
        st.just(("empty",)),
        bodies.map(lambda body: ("other", body)),
        st.sampled_from([(HEARTBEAT,), (QOS_OK,), (OTHER_OK,)]),
    ),
    max_size=12,
)


def frames_of(stream: list[tuple[Any, ...]]) -> list[bytes]:
    found: list[bytes] = []
    for tag, (kind, *parts) in enumerate(stream, start=1):
        if isinstance(kind, bytes):
            found.append(kind)
        else:
            channel = {"other": FOREIGN, "beside": ANOTHER}.get(kind, CHANNEL)
            found += delivery(tag, *parts, channel=channel, key=b"k" * (tag * 40 % 255))
    return found


class Socket:
    """What a socket has received, in the pieces in which it came."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def recv(self, most: int) -> bytes:
        if not self.pieces:
            raise TimeoutError
        assert len(self.pieces[0]) <= most
        return self.pieces.pop(0)


class Transport:
    """As much of py-amqp's as is read through."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.sock = Socket(pieces)
        self.connected = True
        self._read_buffer = b""

    @contextmanager
    def having_timeout(self, timeout: float) -> Iterator[Socket]:
        del timeout
        yield self.sock


class Broker:
    """A connection and its channel, with py-amqp's own handler of frames."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.transport = Transport(pieces)
        self.bytes_recv = 0
        self.seen: Seen = []
        self.by_amqp = 0
        self.on_inbound_frame = frame_handler(self, self.dispatch)

    def dispatch(self, channel: int, method: tuple[int, int], args: bytes, content: Any) -> None:
        if content is None:
            self.seen.append((channel, method))
            return
        self.by_amqp += 1
        (tag,) = unpack_from(">Q", args, 5 + args[4])
        self.seen.append((channel, tag, content.body))

    def take(self, channel: int, tag: int, body: bytes) -> None:
        self.seen.append((channel, tag, body))

    def read_all(self) -> None:
        express = Express.of(self, {CHANNEL, ANOTHER}, self.take)
        assert express is not None
        while self.transport.sock.pieces:
            express.read(0.0)


def as_amqp_sees(frames: list[bytes]) -> Seen:
    broker = Broker([])
    for each in frames:
        whole = frame_at(each, 0)
        assert whole is not None
        broker.on_inbound_frame((whole.kind, whole.channel, whole.payload))
    return broker.seen


def in_pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(stream)}), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges) if b > a]


@given(stream=streams, cuts=st.lists(st.integers(0, 3000), max_size=30))
def test_whatever_comes_in_whatever_pieces_all_is_seen_once_and_in_order(
    stream: list[tuple[Any, ...]], cuts: list[int]
) -> None:
    frames = frames_of(stream)
    broker = Broker(in_pieces(b"".join(frames), cuts))
    broker.read_all()
    assert broker.seen == as_amqp_sees(frames)
    assert broker.transport._read_buffer == b""
    ordinary = sum(kind in {"small", "beside"} for kind, *_ in stream)
    others = sum(kind in {"large", "empty", "other"} for kind, *_ in stream)
    assert len([seen for seen in broker.seen if len(seen) == 3]) == ordinary + others
    assert broker.by_amqp == others


@given(stream=streams, taken=st.integers(0, 40))
def test_it_goes_on_where_py_amqp_stopped_even_within_a_delivery(
    stream: list[tuple[Any, ...]], taken: int
) -> None:
    frames = frames_of(stream)
    broker = Broker([b"".join(frames[taken:])] if frames[taken:] else [])
    for each in frames[:taken]:
        whole = frame_at(each, 0)
        assert whole is not None
        broker.on_inbound_frame((whole.kind, whole.channel, whole.payload))
    broker.read_all()
    assert broker.seen == as_amqp_sees(frames)


def test_what_has_not_come_wholly_is_left_with_py_amqp() -> None:
    whole = b"".join(delivery(1, b"first") + delivery(2, b"second"))
    broker = Broker([whole[:-9]])
    broker.read_all()
    assert broker.seen == [(CHANNEL, 1, b"first")]
    assert broker.transport._read_buffer + whole[-9:] == b"".join(delivery(2, b"second"))


def test_deliveries_count_as_traffic() -> None:
    broker = Broker([b"".join(delivery(1, b"body"))])
    broker.read_all()
    assert broker.bytes_recv > 0


def test_a_closed_connection_is_an_error_and_known_to_py_amqp() -> None:
    broker = Broker([b""])
    with pytest.raises(ConnectionResetError):
        broker.read_all()
    assert not broker.transport.connected


def test_what_is_no_amqp_is_an_error() -> None:
    broken = b"".join(delivery(1, b"body"))[:-1] + b"\x00"
    with pytest.raises(amqp.exceptions.UnexpectedFrame):
        Broker([broken]).read_all()


@pytest.mark.parametrize("position", range(3))
def test_an_end_mark_that_is_missing_anywhere_takes_nothing(position: int) -> None:
    parts = delivery(1, b"body")
    parts[position] = parts[position][:-1] + b"\x00"
    taken: list[object] = []
    end = take_deliveries(b"".join(parts), 0, {CHANNEL}, lambda *told: taken.append(told))
    assert (end, taken) == ((0, False), [])


def test_a_py_amqp_that_reads_in_another_way_is_left_alone() -> None:
    broker = Broker([])
    del broker.transport._read_buffer
    assert Express.of(broker, {CHANNEL}, broker.take) is None
