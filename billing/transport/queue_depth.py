"""How many messages a queue holds, asked without making the queue; RabbitMQ or Kombu's Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from kombu import Connection
from kombu.exceptions import OperationalError

from billing.core.errors import WeighbridgeError, first_line

_CONNECT_SECONDS: Final = 3
_NOT_FOUND: Final = "404"


class BrokerUnavailable(WeighbridgeError):  # noqa: N818 - as QuotaUnavailable
    """The broker gave no answer."""


class QueueDepth(NamedTuple):
    """Messages that are ready, and consumers, of a queue; both 0 where there is no such queue."""

    ready: int
    consumers: int
    exists: bool = True


NO_QUEUE: Final = QueueDepth(ready=0, consumers=0, exists=False)
"""Nothing was published yet: publishers and consumers declare the queue when they start."""


@contextmanager
def open_broker(url: str) -> Iterator[Any]:
    """A short connection to the broker.

    Args:
        url: ``amqp://`` (RabbitMQ) or ``redis://`` (Kombu's Redis transport).

    Raises:
        BrokerUnavailable: It cannot be reached, or fails while the block asks it.
    """
    connection: Any = Connection(url, connect_timeout=_CONNECT_SECONDS)
    errors = (*connection.connection_errors, *connection.channel_errors)
    try:
        with connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_CONNECT_SECONDS)
            yield connection
    except (*errors, OperationalError, OSError) as error:
        raise BrokerUnavailable(first_line(error)) from error


def depth_of(connection: Any, queue: str) -> QueueDepth:  # noqa: ANN401 - kombu ships no types
    """Depth of a queue on an open connection; ``NO_QUEUE`` where there is none.

    Raises:
        Exception: One of the connection's ``channel_errors``, where the broker refuses to say.
    """
    channel = connection.channel()
    try:
        found = channel.queue_declare(queue=queue, passive=True)
    except connection.channel_errors as error:
        # A refused declaration closes an AMQP channel.
        if str(getattr(error, "reply_code", "")) != _NOT_FOUND:
            raise
        return NO_QUEUE
    channel.close()
    return QueueDepth(int(found.message_count), int(found.consumer_count))


def queue_depth(url: str, queue: str) -> QueueDepth | None:
    """Depth of a queue of the broker at ``url``; None where the broker does not say."""
    try:
        with open_broker(url) as connection:
            return depth_of(connection, queue)
    except BrokerUnavailable:
        return None
