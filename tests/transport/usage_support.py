"""RabbitMQ and Redis as the tests of usage see them: with names of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from billing.core.errors import PublishFailed
from billing.core.usage_event import UsageEvent
from billing.core.usage_event_json import from_wire
from billing.redis.keys import RedisKeys, shard_of
from billing.transport import topology
from billing.transport.amqp_publisher import AmqpPublisher
from billing.transport.message_batch import unpacked
from billing.transport.outbox import RedisOutbox


@dataclass
class Broker:
    """RabbitMQ, with an exchange and a queue of the test's own."""

    url: str
    host: str
    port: int
    exchange: str
    queue: str
    channel: Any

    def url_through(self, port: int) -> str:
        """The same broker behind a proxy's port."""
        return self.url.replace(f":{self.port}", f":{port}")

    def publisher(
        self,
        *,
        port: int | None = None,
        timeout_seconds: float = 10,
        cancelled: Callable[[], bool] = bool,
    ) -> AmqpPublisher:
        url = self.url if port is None else self.url_through(port)
        return AmqpPublisher(
            url,
            exchange=self.exchange,
            queue=self.queue,
            timeout_seconds=timeout_seconds,
            cancelled=cancelled,
        )

    def declare(self) -> None:
        topology.declare(self.channel, exchange=self.exchange, queue=self.queue)

    def take(self) -> list[UsageEvent]:
        """All events in the queue, which is empty afterwards."""
        return [
            from_wire(wire)
            for message in self.take_messages()
            for wire in unpacked(body_of(message))
        ]

    def take_messages(self) -> list[Any]:
        messages = []
        while (message := self.channel.basic_get(self.queue, no_ack=True)) is not None:
            messages.append(message)
        return messages

    def taken_until(self, enough: Callable[[set[str]], bool]) -> Callable[[], set[str]]:
        """A question for ``eventually``: the task ids seen so far, once they are enough."""
        # A queue that a publisher has not declared yet would cost the channel at the first look.
        self.declare()
        seen: set[str] = set()

        def ask() -> set[str]:
            seen.update(event.task_id for event in self.take())
            return seen if enough(seen) else set()

        return ask


def body_of(message: Any) -> bytes:
    """A message's body; py-amqp makes text of it where it can."""
    body = message.body
    return body.encode() if isinstance(body, str) else bytes(body)


@dataclass
class Store:
    """Redis with a prefix of the test's own, seen as an outbox."""

    client: redis.Redis
    keys: RedisKeys

    @property
    def outbox(self) -> RedisOutbox:
        """A new one each time, as another process would have."""
        return RedisOutbox(self.client, self.keys)

    def put(self, event: UsageEvent, **figures: int) -> str:
        """Append as ``settle`` does; returns the entry's id."""
        fields = {
            "e": event.to_wire(),
            "a": figures.get("amount", event.amount_microcredits),
            "s": figures.get("shortfall", 0),
            "p": figures.get("epoch", event.quota_epoch),
        }
        stream = self.keys.out(shard_of(event.customer))
        entry_id: bytes = self.client.xadd(stream, fields)  # type: ignore[assignment]  # not asyncio
        return entry_id.decode()


class RecordingPublisher:
    """A publisher that confirms, and remembers what; until told to fail."""

    def __init__(self) -> None:
        self.got: list[UsageEvent] = []
        self.largest = 0
        self.failing = False
        self.closed = False

    def publish(self, events: Sequence[UsageEvent]) -> None:
        if self.failing:
            raise PublishFailed
        self.largest = max(self.largest, len(events))
        self.got.extend(from_wire(event.to_wire()) for event in events)

    def close(self) -> None:
        self.closed = True

    @property
    def task_ids(self) -> set[str]:
        return {event.task_id for event in self.got}
