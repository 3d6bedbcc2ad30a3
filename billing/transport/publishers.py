"""Publishing usage events so that "published" means "in the queue": the port and its factory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from billing.core.errors import ConfigurationError
from billing.transport.amqp_publisher import SCHEMES as AMQP_SCHEMES
from billing.transport.amqp_publisher import AmqpPublisher
from billing.transport.kombu_publisher import KombuPublisher
from billing.transport.settled_figures import Encodable

__all__ = ["AmqpPublisher", "KombuPublisher", "Publisher", "publisher_for"]

KOMBU_SCHEMES: Final = ("redis", "rediss", "redis+socket", "valkey", "valkeys", "valkey+socket")


class Publisher(Protocol):
    """Sends usage events to the queue that the fulfillment log is written from."""

    def publish(self, events: Sequence[Encodable]) -> None:
        """Send the events and return when every one of them is confirmed.

        Raises:
            PublishFailed: Not all were confirmed. Any subset may have arrived: keep all of them and
                repeat; the log drops duplicates.
        """
        ...

    def close(self) -> None:
        """Let go of the connection. A later ``publish`` makes a new one."""
        ...


def _never() -> bool:
    return False


def publisher_for(
    url: str,
    *,
    exchange: str,
    queue: str,
    timeout_seconds: float,
    cancelled: Callable[[], bool] = _never,
) -> Publisher:
    """The publisher for a broker's URL. Connects when it is first used.

    Args:
        url: ``amqp://`` or ``amqps://`` for RabbitMQ; ``redis://`` and its like for Kombu.
        exchange: The topic exchange of usage events.
        queue: The queue that the consumer reads.
        timeout_seconds: The longest that one ``publish`` waits.
        cancelled: Asked while waiting; true makes the ``publish`` in progress fail at once.

    Raises:
        ConfigurationError: The URL names no broker that Weighbridge can publish to.
    """
    scheme, mark, _ = url.partition("://")
    if scheme in KOMBU_SCHEMES:
        return KombuPublisher(url, exchange=exchange, queue=queue, timeout_seconds=timeout_seconds)
    if scheme in AMQP_SCHEMES:
        return AmqpPublisher(
            url,
            exchange=exchange,
            queue=queue,
            timeout_seconds=timeout_seconds,
            cancelled=cancelled,
        )
    raise ConfigurationError(
        "AMQP_URL",
        # Where there is no scheme, all of it may be a password.
        f"{scheme if mark else '…'}:// is not a broker's URL",
        "use amqp:// or amqps:// for RabbitMQ",
    )
