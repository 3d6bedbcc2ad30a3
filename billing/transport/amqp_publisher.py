"""Publishing to RabbitMQ with pipelined publisher confirms, through py-amqp."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import amqp
from amqp.exceptions import AMQPError
from kombu.utils.url import parse_url

from billing.core import failpoints
from billing.core.errors import ConfigurationError, PublishFailed
from billing.core.process_local import ProcessLocal
from billing.transport import topology
from billing.transport.amqp_frames import published
from billing.transport.message_batch import Pack, packed
from billing.transport.settled_figures import Encodable

SCHEMES: Final = ("amqp", "amqps", "pyamqp")
MESSAGE_TYPE: Final = "usage.event"

_SLICE_SECONDS: Final = 0.2
_LISTEN_EVERY: Final = 16
"""Messages sent before what RabbitMQ has said meanwhile is read: a pause it asks for, confirms."""


def _never() -> bool:
    return False


class AmqpPublisher:
    """Publishes with publisher confirms to a quorum queue.

    A batch is packed by customer (``billing.transport.message_batch``) and sent as one pipeline;
    its confirms are matched by delivery tag. Any trouble at all closes the connection, because a
    late confirm must never count for another batch; the next ``publish`` connects anew and
    declares the topology again, so that a lost binding heals.

    Threads may share one instance: they take turns under a lock. After a fork the child uses a
    connection of its own and leaves the parent's untouched. The connection has no heartbeat, since
    nothing reads it between batches; a broken one is noticed by the next batch, in bounded time.

    Args:
        url: ``amqp://user:password@host:port/vhost``; several, separated by ``;``, are tried in
            turn, each within its share of the time. ``amqps://`` verifies the certificate
            (``?cacertfile=`` for one's own authority).
        exchange: The topic exchange of usage events.
        queue: The queue that the consumer reads; declared here, so that no event is unroutable.
        timeout_seconds: The longest wait of one ``publish``, connecting included (but not the
            look-up of a host name, which the system bounds).
        cancelled: Asked a few times a second while waiting for confirms; true makes it fail.

    Raises:
        ConfigurationError: The URL is not one of AMQP.
    """

    def __init__(
        self,
        url: str,
        *,
        exchange: str,
        queue: str,
        timeout_seconds: float,
        cancelled: Callable[[], bool] = _never,
    ) -> None:
        self._brokers = [_connection_arguments(one) for one in url.split(";")]
        self._exchange = exchange
        self._queue = queue
        self._timeout_seconds = timeout_seconds
        self._cancelled = cancelled
        self._slots = ProcessLocal(_Slot, _Slot.abandon)

    def publish(self, events: Sequence[Encodable]) -> None:
        """Send the events and return when RabbitMQ has confirmed every one.

        Raises:
            PublishFailed: Refused, unroutable, blocked, cut off, or not confirmed in time. Any
                subset may have arrived.
        """
        if not events:
            return
        deadline = time.monotonic() + self._timeout_seconds
        slot = self._slots.get()
        if not slot.lock.acquire(timeout=self._timeout_seconds):
            raise PublishFailed(
                f"another thread has been publishing for {self._timeout_seconds} s; "
                f"{len(events)} events were not sent and are kept"
            )
        try:
            self._publish(slot, events, deadline)
        finally:
            slot.lock.release()

    def close(self) -> None:
        """Close the connection. A later ``publish`` makes a new one."""
        slot = self._slots.get()
        with slot.lock:
            slot.drop()

    def _publish(self, slot: _Slot, events: Sequence[Encodable], deadline: float) -> None:
        try:
            if slot.session is None:
                slot.session = self._connect(deadline)
            slot.session.publish(events, deadline)
        except PublishFailed:
            slot.drop()
            raise
        except (OSError, AMQPError) as error:
            slot.drop()
            raise PublishFailed(
                f"RabbitMQ did not confirm {len(events)} events ({error!r:.200}); they are kept "
                "and will be sent again"
            ) from error
        except BaseException:
            # A soft time limit may strike between any two instructions: what is on the wire is
            # unknown.
            slot.drop()
            raise

    def _connect(self, deadline: float) -> _Session:
        """Connect to the first broker that lets us in; each gets its share of what time is left."""
        for left in range(len(self._brokers), 1, -1):
            try:
                return self._open(_share(deadline, left))
            except (OSError, AMQPError, PublishFailed):
                if self._cancelled():
                    raise
        return self._open(deadline)

    def _open(self, deadline: float) -> _Session:
        broker = self._brokers[0]
        session = _Session(exchange=self._exchange, queue=self._queue, cancelled=self._cancelled)
        try:
            session.open(broker, deadline)
        except BaseException:
            session.close()
            # The next attempt goes to the next broker.
            self._brokers = [*self._brokers[1:], broker]
            raise
        return session


class _Slot:
    """A process's connection and the lock that threads take turns under."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.session: _Session | None = None

    def drop(self) -> None:
        """Close the socket at once; what was not confirmed counts as not sent."""
        session, self.session = self.session, None
        if session is not None:
            session.close()

    def abandon(self) -> None:
        """In a forked child: leave the connection to the parent."""
        session, self.session = self.session, None
        if session is not None:
            session.abandon()


class _Session:
    """A connection with one channel in confirm mode, and which of its messages are unconfirmed."""

    def __init__(self, *, exchange: str, queue: str, cancelled: Callable[[], bool]) -> None:
        self._exchange = exchange
        self._queue = queue
        self._cancelled = cancelled
        self._connection: amqp.Connection | None = None
        self._channel: Any = None  # `events` is missing from the stubs of py-amqp
        self._poll = select.poll()
        self._sent = 0
        self._unconfirmed: set[int] = set()
        self._refused = 0
        self._returned = ""
        self._blocked = False

    def open(self, broker: dict[str, Any], deadline: float) -> None:
        """Connect, declare the topology and turn confirms on."""
        left = max(deadline - time.monotonic(), 0.001)
        self._connection = connection = amqp.Connection(
            **broker,
            connect_timeout=left,
            write_timeout=left,
            on_blocked=self._on_blocked,
            on_unblocked=self._on_unblocked,
        )
        connection.connect()
        self._limit(deadline)
        channel: Any = connection.channel()
        topology.declare(channel, exchange=self._exchange, queue=self._queue)
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)
        self._channel = channel
        self._poll.register(_socket_of(connection), select.POLLIN)

    def publish(self, events: Sequence[Encodable], deadline: float) -> None:
        """Send all, then wait for all confirms."""
        packs = packed(events)
        for start in range(0, len(packs), _LISTEN_EVERY):
            self._listen(deadline)
            self._limit(deadline)
            self._send(packs[start : start + _LISTEN_EVERY])
        failpoints.reach("relay.after_publish")
        while self._unconfirmed:
            self._drain(deadline)
        # A message that is returned is confirmed afterwards, so all returns are known here.
        if self._returned:
            raise PublishFailed(
                f"RabbitMQ could not route to queue {self._queue!r} from exchange "
                f"{self._exchange!r} ({self._returned}); the events are kept, and the next attempt "
                "declares the binding again"
            )
        if self._refused:
            raise PublishFailed(
                f"RabbitMQ refused {self._refused} of {len(packs)} messages with {len(events)} "
                f"events for queue {self._queue!r} (full, or without a majority of its replicas); "
                "they are kept"
            )

    def close(self) -> None:
        """Close the socket without waiting for an answer."""
        if self._connection is not None:
            with suppress(OSError):
                self._connection.collect()

    def abandon(self) -> None:
        """Close this process's descriptor only: a shutdown would cut off the parent."""
        connection = self._connection
        if connection is not None and connection.connected:
            transport = connection.transport
            with suppress(OSError):
                transport.sock.close()
            transport.sock = None
            transport.connected = False

    def _send(self, packs: Sequence[Pack]) -> None:
        """Send some in one write.

        basic_publish() would write each by itself, and read before every one, without bound where a
        frame's end does not come; _listen() does that in its place.
        """
        connection = _open(self._connection)
        frames = [
            published(
                self._channel.channel_id,
                exchange=self._exchange,
                routing_key=topology.routing_key(pack.customer),
                content_type=pack.content_type,
                message_id=pack.message_id,
                message_type=MESSAGE_TYPE,
                # AMQP's timestamps are whole seconds.
                timestamp=pack.metered_ms // 1000,
                body=pack.body,
                frame_max=connection.frame_max,
            )
            for pack in packs
        ]
        first, self._sent = self._sent + 1, self._sent + len(frames)
        self._unconfirmed.update(range(first, self._sent + 1))
        connection.transport.write(b"".join(frames))

    def _listen(self, deadline: float) -> None:
        """Read what has come, without waiting; wait where RabbitMQ has asked for a pause."""
        while self._blocked or self._poll.poll(0):
            self._drain(deadline)

    def _drain(self, deadline: float) -> None:
        """Handle what RabbitMQ says next, if it says something in a fraction of a second."""
        left = self._limit(deadline)
        if self._cancelled():
            raise PublishFailed("publishing was cancelled; the events are kept")
        with suppress(TimeoutError):
            _open(self._connection).drain_events(timeout=min(left, _SLICE_SECONDS))

    def _limit(self, deadline: float) -> float:
        """Bound each of the socket's next operations by what is left of the time."""
        left = self._left(deadline)
        _socket_of(_open(self._connection)).settimeout(left)
        return left

    def _left(self, deadline: float) -> float:
        """The seconds that are left.

        Raises:
            PublishFailed: Nothing is left.
        """
        left = deadline - time.monotonic()
        if left > 0:
            return left
        if self._blocked:
            raise PublishFailed(
                "RabbitMQ blocks publishers: it is short of memory or disk (see its alarms); the "
                "events are kept and will be sent when it unblocks"
            )
        raise PublishFailed(
            f"RabbitMQ left {len(self._unconfirmed)} messages unconfirmed within the time-out; all "
            "events of the batch are kept and will be sent again"
        )

    def _on_ack(self, delivery_tag: int, multiple: bool) -> None:
        self._confirm(delivery_tag, multiple=multiple)

    def _on_nack(self, delivery_tag: int, multiple: bool) -> None:
        self._refused += self._confirm(delivery_tag, multiple=multiple)

    def _confirm(self, delivery_tag: int, *, multiple: bool) -> int:
        if multiple:
            answered = {tag for tag in self._unconfirmed if tag <= delivery_tag}
        else:
            answered = {delivery_tag} & self._unconfirmed
        self._unconfirmed -= answered
        return len(answered)

    def _on_return(self, error: Exception, *_message: object) -> None:
        self._returned = str(error)[:200]

    def _on_blocked(self, _reason: str) -> None:
        self._blocked = True

    def _on_unblocked(self) -> None:
        self._blocked = False


