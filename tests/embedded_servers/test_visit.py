"""Leaving somebody's servers as they were found."""

from __future__ import annotations

import pytest
import redis
from amqp.exceptions import NotFound
from kombu import Connection, Queue

from billing.devtools.embedded_servers.visit import delete_keys, delete_queues, noting
from billing.settings import Settings


def test_keys_are_deleted_by_name_and_by_pattern_and_no_others(
    redis_url: str, redis_client: redis.Redis, settings: Settings
):
    own = settings.redis_prefix
    for name in ("a:1", "a:2", "b", "c"):
        redis_client.set(f"{own}:{name}", 1)

    delete_keys(redis_url, [f"{own}:a:*", f"{own}:b", f"{own}:nothing"])

    assert list(redis_client.scan_iter(match=f"{own}:*")) == [f"{own}:c".encode()]


def test_queues_and_exchanges_are_deleted_and_missing_ones_do_not_matter(
    rabbitmq_url: str, settings: Settings
):
    name = f"{settings.redis_prefix}.visited"
    with Connection(rabbitmq_url) as connection:
        channel = connection.channel()
        Queue(name, channel=channel).declare()

        delete_queues(rabbitmq_url, [name, f"{name}.nothing"], [f"{name}.nothing"])

        with pytest.raises(NotFound):
            channel.queue_declare(name, passive=True)


def test_what_could_not_be_deleted_is_noted_and_other_errors_are_not_hidden():
    left: list[str] = []
    with noting(left, "keys", ValueError):
        raise ValueError("gone\nand more")
    assert left == ["keys: gone"]
    with pytest.raises(KeyError), noting(left, "keys", ValueError):
        raise KeyError("a defect")
