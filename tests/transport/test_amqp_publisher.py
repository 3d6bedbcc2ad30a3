"""Confirmed means in the queue: AmqpPublisher on a real RabbitMQ and a bad network."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from support import TcpProxy, eventually, make_event
from usage_support import Broker, body_of

from billing.core.errors import ConfigurationError, PublishFailed
from billing.core.usage_event import UsageEvent
from billing.core.usage_event_json import from_wire
from billing.transport import topology
from billing.transport.amqp_publisher import AmqpPublisher, _connection_arguments
from billing.transport.message_batch import unpacked

BLOCKED = struct.pack(">BHIHHB3sB", 1, 0, 8, 10, 60, 3, b"low", 0xCE)
UNBLOCKED = struct.pack(">BHIHHB", 1, 0, 4, 10, 61, 0xCE)


def events(count: int) -> list[UsageEvent]:
    return [make_event(customer=f"customer-{number % 7}") for number in range(count)]


def messages(count: int) -> list[UsageEvent]:
    """Events that need a message each."""
    return [make_event(customer=f"customer-{number}") for number in range(count)]


def ids(sent: list[UsageEvent]) -> set[str]:
    return {event.task_id for event in sent}


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1200])
@pytest.mark.parametrize("of", [events, messages])
def test_confirmed_means_in_the_queue(
    broker: Broker, count: int, of: Callable[[int], list[UsageEvent]]
):
    sent = of(count)
    broker.publisher().publish(sent)
    assert sorted(broker.take(), key=lambda e: e.id) == sorted(sent, key=lambda e: e.id)


def test_publishing_nothing_connects_to_nothing():
    nowhere = AmqpPublisher("amqp://127.0.0.1:1//", exchange="x", queue="q", timeout_seconds=1)
    nowhere.publish([])


def test_a_message_says_what_it_is(broker: Broker):
    event = make_event()
    broker.publisher().publish([event])
    (message,) = broker.take_messages()
    assert message.properties["message_id"] == str(event.id)
    assert message.properties["content_type"] == "application/json"
    assert message.properties["type"] == "usage.event"
    assert message.properties["delivery_mode"] == 2
    assert datetime.fromtimestamp(message.properties["timestamp"], UTC) == event.metered_at


def test_a_customers_events_share_a_message_that_says_so(broker: Broker):
    acme, globex = ([make_event(customer=name) for _ in range(5)] for name in ("acme", "globex"))
    broker.publisher().publish([each for pair in zip(acme, globex, strict=True) for each in pair])
    of_acme, of_globex = broker.take_messages()
    assert of_acme.properties["content_type"] == "application/json-seq"
    assert of_acme.properties["message_id"] == str(acme[0].id)
    assert of_acme.delivery_info["routing_key"] == topology.routing_key("acme")
    assert [from_wire(wire) for wire in unpacked(body_of(of_acme))] == acme
    assert [from_wire(wire) for wire in unpacked(body_of(of_globex))] == globex


def test_an_unroutable_event_is_a_failure_and_the_next_attempt_heals_the_binding(broker: Broker):
    publisher = broker.publisher()
    publisher.publish(events(1))
    broker.take()
    broker.channel.queue_unbind(broker.queue, broker.exchange, topology.BINDING)
    with pytest.raises(PublishFailed, match=broker.queue) as failure:
        publisher.publish(events(3))
    assert broker.exchange in str(failure.value)
    assert broker.take() == []

    publisher.publish(events(3))
    assert len(broker.take()) == 3


def test_an_exchange_that_is_gone_is_a_failure_and_the_next_attempt_makes_it_again(broker: Broker):
    publisher = broker.publisher()
    publisher.publish(events(1))
    broker.channel.exchange_delete(broker.exchange)
    with pytest.raises(PublishFailed, match="NOT_FOUND"):
        publisher.publish(events(3))
    publisher.publish(events(3))
    assert len(broker.take()) == 4


def test_a_full_queue_refuses_and_that_is_a_failure(broker: Broker):
    publisher = broker.publisher()
    publisher.publish(events(1))
    # A second queue on the same exchange that takes two messages and refuses the rest.
    small = f"{broker.queue}.small"
    broker.channel.queue_declare(
        small,
        durable=False,
        auto_delete=False,
        exclusive=True,
        arguments={"x-max-length": 2, "x-overflow": "reject-publish"},
    )
    broker.channel.queue_bind(small, broker.exchange, topology.BINDING)
    with pytest.raises(PublishFailed, match="refused") as failure:
        publisher.publish(events(20))
    assert "of 7 messages with 20 events" in str(failure.value)
    broker.channel.queue_delete(small)
    publisher.publish(events(20))


def test_a_queue_with_other_arguments_is_a_failure_that_says_so(broker: Broker):
    broker.channel.queue_declare(broker.queue, durable=True, auto_delete=False)
    with pytest.raises(PublishFailed, match="inequivalent arg"):
        broker.publisher().publish(events(1))


def test_wrong_credentials_are_a_failure(broker: Broker):
    url = broker.url.replace("guest:guest@", "guest:wrong@")
    if url == broker.url:
        url = f"amqp://nobody:wrong@{broker.host}:{broker.port}//"
    publisher = AmqpPublisher(url, exchange=broker.exchange, queue=broker.queue, timeout_seconds=5)
    with pytest.raises(PublishFailed, match="ACCESS_REFUSED"):
        publisher.publish(events(1))


def test_a_refused_connection_is_a_failure_at_once():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    publisher = AmqpPublisher(
        f"amqp://127.0.0.1:{port}//", exchange="x", queue="q", timeout_seconds=5
    )
    assert took(lambda: fails(publisher)) < 1


def test_a_server_that_accepts_and_says_nothing_is_a_failure_in_time():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        publisher = AmqpPublisher(
            f"amqp://127.0.0.1:{listener.getsockname()[1]}//",
            exchange="x",
            queue="q",
            timeout_seconds=0.5,
        )
        assert took(lambda: fails(publisher)) < 1.5


def of_several(broker: Broker, *before: str) -> AmqpPublisher:
    return AmqpPublisher(
        ";".join([*before, broker.url]),
        exchange=broker.exchange,
        queue=broker.queue,
        timeout_seconds=3,
    )


def test_the_next_broker_of_the_list_is_tried_at_once(broker: Broker):
    publisher = of_several(broker, "amqp://127.0.0.1:1//", "amqp://127.0.0.1:2//")
    publisher.publish(events(2))
    publisher.publish(events(2))
    assert len(broker.take()) == 4


def test_a_broker_that_says_nothing_leaves_time_for_the_next(broker: Broker):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        publisher = of_several(broker, f"amqp://127.0.0.1:{listener.getsockname()[1]}//")
        assert took(lambda: publisher.publish(events(2))) < 3
    assert len(broker.take()) == 2


def test_where_no_broker_of_the_list_answers_it_is_a_failure_in_time():
    publisher = AmqpPublisher(
        "amqp://127.0.0.1:1//;amqp://127.0.0.1:2//", exchange="x", queue="q", timeout_seconds=1
    )
    assert took(lambda: fails(publisher)) < 2


def test_a_connection_cut_between_batches_is_a_failure_and_the_next_attempt_connects(
    broker: Broker,
):
    with TcpProxy(broker.host, broker.port) as proxy:
        publisher = broker.publisher(port=proxy.port)
        publisher.publish(events(5))
        proxy.cut()
        sent = events(5)
        fails(publisher, sent)
        proxy.restore()
        publisher.publish(sent)
        assert ids(sent) <= ids(broker.take())


def test_a_connection_cut_in_the_middle_of_a_batch_is_a_failure_in_time(broker: Broker):
    with TcpProxy(broker.host, broker.port) as proxy:
        publisher = broker.publisher(port=proxy.port, timeout_seconds=5)
        publisher.publish(events(1))
        proxy.latency_seconds = 0.05
        sent = events(2000)
        threading.Timer(0.2, proxy.cut).start()
        assert took(lambda: fails(publisher, sent)) < 5
        proxy.restore()
        proxy.latency_seconds = 0
        publisher.publish(sent)
        assert ids(sent) <= ids(broker.take())


def test_a_half_open_connection_is_a_failure_in_time_and_its_late_confirms_count_for_nothing(
    broker: Broker,
):
    with TcpProxy(broker.host, broker.port) as proxy:
        publisher = broker.publisher(port=proxy.port, timeout_seconds=1)
        publisher.publish(events(1))
        proxy.silence()
        assert took(lambda: fails(publisher, events(500))) < 2
        proxy.restore()
        sent = events(3)
        publisher.publish(sent)
        assert ids(sent) <= ids(broker.take())


def test_a_batch_larger_than_any_buffer_does_not_wait_for_ever_to_be_written(broker: Broker):
    with TcpProxy(broker.host, broker.port) as proxy:
        publisher = broker.publisher(port=proxy.port, timeout_seconds=1)
        publisher.publish(events(1))
        proxy.silence()
        large = [make_event(subject="x" * 500, task_name="y" * 500) for _ in range(20_000)]
        assert took(lambda: fails(publisher, large)) < 3


def test_a_blocked_broker_is_waited_for_and_then_named(broker: Broker):
    with InjectingProxy(broker.host, broker.port) as proxy:
        publisher = broker.publisher(port=proxy.port, timeout_seconds=1)
        publisher.publish(events(1))
        proxy.say(BLOCKED)
        with pytest.raises(PublishFailed, match="blocks publishers"):
            publisher.publish(messages(100))
        assert len(broker.take()) < 101


def test_a_broker_that_unblocks_in_time_gets_the_batch(broker: Broker):
    with InjectingProxy(broker.host, broker.port) as proxy:
        publisher = broker.publisher(port=proxy.port, timeout_seconds=5)
        publisher.publish(events(1))
        proxy.say(BLOCKED)
        threading.Timer(0.3, proxy.say, [UNBLOCKED]).start()
        assert 0.25 < took(lambda: publisher.publish(messages(100))) < 3
        assert len(broker.take()) == 101


def test_a_frame_whose_end_never_comes_is_a_failure_in_time(broker: Broker):
    with InjectingProxy(broker.host, broker.port) as proxy:
        publisher = broker.publisher(port=proxy.port, timeout_seconds=1)
        publisher.publish(events(1))
        proxy.say(BLOCKED[:9])
        assert took(lambda: fails(publisher, events(100))) < 2


def test_a_cancelled_publish_fails_within_a_second_however_long_its_time_out(broker: Broker):
    with TcpProxy(broker.host, broker.port) as proxy:
        stop = threading.Event()
        publisher = broker.publisher(port=proxy.port, timeout_seconds=30, cancelled=stop.is_set)
        publisher.publish(events(1))
        proxy.silence()
        threading.Timer(0.2, stop.set).start()
        assert took(lambda: fails(publisher, events(10))) < 1.2


def test_an_exception_from_outside_in_the_middle_of_a_batch_closes_the_connection(broker: Broker):
    """As Celery's soft time limit does, between any two instructions."""
    strikes = iter([False, True])

    def struck() -> bool:
        if next(strikes, False):
            raise KeyboardInterrupt
        return False

    publisher = broker.publisher(cancelled=struck)
    publisher.publish(events(1))
    with pytest.raises(KeyboardInterrupt):
        publisher.publish(events(10))
    sent = events(10)
    publisher.publish(sent)
    assert ids(sent) <= ids(broker.take())


