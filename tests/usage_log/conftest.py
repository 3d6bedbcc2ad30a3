"""What the log's tests share: a catalogue, a writer as the writer role, and the invariant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import amqp
import pytest
import sqlalchemy as sa
from consuming import Count, Publish, waiting
from log_fixtures import (  # noqa: F401 - fixtures
    attic,
    bench,
    catalogue,
    make_writer,
    somebody_waits,
    writer,
    writers,
)
from log_totals import totals_from_log, totals_from_rollups

from billing.settings import Settings
from billing.transport import topology


@pytest.fixture
def logged(engine: sa.Engine) -> Callable[[], int]:
    """How many rows the log has."""

    def count() -> int:
        with engine.connect() as connection:
            rows = connection.execute(sa.text("SELECT count(*) FROM usage_events"))
            return int(rows.scalar_one())

    return count


@pytest.fixture
def rollups_are_exact(engine: sa.Engine) -> Callable[[], None]:
    """Fails unless the rollups are what the log adds up to, hour by hour and subject by subject."""

    def check() -> None:
        with engine.connect() as connection:
            assert totals_from_rollups(connection) == totals_from_log(connection)
            for difference in (_HOURS_DIFFER, _SUBJECTS_DIFFER):
                assert connection.execute(sa.text(difference)).all() == []

    return check


@pytest.fixture
def channel(rabbitmq_url: str, settings: Settings) -> Iterator[amqp.Channel]:
    """A channel of the test's own, with everything declared."""
    parts = urlsplit(rabbitmq_url)
    connection = amqp.Connection(
        host=f"{parts.hostname}:{parts.port or 5672}",
        userid=parts.username or "guest",
        password=parts.password or "guest",
        virtual_host=parts.path[1:] or "/",
    )
    with connection:
        opened = connection.channel()
        topology.declare(opened, exchange=settings.usage_exchange, queue=settings.usage_queue)
        yield opened


@pytest.fixture
def publish(channel: amqp.Channel, settings: Settings) -> Publish:
    """Puts messages into the usage exchange and waits for the last confirm."""

    def put(*bodies: bytes, **properties: str) -> None:
        channel.confirm_select()
        for body in bodies:
            channel.basic_publish_confirm(
                amqp.Message(body, delivery_mode=2, **properties),
                exchange=settings.usage_exchange,
                routing_key=topology.routing_key("acme"),
                mandatory=True,
            )

    return put


@pytest.fixture
def ready(channel: amqp.Channel, settings: Settings) -> Count:
    """How many messages wait in the usage queue, those delivered and unacknowledged not counted."""

    def count() -> int:
        return waiting(channel, settings.usage_queue)

    return count


# The hour and the month of an id, computed by PostgreSQL from the id's own first 48 bits.
_LOG = """
    SELECT *, to_timestamp(
        ('x' || lpad(replace(substr(id::text, 1, 13), '-', ''), 16, '0'))::bit(64)::bigint / 1000.0
    ) AT TIME ZONE 'UTC' AS metered FROM usage_events
"""
_HOURS_DIFFER = f"""
    WITH log AS (
        SELECT customer_id, date_trunc('hour', metered) AT TIME ZONE 'UTC' AS hour, sku_id, outcome,
            reason, count(*) AS events, sum(quantity) AS quantity,
            sum(amount_microcredits) AS amount, sum(shortfall_microcredits) AS shortfall,
            sum(cost_micros) AS cost
        FROM ({_LOG}) AS events GROUP BY 1, 2, 3, 4, 5
    )
    (TABLE log EXCEPT TABLE usage_hourly) UNION ALL (TABLE usage_hourly EXCEPT TABLE log)
"""
_SUBJECTS_DIFFER = f"""
    WITH log AS (
        SELECT customer_id, sku_id, date_trunc('month', metered)::date AS month,
            count(DISTINCT subject) AS subjects
        FROM ({_LOG}) AS events
        WHERE subject IS NOT NULL AND (outcome = 'succeeded' OR amount_microcredits > 0)
        GROUP BY 1, 2, 3
    )
    (TABLE log EXCEPT TABLE usage_subject_counts) UNION ALL
    (TABLE usage_subject_counts EXCEPT TABLE log)
"""
