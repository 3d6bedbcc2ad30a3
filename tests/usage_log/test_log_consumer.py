"""From the queue into the log: acknowledged after COMMIT, held while the database is away."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import amqp
import pytest
import sqlalchemy as sa
from consuming import (
    Broken,
    Count,
    Publish,
    Watch,
    drain,
    make_consumer,
    running,
    waiting,
)
from support import NOW, eventually, make_event

from billing.core.usage_event import DeadReason
from billing.settings import Settings
from billing.transport import topology
from billing.usage_log.dead_letters import DeadLetters, ReplayOutcome
from billing.usage_log.log_writer import LogWriter
from billing.usage_log.queue_reader import MAX_PREFETCH, Delivery, QueueReader, broker

pytestmark = pytest.mark.usefixtures("catalogue")


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


def test_bodies_of_every_size_come_through_byte_for_byte_and_are_acknowledged(
    publish: Publish,
    ready: Count,
    settings: Settings,
    writer: LogWriter,
    rabbitmq_url: str,
    engine: sa.Engine,
) -> None:
    # A frame of AMQP has 128 KiB at most, its eight bytes around the payload included.
    sizes = [1, 0, 70_000, 131_063, 131_064, 131_065, 2, 300_000, 3]
    publish(*(b"x" * size for size in sizes), make_event().to_wire())
    done = drain(make_consumer(settings, writer, broker(rabbitmq_url), batch=4))
    assert (done.inserted, sum(done.dead.values())) == (1, len(sizes))
    letters = DeadLetters(engine)
    bodies = [letters.show(letter.id).body for letter in letters.list()]
    assert sorted(len(body or b"") for body in bodies) == sorted(sizes)
    assert ready() == 0


def test_what_is_acknowledged_is_gone_and_what_is_not_comes_again(
    publish: Publish, ready: Count, settings: Settings, rabbitmq_url: str
) -> None:
    def take(count: int, bodies: Iterable[bytes] = ()) -> tuple[QueueReader, list[Delivery]]:
        names = {"exchange": settings.usage_exchange, "queue": settings.usage_queue}
        intake = QueueReader(broker(rabbitmq_url)(), **names, prefetch=MAX_PREFETCH)
        intake.open()
        publish(*bodies)

        def all_came() -> bool:
            intake.receive(timeout=0.1, most=1)
            return len(intake.usage) == count

        eventually(all_came)
        return intake, list(intake.usage)

    bodies = {str(number).encode() for number in range(10)}
    first, found = take(10, bodies)
    assert {delivery.body for delivery in found} == bodies
    first.acknowledge(found[:4])
    first.close()
    eventually(lambda: ready() == 6)
    second, left = take(6)
    second.close()
    assert {delivery.body for delivery in left} == {delivery.body for delivery in found[4:]}
    assert len({delivery.channel for delivery in left}) == 1


@pytest.mark.parametrize("batch", [1, 3, 5000])
def test_messages_of_one_event_each_are_all_logged_whatever_a_batch_may_hold(
    publish: Publish, settings: Settings, writer: LogWriter, rabbitmq_url: str, batch: int
) -> None:
    count = 2 * MAX_PREFETCH + 7 if batch > MAX_PREFETCH else 25
    publish(*(make_event(task_id=f"t{number}").to_wire() for number in range(count)))
    watch = Watch()
    consumer = make_consumer(settings, writer, broker(rabbitmq_url), watch, batch=batch)
    assert drain(consumer).inserted == count
    assert max(result.inserted for result in watch.batches) <= min(batch, MAX_PREFETCH // 2)


def test_an_event_with_an_encoding_is_logged(
    publish: Publish, settings: Settings, writer: LogWriter, rabbitmq_url: str
) -> None:
    body = make_event(subject="ä").to_wire()
    publish(body, content_encoding="utf-8", content_type="application/json")
    assert drain(make_consumer(settings, writer, broker(rabbitmq_url))).inserted == 1


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


def test_events_of_the_past_and_present_month_go_through_together(
    publish: Publish, settings: Settings, writer: LogWriter, rabbitmq_url: str
) -> None:
    publish(
        make_event(metered_at=NOW - timedelta(days=35)).to_wire(),
        make_event(metered_at=NOW).to_wire(),
    )
    assert drain(make_consumer(settings, writer, broker(rabbitmq_url))).inserted == 2


def test_events_that_share_a_message_are_judged_one_by_one(
    publish: Publish,
    ready: Count,
    settings: Settings,
    writer: LogWriter,
    rabbitmq_url: str,
    engine: sa.Engine,
    rollups_are_exact: Callable[[], None],
) -> None:
    events = [make_event() for _ in range(60)]
    bad = make_event(customer="nobody").to_wire()
    wires = [event.to_wire() for event in events]
    shared = b"".join(b"\x1e%b\n" % wire for wire in (*wires[:30], b"{", bad, *wires[:5]))
    publish(shared, wires[30], b"".join(b"\x1e%b\n" % wire for wire in wires[30:]))
    watch = Watch()
    # A message with more events than a batch is one batch of its own; none is split.
    done = drain(make_consumer(settings, writer, broker(rabbitmq_url), watch, batch=20))
    assert (done.inserted, done.duplicates) == (60, 6)
    assert done.dead == {DeadReason.NOT_JSON: 1, DeadReason.UNKNOWN_CUSTOMER: 1}
    bodies = [DeadLetters(engine).show(letter.id).body for letter in DeadLetters(engine).list()]
    assert sorted(bodies, key=repr) == sorted([b"{", bad], key=repr)
    assert ready() == 0
    rollups_are_exact()


def test_each_event_of_a_message_that_the_broker_gave_up_is_kept_by_itself(
    channel: amqp.Channel,
    settings: Settings,
    writer: LogWriter,
    rabbitmq_url: str,
    engine: sa.Engine,
) -> None:
    wires = [make_event().to_wire() for _ in range(3)]
    channel.basic_publish(
        amqp.Message(b"".join(b"\x1e%b\n" % wire for wire in wires)),
        routing_key=topology.dead_queue(settings.usage_queue),
    )
    done = drain(make_consumer(settings, writer, broker(rabbitmq_url)))
    assert done.dead == {DeadReason.DELIVERY_LIMIT: 3}
    letters = DeadLetters(engine)
    assert {letters.show(letter.id).body for letter in letters.list()} == set(wires)
    assert {letter.detail for letter in letters.list()} == {"given up by the broker"}
