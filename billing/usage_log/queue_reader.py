"""The broker's side of the consumer: deliveries in, acknowledgements out, over Kombu.

RabbitMQ (py-amqp) and Kombu's Redis transport behave alike here but for one thing: only RabbitMQ
acknowledges a run of deliveries at once. Used by one thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, cast

import amqp
from kombu import Connection, Consumer, Message, Queue
from kombu.transport.base import StdChannel

from billing.transport import topology

MAX_PREFETCH: Final = 500
"""Of messages as large as they are packed these are 30 MB, and some ten batches."""

_DEAD_PREFETCH: Final = 20  # each may be as large as RabbitMQ takes at all
_HEARTBEAT_SECONDS: Final = 30
_CONNECT_SECONDS: Final = 5
_CLOSE_SECONDS: Final = 2


class Delivery(NamedTuple):
    """One message, to be acknowledged once it is safe elsewhere.

    ``channel`` and ``tag`` are AMQP's. ``detail`` is what the broker says about giving it up; of
    use for the dead-letter queue only. ``message`` is Kombu's, None where it was not asked.
    """

    body: bytes
    channel: int
    tag: Any
    detail: str = ""
    message: Message | None = None


def broker(url: str) -> Callable[[], Connection]:
    """What makes a connection to the broker of that URL; nothing connects before it is called.

    Args:
        url: ``amqp://`` (RabbitMQ) or ``redis://`` (Kombu's Redis transport).
    """

    def connect() -> Connection:
        return Connection(url, heartbeat=_HEARTBEAT_SECONDS, connect_timeout=_CONNECT_SECONDS)

    return connect


class QueueReader:
    """An open connection that collects deliveries of the usage queue and of its dead-letter queue.

    Args:
        connection: Not connected yet; closed by ``close``.
        exchange: The exchange of usage events.
        queue: The usage queue. Both are declared with everything around them.
        prefetch: The most unacknowledged deliveries of the usage queue; ``MAX_PREFETCH`` or less.
    """

    def __init__(self, connection: Connection, *, exchange: str, queue: str, prefetch: int) -> None:
        self.usage: deque[Delivery] = deque()
        self.dead: deque[Delivery] = deque()
        self.prefetch = prefetch
        self._connection = connection
        self._names = (exchange, queue)
        self._next_heartbeat = 0.0
        self._channels: dict[int, Any] = {}

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """What the other methods raise when the connection or a channel is lost."""
        found: tuple[type[BaseException], ...] = (
            *self._connection.connection_errors,
            *self._connection.channel_errors,
        )
        return (*found, OSError)

    def open(self) -> None:
        """Connect, declare, and begin to consume."""
        exchange, queue = self._names
        self._connection.connect()
        usage = self._channel()
        # Every channel of Kombu has what a declaration needs, under wider signatures.
        topology.declare(cast("topology.Channel", usage), exchange=exchange, queue=queue)
        # Its own: an acknowledgement of a run counts every delivery of its channel.
        dead = self._channel()
        self._consume(usage, queue, self.prefetch, self.usage)
        self._consume(dead, topology.dead_queue(queue), _DEAD_PREFETCH, self.dead)

    def receive(self, *, timeout: float, most: int) -> int:
        """Take in deliveries; wait for the first only.

        Args:
            timeout: Seconds to wait.
            most: How many, about, before it looks no further.

        Returns:
            How many came.
        """
        before = len(self.usage) + len(self.dead)
        wait = timeout
        while len(self.usage) + len(self.dead) - before < most:
            try:
                self._connection.drain_events(timeout=wait)
            except TimeoutError:
                break
            except AttributeError as error:
                # py-amqp, when the connection goes in the middle of a frame.
                if self._connection.connected:
                    raise
                raise ConnectionResetError("the broker closed the connection") from error
            wait = 0
        self._heartbeat()
        return len(self.usage) + len(self.dead) - before

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Tell the broker that these are safe: the oldest unacknowledged ones of their queue."""
        if self._channels:
            last = {delivery.channel: delivery.tag for delivery in deliveries}
            for number, tag in last.items():
                self._channels[number].basic_ack(tag, multiple=True)
            return
        for delivery in deliveries:
            cast("Message", delivery.message).ack()

    def close(self) -> None:
        """Close the connection; the broker delivers again what was not acknowledged."""
        try:
            self._connection.release()
        except self.errors:
            self._connection.collect(socket_timeout=_CLOSE_SECONDS)

    def _channel(self) -> StdChannel:
        channel = self._connection.channel()
        if isinstance(channel, amqp.Channel):
            # It would decode a body that names an encoding; the log judges the bytes themselves.
            channel.auto_decode = False
            self._channels[_number(channel)] = channel
        return channel

    def _consume(
        self, channel: StdChannel, queue: str, prefetch: int, into: deque[Delivery]
    ) -> None:
        number = _number(channel)

        def take(message: Message) -> None:
            body, detail = _bytes(message.body), _why_dead(message.headers)
            into.append(Delivery(body, number, message.delivery_tag, detail, message))

        # Kombu's Redis transport knows the queue by the declaration above.
        consumer = Consumer(
            channel,
            queues=[Queue(queue, no_declare=True)],
            on_message=take,
            auto_declare=False,
            prefetch_count=prefetch,
        )
        consumer.consume()

    def _heartbeat(self) -> None:
        now = time.monotonic()
        if now >= self._next_heartbeat and self._connection.supports_heartbeats:
            self._next_heartbeat = now + 1
            self._connection.heartbeat_check()


def _number(channel: StdChannel) -> int:
    """The number of an AMQP channel; 0 of any other."""
    return getattr(channel, "channel_id", 0) or 0


def _bytes(body: bytes | str | None) -> bytes:
    if isinstance(body, str):
        return body.encode("utf-8", "surrogateescape")
    return bytes(body or b"")


def _why_dead(headers: dict[str, Any] | None) -> str:
    """What RabbitMQ says about a message that it moved to the dead-letter queue."""
    reason = (headers or {}).get("x-first-death-reason")
    return f"given up by the broker: {reason}" if reason else "given up by the broker"
