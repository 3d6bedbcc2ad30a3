"""Exchanges and queues of usage events, and how they are bound. Declaring twice changes nothing.

::

    exchange (topic) --usage.#--> queue (quorum)
                                 '--dead letters--> exchange.dead (fanout) --> queue.dead (quorum)

The publisher and the consumer both declare all of it, so either may start first and an event always
has somewhere to go. RabbitMQ refuses a declaration whose arguments differ from what is there; the
arguments below are therefore part of the contract between versions of Weighbridge.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

BINDING: Final = "usage.#"
DELIVERY_LIMIT: Final = 20
"""Deliveries of one message after which it is dead-lettered. RabbitMQ 4 has this limit by default
and 3.10 has none; said here, both behave alike
(https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling)."""

_MAX_ROUTING_KEY: Final = 255  # AMQP's short string, in bytes


class Channel(Protocol):
    """What a declaration needs; channels of py-amqp and of Kombu, real or virtual, have it.

    Their parameters differ in what Weighbridge does not use, hence ``Any``.
    """

    def exchange_declare(self, *arguments: Any, **named: Any) -> object:  # noqa: ANN401 - see the class
        """Make an exchange."""
        ...

    def queue_declare(self, *arguments: Any, **named: Any) -> object:  # noqa: ANN401 - see the class
        """Make a queue."""
        ...

    def queue_bind(self, *arguments: Any, **named: Any) -> object:  # noqa: ANN401 - see the class
        """Bind a queue to an exchange."""
        ...


def declare(channel: Channel, *, exchange: str, queue: str) -> None:
    """Declare everything an event passes through. Idempotent.

    Kombu's Redis transport takes the same calls and ignores the arguments that only RabbitMQ knows.

    Args:
        channel: An open channel of py-amqp or Kombu.
        exchange: Name of the topic exchange that events are published to.
        queue: Name of the quorum queue that the consumer reads.

    Raises:
        amqp.exceptions.PreconditionFailed: One of them exists with other arguments.
    """
    dead_letter_exchange = dead_exchange(exchange)
    dead_letter_queue = dead_queue(queue)
    channel.exchange_declare(exchange=exchange, type="topic", durable=True, auto_delete=False)
    channel.exchange_declare(
        exchange=dead_letter_exchange, type="fanout", durable=True, auto_delete=False
    )
    # The dead-letter queue first: a message that is dead-lettered meanwhile has somewhere to go.
    _declare_queue(channel, dead_letter_queue, {"x-queue-type": "quorum"})
    channel.queue_bind(queue=dead_letter_queue, exchange=dead_letter_exchange, routing_key="")
    _declare_queue(channel, queue, _queue_arguments(dead_letter_exchange))
    channel.queue_bind(queue=queue, exchange=exchange, routing_key=BINDING)


def dead_exchange(exchange: str) -> str:
    """The name of the exchange that dead letters of the usage queue go to."""
    return f"{exchange}.dead"


def dead_queue(queue: str) -> str:
    """The name of the queue that keeps what the broker itself dead-lettered."""
    return f"{queue}.dead"


def routing_key(customer: str) -> str:
    """The routing key of a customer's events; always matches ``BINDING`` and always fits AMQP."""
    key = f"usage.{customer}".encode()[:_MAX_ROUTING_KEY]
    return key.decode(errors="ignore")


def _declare_queue(channel: Channel, name: str, arguments: dict[str, object]) -> None:
    channel.queue_declare(
        queue=name, durable=True, exclusive=False, auto_delete=False, arguments=arguments
    )


def _queue_arguments(dead_letter_exchange: str) -> dict[str, object]:
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": dead_letter_exchange,
        # at-least-once keeps a message until the dead-letter queue has confirmed it; RabbitMQ falls
        # back to at-most-once, silently, unless the overflow behaviour is reject-publish.
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
