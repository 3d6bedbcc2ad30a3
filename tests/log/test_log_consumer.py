"""From the queue into the log: acknowledged after COMMIT, held while the database is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import cast
from urllib.parse import urlsplit

import amqp
import pytest
import redis
import sqlalchemy as sa
from kombu import Connection
from sqlalchemy.exc import OperationalError
from support import NOW, TcpProxy, add_sku, eventually, make_event

from billing.core.clock import ManualClock
from billing.log.consumer import Consumed, UsageConsumer
from billing.log.dead import DeadLetters, ReplayOutcome
from billing.log.engine import writer_engine
from billing.log.intake import broker
from billing.log.writer import BatchResult, LogWriter
from billing.settings import Settings
from billing.usage import topology
from billing.usage.event import DeadReason

Count = Callable[[], int]
Publish = Callable[..., None]
pytestmark = pytest.mark.usefixtures("catalogue")


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


def waiting(channel: amqp.Channel, queue: str) -> int:
    declared = channel.queue_declare(queue, passive=True)
    assert declared is not None
    return int(declared[1])


class Watch:
    """What a consumer told while it ran."""

    def __init__(self) -> None:
        self.batches: list[BatchResult] = []
        self.late: list[frozenset[str]] = []
        self.connected = 0


def make_consumer(
    settings: Settings,
    writer: LogWriter,
    connect: Callable[[], Connection],
    watch: Watch | None = None,
    *,
    batch: int = 100,
    on_late: Callable[[frozenset[str]], None] | None = None,
) -> UsageConsumer:
    watch = watch or Watch()

    def counted() -> Connection:
        watch.connected += 1
        return connect()

    return UsageConsumer(
        counted,
        exchange=settings.usage_exchange,
        queue=settings.usage_queue,
        writer=writer,
        batch=batch,
        linger_seconds=0.05,
        on_late=on_late or watch.late.append,
        on_batch=watch.batches.append,
    )


@contextmanager
def running(consumer: UsageConsumer) -> Iterator[threading.Event]:
    """The consumer, running until the end of the block."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(consumer.run, stop)
        try:
            yield stop
        finally:
            stop.set()
            future.result(timeout=30)


def drain(consumer: UsageConsumer) -> Consumed:
    return consumer.run(threading.Event(), idle_exit=True)


def test_every_message_is_logged_or_kept_and_the_queue_is_empty(
    publish: Publish,
    ready: Count,
    settings: Settings,
    writer: LogWriter,
    rabbitmq_url: str,
    logged: Count,
    rollups_are_exact: Callable[[], None],
) -> None:
    event = make_event()
    publish(event.to_wire(), b"{", event.to_wire(), *(make_event().to_wire() for _ in range(250)))
    watch = Watch()
    done = drain(make_consumer(settings, writer, broker(rabbitmq_url), watch))
    assert (done.inserted, done.duplicates, done.dead) == (251, 1, {DeadReason.NOT_JSON: 1})
    assert logged() == 251
    assert ready() == 0
    assert sum(batch.inserted for batch in watch.batches) == 251
    assert all(batch.inserted <= 100 for batch in watch.batches)
    rollups_are_exact()


def test_a_body_is_kept_byte_for_byte_whatever_encoding_it_claims(
    publish: Publish, settings: Settings, writer: LogWriter, rabbitmq_url: str, engine: sa.Engine
) -> None:
    body = b'\xff\xfe{"caf\xe9":1}'
    publish(body, content_encoding="latin-1", content_type="application/json")
    drain(make_consumer(settings, writer, broker(rabbitmq_url)))
    (letter,) = DeadLetters(engine).list()
    assert DeadLetters(engine).show(letter.id).body == body


