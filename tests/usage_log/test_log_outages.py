"""The consumer while the database, the broker or both are away."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from consuming import (
    Count,
    Failures,
    Publish,
    Watch,
    drain,
    make_consumer,
    running,
)
from kombu import Connection
from support import NOW, TcpProxy, eventually, make_event

from billing.core.clock import ManualClock
from billing.core.usage_event import DeadReason
from billing.postgres.engines import writer_engine
from billing.settings import Settings
from billing.usage_log.log_writer import LogWriter
from billing.usage_log.queue_reader import broker

pytestmark = pytest.mark.usefixtures("catalogue")


def new_writer(engine: sa.Engine, clock: ManualClock) -> LogWriter:
    return LogWriter(
        engine,
        clock=clock,
        max_age=timedelta(days=90),
        max_ahead=timedelta(minutes=5),
        currency="USD",
    )


def test_nothing_is_acknowledged_before_commit(
    publish: Publish,
    ready: Count,
    settings: Settings,
    make_writer: Callable[[], LogWriter],
    rabbitmq_url: str,
    engine: sa.Engine,
    logged: Count,
    somebody_waits: Callable[[], None],
) -> None:
    publish(*(make_event().to_wire() for _ in range(5)))
    parts = urlsplit(rabbitmq_url)
    with TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5672) as network:
        through = rabbitmq_url.replace(f":{parts.port or 5672}", f":{network.port}")
        first = make_consumer(settings, make_writer(), broker(through))
        with engine.connect() as holder:
            lock = holder.begin()
            holder.execute(sa.text("LOCK TABLE usage_events IN SHARE MODE"))
            with running(first) as stop:
                somebody_waits()
                assert ready() == 0
                network.cut()
                eventually(lambda: ready() == 5, message="the broker takes the messages back")
                stop.set()
                lock.rollback()
    assert logged() == 5
    second = drain(make_consumer(settings, make_writer(), broker(rabbitmq_url)))
    assert (second.inserted, second.duplicates) == (0, 5)
    assert (logged(), ready()) == (5, 0)


def test_a_batch_is_held_while_the_database_is_away_and_logged_when_it_is_back(
    publish: Publish,
    ready: Count,
    settings: Settings,
    database_url: str,
    clock: ManualClock,
    rabbitmq_url: str,
    logged: Count,
) -> None:
    parts = urlsplit(database_url)
    publish(*(make_event().to_wire() for _ in range(30)))
    watch = Watch()
    failures = Failures()
    with TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5432) as network:
        port = f":{parts.port or 5432}"
        away = writer_engine(database_url.replace(port, f":{network.port}"))
        writer = failures.seen_by(new_writer(away, clock))
        network.cut()
        with running(make_consumer(settings, writer, broker(rabbitmq_url), watch)):
            eventually(lambda: failures.count >= 3, message="the batch is tried again")
            assert (ready(), logged()) == (0, 0)
            network.restore()
            eventually(lambda: logged() == 30, timeout=60)
        away.dispose()
    assert watch.connected == 1
    assert ready() == 0


def test_what_was_in_hand_while_the_database_was_away_is_judged_by_the_time_it_is_written(
    publish: Publish,
    settings: Settings,
    database_url: str,
    clock: ManualClock,
    rabbitmq_url: str,
    logged: Count,
) -> None:
    parts = urlsplit(database_url)
    publish(*(make_event(metered_at=NOW - timedelta(days=89)).to_wire() for _ in range(2)))
    watch = Watch()
    failures = Failures()
    with TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5432) as network:
        port = f":{parts.port or 5432}"
        away = writer_engine(database_url.replace(port, f":{network.port}"))
        writer = failures.seen_by(new_writer(away, clock))
        network.cut()
        # Of two messages one is tried, the other has been read and waits behind it.
        with running(make_consumer(settings, writer, broker(rabbitmq_url), watch, batch=1)):
            eventually(lambda: failures.count >= 2 and failures.read_events == 2)
            clock.advance(timedelta(days=2))
            network.restore()
            eventually(lambda: len(watch.batches) == 2, timeout=60)
        away.dispose()
    assert [batch.dead for batch in watch.batches] == [{DeadReason.TOO_OLD: 1}] * 2
    assert logged() == 0


def test_heartbeats_go_on_while_a_write_takes_longer_than_the_broker_would_wait(
    publish: Publish,
    settings: Settings,
    writer: LogWriter,
    rabbitmq_url: str,
    engine: sa.Engine,
    logged: Count,
    somebody_waits: Callable[[], None],
) -> None:
    publish(make_event().to_wire())
    watch = Watch()

    def connect() -> Connection:
        return Connection(rabbitmq_url, heartbeat=1)

    with engine.connect() as holder, running(make_consumer(settings, writer, connect, watch)):
        lock = holder.begin()
        holder.execute(sa.text("LOCK TABLE usage_events IN SHARE MODE"))
        somebody_waits()
        since = time.monotonic()
        # RabbitMQ drops a silent connection after two missed heartbeats.
        eventually(lambda: time.monotonic() - since > 3.5, timeout=10)
        lock.rollback()
        eventually(lambda: logged() == 1)
    assert watch.connected == 1


def test_a_lost_broker_is_found_again(
    publish: Publish, settings: Settings, writer: LogWriter, rabbitmq_url: str, logged: Count
) -> None:
    parts = urlsplit(rabbitmq_url)
    watch = Watch()
    with TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5672) as network:
        through = rabbitmq_url.replace(f":{parts.port or 5672}", f":{network.port}")
        with running(make_consumer(settings, writer, broker(through), watch)):
            publish(make_event().to_wire())
            eventually(lambda: logged() == 1)
            network.cut()
            publish(make_event().to_wire())
            eventually(lambda: watch.connected >= 3, message="it tries again while it is away")
            assert logged() == 1
            network.restore()
            eventually(lambda: logged() == 2, timeout=60)
