"""The same consumer over Kombu's Redis transport, for machines without RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import redis
import sqlalchemy as sa
from consuming import (
    Broken,
    Count,
    drain,
    make_consumer,
)
from kombu import Connection
from support import add_sku, make_event

from billing.core.usage_event import DeadReason
from billing.settings import Settings
from billing.transport import topology
from billing.usage_log.dead_letters import DeadLetters
from billing.usage_log.log_writer import LogWriter

pytestmark = pytest.mark.usefixtures("catalogue")


@pytest.fixture
def over_redis(
    redis_url: str, settings: Settings, redis_client: redis.Redis
) -> Callable[[], Connection]:
    """Connections of Kombu's Redis transport, under the test's own prefix."""
    del redis_client  # deletes the keys afterwards
    options = {"global_keyprefix": f"{settings.redis_prefix}:"}
    return lambda: Connection(redis_url, transport_options=options)


def put_over_redis(connect: Callable[[], Connection], settings: Settings, *bodies: bytes) -> None:
    with connect() as connection, connection.channel() as channel:
        topology.declare(
            cast("topology.Channel", channel),
            exchange=settings.usage_exchange,
            queue=settings.usage_queue,
        )
        with connection.Producer(channel) as producer:
            for body in bodies:
                producer.publish(
                    body,
                    exchange=settings.usage_exchange,
                    routing_key=topology.routing_key("acme"),
                    content_type="application/json",
                    content_encoding="utf-8",
                )


def test_the_redis_transport_passes_the_same_messages_once(
    over_redis: Callable[[], Connection],
    settings: Settings,
    writer: LogWriter,
    engine: sa.Engine,
    logged: Count,
) -> None:
    event = make_event(subject="ä")
    put_over_redis(
        over_redis,
        settings,
        event.to_wire(),
        b"\xff{",
        *(make_event().to_wire() for _ in range(60)),
    )
    done = drain(make_consumer(settings, writer, over_redis, batch=25))
    assert (done.inserted, done.dead, logged()) == (61, {DeadReason.NOT_JSON: 1}, 61)
    assert DeadLetters(engine).show(DeadLetters(engine).list()[0].id).body == b"\xff{"
    again = drain(make_consumer(settings, writer, over_redis))
    assert again.batches == 0


def test_over_redis_too_a_batch_that_was_not_written_comes_back(
    over_redis: Callable[[], Connection], settings: Settings, writer: LogWriter, engine: sa.Engine
) -> None:
    put_over_redis(over_redis, settings, make_event(sku="later", line="later").to_wire())
    with pytest.raises(ZeroDivisionError):
        drain(make_consumer(settings, Broken().seen_by(writer), over_redis))
    add_sku(engine, "later")
    assert drain(make_consumer(settings, writer, over_redis)).inserted == 1
