"""Where events go, on a real RabbitMQ."""

from __future__ import annotations

import amqp
import pytest
from amqp.exceptions import PreconditionFailed
from hypothesis import given
from hypothesis import strategies as st
from support import eventually
from usage_support import Broker

from billing.transport import topology


def test_declaring_twice_changes_nothing(broker: Broker):
    broker.declare()
    broker.declare()
    assert broker.channel.queue_declare(broker.queue, passive=True).message_count == 0


def test_any_customers_events_reach_the_queue(broker: Broker):
    broker.declare()
    for customer in ("acme", "a.b.c", "A-1_x", "x" * 64):
        key = topology.routing_key(customer)
        broker.channel.basic_publish(amqp.Message(customer), broker.exchange, key)
    arrived = eventually(
        lambda: (
            broker.channel.queue_declare(broker.queue, passive=True).message_count == 4
            and broker.take_messages()
        )
    )
    assert {message.body for message in arrived} == {"acme", "a.b.c", "A-1_x", "x" * 64}


def test_a_rejected_message_is_kept_in_the_dead_letter_queue(broker: Broker):
    broker.declare()
    broker.channel.basic_publish(amqp.Message("bad"), broker.exchange, "usage.acme")
    message = eventually(lambda: broker.channel.basic_get(broker.queue))
    broker.channel.basic_reject(message.delivery_tag, requeue=False)
    dead = eventually(
        lambda: broker.channel.basic_get(topology.dead_queue(broker.queue), no_ack=True)
    )
    assert dead.body == "bad"


def test_a_message_that_kills_its_consumer_again_and_again_is_dead_lettered(broker: Broker):
    broker.declare()
    broker.channel.basic_publish(amqp.Message("poison"), broker.exchange, "usage.acme")
    for _ in range(topology.DELIVERY_LIMIT + 1):
        message = eventually(lambda: broker.channel.basic_get(broker.queue))
        broker.channel.basic_reject(message.delivery_tag, requeue=True)
    dead = eventually(
        lambda: broker.channel.basic_get(topology.dead_queue(broker.queue), no_ack=True)
    )
    assert dead.body == "poison"
    assert broker.channel.basic_get(broker.queue) is None


def test_a_queue_of_that_name_with_other_arguments_is_refused(broker: Broker):
    broker.channel.queue_declare(broker.queue, durable=True, auto_delete=False)
    with pytest.raises(PreconditionFailed):
        broker.declare()


@given(customer=st.text(max_size=300))
def test_every_routing_key_fits_amqp_and_matches_the_binding(customer: str):
    key = topology.routing_key(customer.encode(errors="replace").decode())
    assert len(key.encode()) <= 255
    assert key.startswith("usage.")


def test_a_long_name_is_cut_between_characters():
    assert topology.routing_key("é" * 200) == "usage." + "é" * 124
