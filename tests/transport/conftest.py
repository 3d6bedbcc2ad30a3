"""Names, channels and clients of a test's own; none of them needs a database."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import amqp
import pytest
import redis
from amqp.exceptions import AMQPError
from kombu.utils.url import parse_url
from usage_support import Broker, Store

from billing.core.clock import ManualClock
from billing.devtools.embedded_servers import LocalServers
from billing.redis.keys import RedisKeys
from billing.transport.journal import Journal


@pytest.fixture
def broker(rabbitmq_url: str) -> Iterator[Broker]:
    """RabbitMQ with names that are deleted afterwards."""
    parts = parse_url(rabbitmq_url)
    host, port = parts["hostname"], parts["port"] or 5672
    own = f"wbtest.{secrets.token_hex(4)}"
    connection = amqp.Connection(
        f"{host}:{port}",
        userid=parts["userid"] or "guest",
        password=parts["password"] or "guest",
        virtual_host=parts["virtual_host"] or "/",
    )
    connection.connect()
    url = rabbitmq_url if parts["port"] else rabbitmq_url.replace(host, f"{host}:{port}")
    yield Broker(url, host, port, f"{own}.usage", f"{own}.usage.log", connection.channel())
    try:
        channel = connection.channel()
        for queue in (f"{own}.usage.log", f"{own}.usage.log.dead"):
            channel.queue_delete(queue)
        for exchange in (f"{own}.usage", f"{own}.usage.dead"):
            channel.exchange_delete(exchange)
    except AMQPError as error:
        pytest.fail(f"names of this test are left on the broker: {error}")
    connection.close()


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    """Redis under a prefix whose keys, and no others, are deleted afterwards."""
    prefix = f"wbtest.{secrets.token_hex(4)}"
    with redis.Redis.from_url(redis_url, socket_timeout=5) as client:
        yield Store(client, RedisKeys(prefix))
        for key in client.scan_iter(match=f"{prefix}:*", count=1000):
            client.unlink(key)


@pytest.fixture
def private_servers(pytestconfig: pytest.Config) -> Iterator[LocalServers]:
    """A server that a test may flush and stop, since nobody else uses it."""
    base = pytestconfig.rootpath / ".local" / "test"
    servers = LocalServers(base / f"own-{secrets.token_hex(3)}", durable=True)
    yield servers
    servers.remove()


@pytest.fixture
def private_redis_url(private_servers: LocalServers) -> str:
    return private_servers.valkey()


@pytest.fixture
def private_store(private_redis_url: str) -> Iterator[Store]:
    with redis.Redis.from_url(private_redis_url, socket_timeout=5) as client:
        yield Store(client, RedisKeys("wb"))


@pytest.fixture
def journal(tmp_path: Path, clock: ManualClock) -> Journal:
    return Journal(tmp_path / "journal", clock=clock)


@pytest.fixture
def spool(tmp_path: Path, clock: ManualClock) -> Journal:
    return Journal(tmp_path / "spool", clock=clock, fsync=True)
