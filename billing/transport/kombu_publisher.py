"""Publishing over Kombu's Redis transport: for a laptop without RabbitMQ."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import kombu
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from billing.core import failpoints
from billing.core.errors import PublishFailed
from billing.core.process_local import ProcessLocal
from billing.core.usage_event import CONTENT_TYPE
from billing.transport import topology
from billing.transport.settled_figures import Encodable


class KombuPublisher:
    """The same port as ``AmqpPublisher``, for broker URLs of Redis and Valkey only.

    What it costs against RabbitMQ: there are no confirms beyond Redis's answer to ``LPUSH``. An
    event is as durable as that server's append-only file (with ``appendfsync everysec`` a crash may
    lose the newest second). An unacknowledged message is redelivered only after the transport's
    visibility time-out, without a limit, and there is no dead-letter exchange. The log's rules
    against duplicates hold unchanged.

    Threads may share one instance and take turns; a forked child connects anew.

    Args:
        url: ``redis://host:port/database`` or ``redis+socket:///path``.
        exchange: The topic exchange of usage events; declared, for whoever binds more queues, but
            events go to ``queue`` directly.
        queue: The queue that the consumer reads (a list in Redis).
        timeout_seconds: The longest wait for one answer of Redis.
    """

    def __init__(self, url: str, *, exchange: str, queue: str, timeout_seconds: float) -> None:
        self._url = url
        self._exchange = exchange
        self._queue = queue
        self._timeout_seconds = timeout_seconds
        self._slots = ProcessLocal(_Slot, _Slot.abandon)

    def publish(self, events: Sequence[Encodable]) -> None:
        """Send the events and return when Redis has taken every one.

        Raises:
            PublishFailed: It did not answer. Any subset may have arrived.
        """
        if not events:
            return
        deadline = time.monotonic() + self._timeout_seconds
        slot = self._slots.get()
        if not slot.lock.acquire(timeout=self._timeout_seconds):
            raise PublishFailed(f"another thread is publishing; {len(events)} events are kept")
        try:
            self._publish(slot, events, deadline)
        except (OSError, RedisError, KombuError) as error:
            slot.drop()
            raise PublishFailed(
                f"the broker on Redis did not take {len(events)} events ({error!r:.200}); they "
                "are kept and will be sent again"
            ) from error
        except BaseException:
            # A soft time limit may strike in the middle of a reply.
            slot.drop()
            raise
        finally:
            slot.lock.release()

    def close(self) -> None:
        """Close the connection."""
        slot = self._slots.get()
        with slot.lock:
            slot.drop()

    def _publish(self, slot: _Slot, events: Sequence[Encodable], deadline: float) -> None:
        if slot.channel is None:
            self._connect(slot)
        for sent, event in enumerate(events):
            if time.monotonic() > deadline:
                raise PublishFailed(
                    f"the broker on Redis took {sent} of {len(events)} events within the "
                    "time-out; all of them are kept and will be sent again"
                )
            self._send(slot.channel, event)
        failpoints.reach("relay.after_publish")

    def _connect(self, slot: _Slot) -> None:
        slot.connection = kombu.Connection(
            self._url,
            transport_options={
                "socket_timeout": self._timeout_seconds,
                "socket_connect_timeout": self._timeout_seconds,
            },
        )
        channel = slot.connection.channel()
        topology.declare(channel, exchange=self._exchange, queue=self._queue)
        slot.channel = channel

    def _send(self, channel: Any, event: Encodable) -> None:  # noqa: ANN401 - Kombu ships no types
        message = channel.prepare_message(
            event.to_wire().decode(),
            content_type=CONTENT_TYPE,
            content_encoding="utf-8",
            properties={"message_id": str(event.id), "delivery_mode": 2},
        )
        # Straight to the queue: an exchange of this transport whose bindings are lost drops what is
        # published to it, without a word.
        channel.basic_publish(message, "", self._queue)


class _Slot:
    """A process's connection and the lock that threads take turns under."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: Any = None
        self.channel: Any = None

    def drop(self) -> None:
        """Close the connection; what was not answered counts as not sent."""
        connection, self.connection, self.channel = self.connection, None, None
        if connection is not None:
            with suppress(OSError, RedisError, KombuError):
                connection.release()

    def abandon(self) -> None:
        """In a forked child: redis-py's pools see the new process themselves; only forget them."""
        self.connection = self.channel = None