def _share(deadline: float, among: int) -> float:
    now = time.monotonic()
    return now + (deadline - now) / among


def _connection_arguments(url: str) -> dict[str, Any]:
    """What py-amqp needs to know of a URL, which is read the way Celery reads it."""
    parts = parse_url(url)
    if parts["transport"] not in SCHEMES:
        raise ConfigurationError(
            "AMQP_URL", f"{parts['transport']}:// is not AMQP", "use amqp:// or amqps://"
        )
    secure = parts["transport"] == "amqps"
    host = parts["hostname"] or "localhost"
    arguments: dict[str, Any] = {
        "host": f"{host}:{parts['port'] or (5671 if secure else 5672)}",
        "userid": parts["userid"] or "guest",
        "password": parts["password"] or "guest",
        "virtual_host": parts["virtual_host"] or "/",
        "login_method": "PLAIN",
    }
    if secure:
        context = {"check_hostname": True, "cafile": parts.get("cacertfile")}
        arguments["ssl"] = {"context": context, "server_hostname": host}
    return arguments


def _open(connection: amqp.Connection | None) -> amqp.Connection:
    # Without this check py-amqp would connect again by itself, to a channel that it does not have.
    if connection is None or not connection.connected:
        raise PublishFailed("the connection to RabbitMQ was lost; the events are kept")
    return connection


def _socket_of(connection: amqp.Connection) -> Any:  # noqa: ANN401 - None only where not connected
    return connection.sock
