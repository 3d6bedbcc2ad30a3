"""The consumer killed with SIGKILL at each step of a batch: afterwards one row per event."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from kombu import Connection
from support import NOW, make_event

from billing.settings import Settings
from billing.transport import topology

CONSUMER = """
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path

from billing.core.clock import ManualClock
from billing.core.failpoints import arm
from billing.usage_log.consumer import UsageConsumer
from billing.postgres.engines import writer_engine
from billing.usage_log.queue_reader import broker
from billing.usage_log.log_writer import LogWriter

database, amqp, exchange, queue, now, points, record = sys.argv[1:]
arm(points, Path(record))
writer = LogWriter(
    writer_engine(database),
    clock=ManualClock(datetime.fromisoformat(now)),
    max_age=timedelta(days=90),
    max_ahead=timedelta(minutes=5),
    currency="USD",
)
consumer = UsageConsumer(
    broker(amqp),
    exchange=exchange,
    queue=queue,
    writer=writer,
    batch=10,
    linger_seconds=0.05,
    on_late=lambda customers: None,
)
done = consumer.run(threading.Event(), idle_exit=True)
print(done.inserted, done.duplicates)
"""


@pytest.mark.usefixtures("catalogue")
@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("consumer.before_insert", "30 0"),
        ("consumer.before_commit", "30 0"),
        ("consumer.after_commit", "20 10"),
    ],
)
def test_a_consumer_killed_anywhere_in_a_batch_leaves_one_row_per_event(
    point: str,
    left: str,
    settings: Settings,
    database_url: str,
    rabbitmq_url: str,
    tmp_path: Path,
    logged: Callable[[], int],
    rollups_are_exact: Callable[[], None],
) -> None:
    with Connection(rabbitmq_url) as connection, connection.channel() as channel:
        topology.declare(
            cast("topology.Channel", channel),
            exchange=settings.usage_exchange,
            queue=settings.usage_queue,
        )
        with connection.Producer(channel) as producer:
            for _ in range(30):
                producer.publish(
                    make_event().to_wire(),
                    exchange=settings.usage_exchange,
                    routing_key=topology.routing_key("acme"),
                )
    record = tmp_path / "hits"

    def consume() -> subprocess.CompletedProcess[str]:
        names = (settings.usage_exchange, settings.usage_queue, NOW.isoformat())
        arguments = (database_url, rabbitmq_url, *names, f"{point}=1", str(record))
        return subprocess.run(
            [sys.executable, "-c", CONSUMER, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    killed = consume()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert record.read_text().split() == [point]
    again = consume()
    assert again.returncode == 0, again.stderr
    assert again.stdout.split() == left.split()
    assert logged() == 30
    rollups_are_exact()
