"""``billing consumer`` and ``billing relay``: the parts that run until they are stopped."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import structlog
import typer

from billing.cli.context import container_of
from billing.cli.logs import configure_logs
from billing.cli.output import say
from billing.cli.services import Rate, reporting, until_signalled
from billing.transport.queue_depth import queue_depth
from billing.usage_log.log_writer import BatchResult

_log = structlog.get_logger(__name__)

_COLLECTED_AT_ONCE: Final = 50_000
_TURN_SECONDS: Final = 0.0002
_Drain = Annotated[
    bool, typer.Option("--drain", help="End once there is nothing left to do, instead of waiting.")
]


def consumer(context: typer.Context, drain: _Drain = False) -> None:
    """Write the usage queue into the fulfillment log, until stopped (Ctrl-C finishes the batch)."""
    container = container_of(context)
    configure_logs(container.settings.log_level)
    rate = Rate()

    def count(result: BatchResult) -> None:
        rate.add(result.inserted + result.duplicates + sum(result.dead.values()))

    def figures() -> dict[str, object]:
        depth = queue_depth(container.endpoints.amqp_url or "", container.settings.usage_queue)
        return {
            "events_per_second": round(rate.per_second(), 1),
            "events": rate.total,
            "queue_lag": "unknown" if depth is None else depth.ready,
        }

    usage_consumer = container.consumer(on_batch=count)
    spare_collections()
    with quick_turns(), until_signalled() as stop, reporting("consumer", figures):
        _log.info("consumer_started", queue=container.settings.usage_queue)
        consumed = usage_consumer.run(stop, idle_exit=drain)
    dead = sum(consumed.dead.values())
    say(
        f"consumed: {consumed.inserted:,} logged, {consumed.duplicates:,} duplicates, "
        f"{dead:,} dead letters, in {consumed.batches:,} batches"
    )


def spare_collections() -> None:
    """Let the garbage collector look at new objects only, and at many at a time.

    A consumer makes a few objects for every event and no cycles of them, but each full collection
    would go through all that was imported: a tenth of the consumer's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_AT_ONCE, *gc.get_threshold()[1:])


@contextmanager
def quick_turns() -> Iterator[None]:
    """Let the thread that writes have the interpreter at once when PostgreSQL has answered.

    Python would let the one that reads go on for 5 ms, at each of a batch's dozen statements.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def relay(context: typer.Context, drain: _Drain = False) -> None:
    """Take usage from the outbox and this node's spool to RabbitMQ, until stopped."""
    container = container_of(context)
    configure_logs(container.settings.log_level)
    outbox_relay = container.relay()

    def figures() -> dict[str, object]:
        lag = outbox_relay.lag()
        return {
            "outbox_events": lag.outbox_events,
            "oldest_seconds": round(lag.oldest_seconds, 1),
            "spool_segments": lag.spool_segments,
            "unreadable_events": lag.unreadable_events,
        }

    with until_signalled() as stop, reporting("relay", figures):
        _log.info("relay_started", exchange=container.settings.usage_exchange)
        if not drain:
            outbox_relay.run(stop)
            return
        confirmed = 0
        # Another relay may have leased some shards; then it drains those.
        while not stop.is_set() and (now := outbox_relay.run_once()):
            confirmed += now
    say(f"relayed: {confirmed:,} events confirmed; {container.outbox.length():,} still wait")