def test_an_event_with_an_encoding_is_logged(
    publish: Publish, settings: Settings, writer: LogWriter, rabbitmq_url: str
) -> None:
    body = make_event(subject="ä").to_wire()
    publish(body, content_encoding="utf-8", content_type="application/json")
    assert drain(make_consumer(settings, writer, broker(rabbitmq_url))).inserted == 1


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
            eventually(lambda: logged() == 30, timeout=20)
        away.dispose()
    assert watch.connected == 1
    assert ready() == 0


def new_writer(engine: sa.Engine, clock: ManualClock) -> LogWriter:
    return LogWriter(
        engine,
        clock=clock,
        max_age=timedelta(days=90),
        max_ahead=timedelta(minutes=5),
        currency="USD",
    )


class Failures(LogWriter):
    """A writer that counts the failures of another."""

    def __init__(self) -> None:
        self.count = 0

    def seen_by(self, writer: LogWriter) -> LogWriter:
        self._writer = writer
        return self

    def write(self, bodies: object) -> BatchResult:
        try:
            return self._writer.write(bodies)  # type: ignore[arg-type]  # passed on as it came
        except OperationalError:
            self.count += 1
            raise


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
            eventually(lambda: logged() == 2, timeout=20)


def test_what_the_broker_gave_up_is_kept_with_its_body_and_can_be_replayed(
    publish: Publish,
    channel: amqp.Channel,
    settings: Settings,
    writer: LogWriter,
    rabbitmq_url: str,
    engine: sa.Engine,
    logged: Count,
) -> None:
    event = make_event()
    publish(event.to_wire())

    def take() -> amqp.Message | None:
        return channel.basic_get(settings.usage_queue)

    message = eventually(take)
    assert message is not None
    assert message.delivery_tag is not None
    channel.basic_reject(message.delivery_tag, requeue=False)
    letters = DeadLetters(engine)
    with running(make_consumer(settings, writer, broker(rabbitmq_url))):
        (letter,) = eventually(letters.list)
    assert letter.reason is DeadReason.DELIVERY_LIMIT
    assert letter.detail == "given up by the broker: rejected"
    assert (letter.event_id, logged()) == (str(event.id), 0)
    (told,) = letters.replay([letter.id], writer)
    assert (told.outcome, logged()) == (ReplayOutcome.LOGGED, 1)
    assert waiting(channel, topology.dead_queue(settings.usage_queue)) == 0


def test_late_customers_are_told_after_commit_and_a_failure_there_loses_nothing(
    publish: Publish,
    ready: Count,
    settings: Settings,
    writer: LogWriter,
    rabbitmq_url: str,
    engine: sa.Engine,
    logged: Count,
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE quota_fences SET epoch = 9"))
    seen: list[tuple[frozenset[str], int]] = []

    def on_late(customers: frozenset[str]) -> None:
        seen.append((customers, logged()))
        raise RuntimeError("Redis is away")

    publish(make_event().to_wire())
    watch = Watch()
    consumer = make_consumer(settings, writer, broker(rabbitmq_url), watch, on_late=on_late)
    assert drain(consumer).inserted == 1
    assert seen == [(frozenset({"acme"}), 1)]
    assert (watch.connected, ready()) == (1, 0)


def test_a_stop_finishes_the_batch_in_hand(
    publish: Publish,
    ready: Count,
    settings: Settings,
    writer: LogWriter,
    rabbitmq_url: str,
    engine: sa.Engine,
    logged: Count,
    somebody_waits: Callable[[], None],
) -> None:
    publish(*(make_event().to_wire() for _ in range(3)))
    with (
        engine.connect() as holder,
        running(make_consumer(settings, writer, broker(rabbitmq_url))) as stop,
    ):
        lock = holder.begin()
        holder.execute(sa.text("LOCK TABLE usage_events IN SHARE MODE"))
        somebody_waits()
        stop.set()
        lock.rollback()
    assert (logged(), ready()) == (3, 0)


def test_a_fault_of_ours_ends_the_consumer_and_the_messages_stay(
    publish: Publish, ready: Count, settings: Settings, writer: LogWriter, rabbitmq_url: str
) -> None:
    class Broken(Failures):
        def write(self, bodies: object) -> BatchResult:
            raise ZeroDivisionError(bodies)

    publish(make_event().to_wire())
    with pytest.raises(ZeroDivisionError):
        drain(make_consumer(settings, Broken().seen_by(writer), broker(rabbitmq_url)))
    eventually(lambda: ready() == 1)


def test_two_consumers_share_the_queue_and_count_once(
    publish: Publish,
    settings: Settings,
    make_writer: Callable[[], LogWriter],
    rabbitmq_url: str,
    logged: Count,
    rollups_are_exact: Callable[[], None],
) -> None:
    bodies = [make_event().to_wire() for _ in range(200)]
    publish(*bodies, *reversed(bodies))
    consumers = [
        make_consumer(settings, make_writer(), broker(rabbitmq_url), batch=20) for _ in range(2)
    ]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(drain, consumers))
    assert sum(each.inserted for each in done) == logged() == 200
    assert sum(each.duplicates for each in done) == 200
    rollups_are_exact()


