"""Task events are sent without confirms and several in a message, and tasks with confirms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker.consumer import Consumer
from support import eventually

from billing.settings import Settings
from workers import monitoring_events as events
from workers.app import make_app
from workers.metering import Metering
from workers.monitoring_events import GATHER_EVENTS, GATHER_SECONDS, FlushEventsStep

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def app(settings: Settings, rabbitmq_url: str) -> Iterator[Celery]:
    app = make_app(settings)
    assert rabbitmq_url.startswith("amqp")
    yield app
    app.close()


def waits_for_confirms(channel: Any) -> bool:
    return bool(channel.basic_publish == channel.basic_publish_confirm)


def test_events_of_a_worker_are_not_confirmed_and_arrive(app: Celery) -> None:
    with app.connection_for_read() as reading:
        queue = app.events.Receiver(reading).queue(reading.default_channel)
        queue.declare()
        connection = app.connection_for_write().ensure_connection()
        with app.events.Dispatcher(connection, hostname="node") as dispatcher:
            assert not waits_for_confirms(dispatcher.producer.channel)
            dispatcher.send("worker-heartbeat", freq=7)
            message = eventually(lambda: queue.get(no_ack=True))
    assert message.payload["freq"] == 7


def test_one_that_connects_again_does_not_confirm_either(app: Celery) -> None:
    connection = app.connection_for_write().ensure_connection()
    with app.events.Dispatcher(connection, hostname="node"):
        connection.close()
        assert not waits_for_confirms(connection.ensure_connection().default_channel)


def test_who_lends_its_channel_keeps_its_confirms(app: Celery) -> None:
    with app.events.default_dispatcher(hostname="node") as dispatcher:
        assert waits_for_confirms(dispatcher.channel)
    with app.producer_or_acquire() as producer:
        assert waits_for_confirms(producer.channel)


def test_an_app_with_events_of_its_own_keeps_them(settings: Settings) -> None:
    app = Celery("shop", events="shop.events:Mine", set_as_current=False)
    Metering(app, settings)
    assert app.events_cls == "shop.events:Mine"
    assert FlushEventsStep not in app.steps["consumer"]


class Hub:
    """Stands for the event loop: calls are made when the test says so."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], object]] = []
        self.later: list[tuple[float, Callable[[], object]]] = []

    def call_soon(self, call: Callable[[], object]) -> None:
        self.soon.append(call)

    def call_later(self, seconds: float, call: Callable[[], object]) -> None:
        self.later.append((seconds, call))

    def turn(self) -> None:
        calls, self.soon = self.soon, []
        for call in calls:
            call()

    def fire(self) -> None:
        """The timers."""
        calls, self.later = self.later, []
        for _, call in calls:
            call()


class LoopingConsumer:
    """Of a worker with an event loop, as far as its dispatcher knows it."""

    def __init__(self) -> None:
        self.hub = Hub()

    def on_send_event_buffered(self) -> None:
        raise AssertionError("Celery's way: a flush at every turn of the loop")


class Reader:
    """Reads what arrives for whoever watches task events."""

    def __init__(self, app: Celery, connection: Any) -> None:
        self._queue = app.events.Receiver(connection, routing_key="task.#").queue(
            connection.default_channel
        )
        self._queue.declare()

    def message(self) -> list[str]:
        """The names of the tasks in the next message."""
        message = eventually(lambda: self._queue.get(no_ack=True))
        return [event["uuid"] for event in message.payload]

    def is_empty(self) -> bool:
        return bool(self._queue.queue_declare(passive=True).message_count == 0)


@pytest.fixture
def consumer() -> LoopingConsumer:
    return LoopingConsumer()


@pytest.fixture
def dispatcher(app: Celery, consumer: LoopingConsumer) -> Iterator[Any]:
    connection = app.connection_for_write()
    with new_dispatcher(app, connection, consumer) as dispatcher:
        yield dispatcher
    connection.close()


def new_dispatcher(app: Celery, connection: Any, consumer: LoopingConsumer) -> Any:
    return app.events.Dispatcher(
        connection,
        hostname="node",
        buffer_group=["task"],
        on_send_buffered=consumer.on_send_event_buffered,
    )


