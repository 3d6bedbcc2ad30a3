"""The consumer's side of a broker with several nodes."""

from __future__ import annotations

import secrets

import pytest

from billing.transport.topology import dead_exchange, dead_queue
from billing.usage_log.queue_reader import QueueReader, broker


@pytest.mark.rabbitmq
def test_the_next_node_of_the_list_is_tried_where_the_first_is_away(rabbitmq_url: str):
    name = f"wbtest.{secrets.token_hex(4)}"
    intake = QueueReader(
        broker(f"amqp://127.0.0.1:1//;{rabbitmq_url}")(), exchange=name, queue=name, prefetch=10
    )
    try:
        intake.open()
        assert intake.receive(timeout=0.1, most=1) == 0
    finally:
        intake.close()
        with broker(rabbitmq_url)() as connection:
            channel = connection.channel()
            for queue in (name, dead_queue(name)):
                channel.queue_delete(queue)
            for exchange in (name, dead_exchange(name)):
                channel.exchange_delete(exchange)