@pytest.fixture
def over_redis(
    redis_url: str, settings: Settings, redis_client: redis.Redis
) -> Callable[[], Connection]:
    """Connections of Kombu's Redis transport, under the test's own prefix."""
    del redis_client  # deletes the keys afterwards
    options = {"global_keyprefix": f"{settings.redis_prefix}:"}
    return lambda: Connection(redis_url, transport_options=options)


def put_over_redis(connect: Callable[[], Connection], settings: Settings, *bodies: bytes) -> None:
    with connect() as connection, connection.channel() as channel:
        topology.declare(
            cast("topology.Channel", channel),
            exchange=settings.usage_exchange,
            queue=settings.usage_queue,
        )
        with connection.Producer(channel) as producer:
            for body in bodies:
                producer.publish(
                    body,
                    exchange=settings.usage_exchange,
                    routing_key=topology.routing_key("acme"),
                    content_type="application/json",
                    content_encoding="utf-8",
                )


def test_the_redis_transport_passes_the_same_messages_once(
    over_redis: Callable[[], Connection],
    settings: Settings,
    writer: LogWriter,
    engine: sa.Engine,
    logged: Count,
) -> None:
    event = make_event(subject="ä")
    put_over_redis(
        over_redis,
        settings,
        event.to_wire(),
        b"\xff{",
        *(make_event().to_wire() for _ in range(60)),
    )
    done = drain(make_consumer(settings, writer, over_redis, batch=25))
    assert (done.inserted, done.dead, logged()) == (61, {DeadReason.NOT_JSON: 1}, 61)
    assert DeadLetters(engine).show(DeadLetters(engine).list()[0].id).body == b"\xff{"
    again = drain(make_consumer(settings, writer, over_redis))
    assert again.batches == 0


def test_over_redis_too_a_batch_that_was_not_written_comes_back(
    over_redis: Callable[[], Connection], settings: Settings, writer: LogWriter, engine: sa.Engine
) -> None:
    class Broken(Failures):
        def write(self, bodies: object) -> BatchResult:
            raise ZeroDivisionError(bodies)

    put_over_redis(over_redis, settings, make_event(sku="later", line="later").to_wire())
    with pytest.raises(ZeroDivisionError):
        drain(make_consumer(settings, Broken().seen_by(writer), over_redis))
    add_sku(engine, "later")
    assert drain(make_consumer(settings, writer, over_redis)).inserted == 1


def test_events_of_the_past_and_present_month_go_through_together(
    publish: Publish, settings: Settings, writer: LogWriter, rabbitmq_url: str
) -> None:
    publish(
        make_event(metered_at=NOW - timedelta(days=35)).to_wire(),
        make_event(metered_at=NOW).to_wire(),
    )
    assert drain(make_consumer(settings, writer, broker(rabbitmq_url))).inserted == 2