@pytest.fixture
def reader(app: Celery) -> Iterator[Reader]:
    with app.connection_for_read() as reading:
        yield Reader(app, reading)


def test_task_events_wait_a_moment_for_each_other(
    dispatcher: Any, consumer: LoopingConsumer, reader: Reader
) -> None:
    for name in "abc":
        dispatcher.send("task-started", uuid=name)
    consumer.hub.turn()
    assert [seconds for seconds, _ in consumer.hub.later] == [GATHER_SECONDS]
    assert reader.is_empty()
    consumer.hub.fire()
    assert reader.message() == ["a", "b", "c"]
    assert reader.is_empty()


def test_many_do_not_wait(dispatcher: Any, reader: Reader) -> None:
    for number in range(GATHER_EVENTS):
        dispatcher.send("task-started", uuid=str(number))
    assert len(reader.message()) == GATHER_EVENTS


def test_the_next_moment_begins_when_the_last_is_over(
    dispatcher: Any, consumer: LoopingConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    dispatcher.send("task-started", uuid="a")
    now[0] += GATHER_SECONDS / 2
    dispatcher.send("task-started", uuid="b")
    assert len(consumer.hub.soon) == 1
    # Also where the loop forgot the call, as it does when a connection is lost.
    consumer.hub.soon.clear()
    now[0] += GATHER_SECONDS
    dispatcher.send("task-started", uuid="c")
    assert len(consumer.hub.soon) == 1


def test_what_a_lost_connection_did_not_take_goes_over_the_next_one(
    app: Celery, dispatcher: Any, consumer: LoopingConsumer, reader: Reader
) -> None:
    dispatcher.send("task-started", uuid="a")
    connection = app.connection_for_write()
    with new_dispatcher(app, connection, consumer) as following:
        following.extend_buffer(dispatcher)
        following.flush()
        assert reader.message() == ["a"]
    connection.close()


def test_what_has_gathered_is_sent_before_the_connection_is_closed(
    dispatcher: Any, reader: Reader
) -> None:
    parent = SimpleNamespace(event_dispatcher=dispatcher)
    step = FlushEventsStep(parent)
    dispatcher.send("task-succeeded", uuid="a")
    step.stop(parent)
    assert reader.message() == ["a"]
    # Of a task that the pool was still at.
    dispatcher.send("task-succeeded", uuid="b")
    step.shutdown(parent)
    assert reader.message() == ["b"]


def test_a_worker_without_events_has_nothing_to_send() -> None:
    parent = SimpleNamespace(event_dispatcher=None)
    FlushEventsStep(parent).stop(parent)


def test_a_worker_flushes_before_it_closes_its_events(app: Celery) -> None:
    # Not by making a worker, which changes Celery for the whole process.
    blueprint = Consumer.Blueprint(steps=app.steps["consumer"])
    blueprint.steps = blueprint.claim_steps()
    order = [step.__name__ for step in blueprint._finalize_steps(blueprint.steps)]
    # Steps are stopped in the reverse order.
    assert order.index("Events") < order.index("FlushEventsStep")


@pytest.mark.parametrize(
    ("pool", "asked", "waits"),
    [("gevent", 0.1, 0.001), ("gevent", 0, 0), ("gevent", None, None), ("default", 0.1, 0.1)],
)
def test_with_gevent_the_loop_does_not_wait_for_heartbeats_after_every_task(
    app: Celery,
    monkeypatch: pytest.MonkeyPatch,
    pool: str,
    asked: float | None,
    waits: float | None,
) -> None:
    monkeypatch.setattr(events, "detect_environment", lambda: pool)
    connection = app.connection_for_write()
    waited: list[float | None] = []

    def drain_events(timeout: float | None) -> None:
        waited.append(timeout)

    monkeypatch.setattr(connection, "drain_events", drain_events)
    with app.events.Dispatcher(connection, hostname="node"):
        connection.drain_events(timeout=asked)
    assert waited == [waits]
    connection.close()
