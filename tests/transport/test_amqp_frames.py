"""The frames of a published event are those that py-amqp would send."""

from __future__ import annotations

from types import SimpleNamespace

import amqp
import pytest
from amqp import spec
from amqp.method_framing import frame_writer
from amqp.serialization import dumps
from hypothesis import given
from hypothesis import strategies as st

from billing.transport.amqp_frames import published

FRAME_MAX = 4_096
SHORT = st.text(max_size=60).filter(lambda text: len(text.encode()) <= 255)


def as_py_amqp_sends(channel: int, exchange: str, key: str, message: amqp.Message) -> bytes:
    sent = bytearray()
    transport = SimpleNamespace(write=sent.extend)
    connection = SimpleNamespace(frame_max=FRAME_MAX, bytes_sent=0)
    write = frame_writer(connection, transport)
    arguments = dumps("Bssbb", (0, exchange, key, True, False))
    write(1, channel, spec.Basic.Publish, arguments, message)
    return bytes(sent)


@given(
    channel=st.integers(1, 65_535),
    exchange=SHORT,
    key=SHORT,
    message_id=SHORT,
    timestamp=st.integers(0, 2**40),
    body=st.binary(min_size=1, max_size=200) | st.sampled_from([b"x" * n for n in (4_087, 20_000)]),
)
def test_frames_are_those_of_py_amqp(
    channel: int, exchange: str, key: str, message_id: str, timestamp: int, body: bytes
):
    message = amqp.Message(
        body,
        delivery_mode=2,
        content_type="application/json",
        message_id=message_id,
        type="usage.event",
        timestamp=timestamp,
    )
    assert published(
        channel,
        exchange=exchange,
        routing_key=key,
        content_type="application/json",
        message_id=message_id,
        message_type="usage.event",
        timestamp=timestamp,
        body=body,
        frame_max=FRAME_MAX,
    ) == as_py_amqp_sends(channel, exchange, key, message)


def test_a_text_that_amqp_cannot_say_is_refused():
    with pytest.raises(ValueError, match="255"):
        published(
            1,
            exchange="e" * 256,
            routing_key="",
            content_type="",
            message_id="",
            message_type="",
            timestamp=0,
            body=b"",
            frame_max=FRAME_MAX,
        )