def test_threads_that_share_a_publisher_take_turns(broker: Broker):
    publisher = broker.publisher()
    batches = [events(40) for _ in range(8)]
    threads = [threading.Thread(target=publisher.publish, args=[batch]) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert ids(broker.take()) == {task_id for batch in batches for task_id in ids(batch)}


def test_a_thread_does_not_wait_for_another_ones_publish_for_ever(broker: Broker):
    with TcpProxy(broker.host, broker.port) as proxy:
        publisher = broker.publisher(port=proxy.port, timeout_seconds=1)
        publisher.publish(events(1))
        proxy.silence()
        threads = [threading.Thread(target=fails, args=[publisher]) for _ in range(4)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert time.monotonic() - started < 5


def test_a_forked_child_publishes_and_exits_without_disturbing_its_parent(broker: Broker):
    publisher = broker.publisher()
    publisher.publish(events(1))
    from_child, from_parent = events(20), events(20)
    child = os.fork()
    if child == 0:
        try:
            publisher.publish(from_child)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    session = publisher._slots.get().session
    publisher.publish(from_parent)
    assert publisher._slots.get().session is session, "the parent had to connect again"
    assert ids(from_child) | ids(from_parent) <= ids(broker.take())


def test_a_child_forked_while_another_thread_publishes_is_not_locked_out(broker: Broker):
    publisher = broker.publisher()
    publisher.publish(events(1))
    lock = publisher._slots.get().lock
    with lock:
        child = os.fork()
        if child == 0:
            try:
                publisher.publish(events(5))
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(broker.take()) == 6


def test_a_closed_publisher_connects_again(broker: Broker):
    publisher = broker.publisher()
    publisher.publish(events(1))
    publisher.close()
    publisher.close()
    publisher.publish(events(1))
    assert len(broker.take()) == 2


@pytest.mark.parametrize(
    ("url", "host", "virtual_host", "userid"),
    [
        ("amqp://", "localhost:5672", "/", "guest"),
        ("amqp://h//", "h:5672", "/", "guest"),
        ("amqp://u:p@h:1/v", "h:1", "v", "u"),
        ("pyamqp://u:p@h/%2Fv", "h:5672", "/v", "u"),
        ("amqps://u%40x:p@h/v", "h:5671", "v", "u@x"),
    ],
)
def test_a_url_is_read_as_celery_reads_it(url: str, host: str, virtual_host: str, userid: str):
    arguments = _connection_arguments(url)
    assert (arguments["host"], arguments["virtual_host"], arguments["userid"]) == (
        host,
        virtual_host,
        userid,
    )


def test_tls_always_verifies_the_certificate_and_the_name():
    tls = _connection_arguments("amqps://h/v?cacertfile=/etc/own.pem")["ssl"]
    assert tls == {
        "context": {"check_hostname": True, "cafile": "/etc/own.pem"},
        "server_hostname": "h",
    }
    assert "ssl" not in _connection_arguments("amqp://h/v")


def test_another_scheme_is_a_configuration_error():
    with pytest.raises(ConfigurationError, match="amqps"):
        AmqpPublisher("http://h", exchange="x", queue="q", timeout_seconds=1)


def fails(publisher: AmqpPublisher, sent: list[UsageEvent] | None = None) -> None:
    with pytest.raises(PublishFailed):
        publisher.publish(sent or events(1))


def took(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


class InjectingProxy(TcpProxy):
    """Can put words into the broker's mouth, between two of its frames."""

    def say(self, frame: bytes) -> None:
        def client_ends() -> list[socket.socket]:
            with self._lock:
                return [end for end in self._open if end.getsockname()[1] == self.port]

        (end,) = eventually(client_ends)
        end.sendall(frame)
