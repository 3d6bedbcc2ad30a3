"""Task events are sent without confirms, and tasks with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from support import eventually

from billing.settings import Settings
from workers.app import make_app
from workers.metering import Metering

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
