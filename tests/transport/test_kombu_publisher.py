"""The demo's broker: Kombu's transport over a private Redis or Valkey."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import kombu
import pytest
import redis
from kombu.utils.url import parse_url
from support import TcpProxy, make_event

from billing.core.errors import ConfigurationError, PublishFailed
from billing.core.usage_event import UsageEvent
from billing.core.usage_event_json import from_wire
from billing.devtools.embedded_servers import LocalServers
from billing.transport.amqp_publisher import AmqpPublisher
from billing.transport.kombu_publisher import KombuPublisher
from billing.transport.publishers import publisher_for


@pytest.fixture
def publisher(private_redis_url: str) -> Iterator[KombuPublisher]:
    publisher = KombuPublisher(private_redis_url, exchange="x", queue="q", timeout_seconds=5)
    yield publisher
    publisher.close()


def events(count: int) -> list[UsageEvent]:
    return [make_event() for _ in range(count)]


def taken(url: str) -> list[UsageEvent]:
    found = []
    with kombu.Connection(url) as connection:
        channel = connection.channel()
        while (message := channel.basic_get("q", no_ack=True)) is not None:
            found.append(from_wire(message.body))
    return found


def test_published_means_in_the_queue(publisher: KombuPublisher, private_redis_url: str):
    sent = events(120)
    publisher.publish(sent)
    assert sorted(taken(private_redis_url), key=lambda e: e.id) == sorted(sent, key=lambda e: e.id)


def test_an_event_reaches_the_queue_although_redis_lost_its_bindings(
    publisher: KombuPublisher, private_redis_url: str
):
    publisher.publish(events(1))
    redis.Redis.from_url(private_redis_url).flushall()
    publisher.publish(events(2))
    assert len(taken(private_redis_url)) == 2


def test_a_server_that_goes_away_is_a_failure_and_it_goes_on_when_it_is_back(
    private_redis_url: str,
):
    parts = parse_url(private_redis_url)
    with TcpProxy(parts["hostname"], parts["port"]) as proxy:
        url = private_redis_url.replace(f":{parts['port']}", f":{proxy.port}")
        publisher = KombuPublisher(url, exchange="x", queue="q", timeout_seconds=1)
        publisher.publish(events(1))
        for trouble in (proxy.silence, proxy.cut):
            trouble()
            started = time.monotonic()
            with pytest.raises(PublishFailed):
                publisher.publish(events(1))
            assert time.monotonic() - started < 5
        proxy.restore()
        sent = events(2)
        publisher.publish(sent)
        assert {e.id for e in sent} <= {e.id for e in taken(private_redis_url)}


def test_a_server_that_says_nothing_is_a_failure_in_time():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        publisher = KombuPublisher(url, exchange="x", queue="q", timeout_seconds=0.5)
        started = time.monotonic()
        with pytest.raises(PublishFailed):
            publisher.publish(events(1))
        assert time.monotonic() - started < 5


def test_a_slow_server_is_a_failure_in_time_however_many_events(private_servers: LocalServers):
    direct = private_servers.valkey()
    parts = parse_url(direct)
    with TcpProxy(parts["hostname"], parts["port"]) as proxy:
        url = direct.replace(f":{parts['port']}", f":{proxy.port}")
        publisher = KombuPublisher(url, exchange="x", queue="q", timeout_seconds=1)
        publisher.publish(events(1))
        proxy.latency_seconds = 0.05
        started = time.monotonic()
        with pytest.raises(PublishFailed, match="of 500 events"):
            publisher.publish(events(500))
        assert time.monotonic() - started < 3


def test_a_forked_child_publishes_on_a_connection_of_its_own(
    publisher: KombuPublisher, private_redis_url: str
):
    publisher.publish(events(1))
    child = os.fork()
    if child == 0:
        try:
            publisher.publish(events(3))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    publisher.publish(events(1))
    assert len(taken(private_redis_url)) == 5


def test_publishing_nothing_connects_to_nothing():
    KombuPublisher("redis://127.0.0.1:1/0", exchange="x", queue="q", timeout_seconds=1).publish([])


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("amqp://h//", AmqpPublisher),
        ("amqps://h//", AmqpPublisher),
        ("pyamqp://h//", AmqpPublisher),
        ("redis://h/0", KombuPublisher),
        ("rediss://h/0", KombuPublisher),
        ("redis+socket:///run/v.sock", KombuPublisher),
    ],
)
def test_a_url_chooses_its_publisher(url: str, kind: type):
    assert type(publisher_for(url, exchange="x", queue="q", timeout_seconds=1)) is kind


@pytest.mark.parametrize("url", ["sqs://", "memory://", "127.0.0.1:5672", ""])
def test_any_other_url_is_a_configuration_error(url: str):
    with pytest.raises(ConfigurationError, match="AMQP_URL"):
        publisher_for(url, exchange="x", queue="q", timeout_seconds=1)


def test_what_is_no_url_at_all_is_not_shown_since_it_may_be_a_password():
    with pytest.raises(ConfigurationError) as refused:
        publisher_for("guest:hunter2@broker", exchange="x", queue="q", timeout_seconds=1)
    assert "hunter2" not in str(refused.value)
