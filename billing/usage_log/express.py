"""Deliveries taken from a connection of py-amqp before py-amqp makes objects of them.

It reads the connection's socket as py-amqp itself would, hands every frame to py-amqp that is not
an ordinary delivery of some channels, and leaves with py-amqp what has not come wholly. So between
two calls the connection is py-amqp's as ever: it opens and closes channels, acknowledges, and
minds heartbeats.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any, Final, Self

from billing.usage_log.frames import Take, frame_at, take_deliveries

_READ_BYTES: Final = 65_536


class Express:
    """The quick way for the deliveries of some channels.

    Args:
        connection: Open.
        channels: Their numbers.
        take: Gets channel, delivery tag and body of each ordinary delivery, in their order. Others
            go to their channel's own callback.
    """

    def __init__(self, connection: Any, channels: AbstractSet[int], take: Take) -> None:  # noqa: ANN401 - py-amqp ships no types
        self._connection = connection
        self._channels = channels
        self._take = take

    @classmethod
    def of(cls, connection: Any, channels: AbstractSet[int], take: Take) -> Self | None:  # noqa: ANN401 - as above
        """As the constructor; None where this py-amqp keeps what it has read in another way."""
        kept = getattr(connection.transport, "_read_buffer", None)
        return cls(connection, channels, take) if isinstance(kept, bytes) else None

    def read(self, timeout: float) -> None:
        """Take in what has come, or what comes first.

        Args:
            timeout: Seconds to wait for it.

        Raises:
            TimeoutError: Nothing came.
            OSError: The connection is lost.
            amqp.exceptions.AMQPError: The broker closed it, or the channel.
        """
        transport = self._connection.transport
        with transport.having_timeout(timeout) as socket:
            received = socket.recv(_READ_BYTES)
        if not received:
            transport.connected = False
            raise ConnectionResetError("the broker closed the connection")
        transport._read_buffer += received  # noqa: SLF001 - what py-amqp reads before the socket
        while self._handle(transport):
            pass

    def _handle(self, transport: Any) -> bool:  # noqa: ANN401 - py-amqp ships no types
        """Handle what has come wholly; whether there may be more."""
        buffer: bytes = transport._read_buffer  # noqa: SLF001 - as above
        position, partial = take_deliveries(buffer, 0, self._channels, self._take)
        if position:
            # Counted as traffic: otherwise it would seem that heartbeats are missing.
            self._connection.bytes_recv += 1
        frame = None if partial else frame_at(buffer, position)
        transport._read_buffer = buffer[frame.end if frame else position :]  # noqa: SLF001 - as above
        if frame is None:
            return False
        self._connection.on_inbound_frame((frame.kind, frame.channel, frame.payload))
        return True
