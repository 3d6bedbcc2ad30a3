"""How the consumer's tests run a consumer and see what it does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import amqp
from kombu import Connection
from sqlalchemy.exc import OperationalError

from billing.settings import Settings
from billing.usage_log.consumer import Consumed, UsageConsumer
from billing.usage_log.event_reader import Dead, Row
from billing.usage_log.log_writer import BatchResult, LogWriter

Count = Callable[[], int]
Publish = Callable[..., None]


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


class Failures(LogWriter):
    """A writer that counts the failures of another."""

    def __init__(self) -> None:
        self.count = 0
        self.read_events = 0

    def seen_by(self, writer: LogWriter) -> LogWriter:
        self._writer = writer
        return self

    def read(self, bodies: Iterable[bytes]) -> list[Row | Dead]:
        found = self._writer.read(bodies)
        self.read_events += len(found)
        return found

    def write(
        self, bodies: Sequence[bytes], read: Sequence[Row | Dead] | None = None
    ) -> BatchResult:
        try:
            return self._writer.write(bodies, read)
        except OperationalError:
            self.count += 1
            raise


class Broken(Failures):
    """A writer with a fault that is not the database's."""

    def write(
        self, bodies: Sequence[bytes], read: Sequence[Row | Dead] | None = None
    ) -> BatchResult:
        raise ZeroDivisionError(bodies, read)
