"""Figures for whoever watches, in Prometheus' text format: what waits, and what does not agree.

Read anew at each scrape, from the servers, so any one process can tell them for the whole
installation. They name no customer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final

import redis
import sqlalchemy as sa
import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from billing.archive.catalog import ArchiveState
from billing.audit.sealer import unsealed_since
from billing.container import Container
from billing.core.clock import EPOCH, from_ms
from billing.core.errors import QuotaUnavailable
from billing.reconciliation.discrepancies import DiscrepancyStore
from billing.reconciliation.invariants import DiscrepancyKind
from billing.transport.outbox import OutboxUnavailable

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_log = structlog.get_logger(__name__)


def exposition(container: Container) -> bytes:
    """Every figure, in Prometheus' text format.

    A server that does not answer has ``weighbridge_up`` 0, and its figures are left out.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(container))
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, container: Container) -> None:
        self._system = container

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "weighbridge_up", "Whether a server answered this scrape.", labels=["server"]
        )
        for server, read in (("postgresql", _of_postgresql), ("redis", _of_redis)):
            found = _answered(server, read, self._system)
            up.add_metric([server], 0 if found is None else 1)
            yield from found or ()
        yield up


def _answered(
    server: str, read: Callable[[Container], list[Metric]], container: Container
) -> list[Metric] | None:
    try:
        return read(container)
    except (
        sa.exc.SQLAlchemyError,
        redis.RedisError,
        QuotaUnavailable,
        OutboxUnavailable,
        OSError,
    ) as error:
        _log.warning("figures cannot be read", server=server, error=type(error).__name__)
        return None


def _of_postgresql(container: Container) -> list[Metric]:
    now = container.clock.now()
    return [
        *_books(DiscrepancyStore(container.engine), now),
        _gauge(
            "weighbridge_dead_letters_open",
            "Messages that could not be logged and were not replayed.",
            sum(container.dead_letters.counts().values()),
        ),
        *_keeping(container, now),
    ]


def _books(record: DiscrepancyStore, now: datetime) -> Iterator[Metric]:
    standing = record.open()
    is_open = GaugeMetricFamily(
        "weighbridge_discrepancies_open",
        "What the last check of the books found and what is not put right, by kind.",
        labels=["kind"],
    )
    seen = CounterMetricFamily(
        "weighbridge_discrepancies",
        "Discrepancies ever found, by kind, those that were repaired included.",
        labels=["kind"],
    )
    ever = record.ever()
    for kind in DiscrepancyKind:
        is_open.add_metric([kind.value], standing.get(kind, 0))
        seen.add_metric([kind.value], ever.get(kind, 0))
    oldest = record.oldest_open()
    yield is_open
    yield seen
    yield _gauge(
        "weighbridge_discrepancy_oldest_open_seconds",
        "For how long the oldest open discrepancy has been known; 0 without one.",
        0 if oldest is None else (now - oldest).total_seconds(),
    )


def _keeping(container: Container, now: datetime) -> Iterator[Metric]:
    with container.engine.connect() as connection:
        since = unsealed_since(connection, now)
    head = container.audit.head()
    months = GaugeMetricFamily(
        "weighbridge_archives", "Archived months, by how far each has come.", labels=["state"]
    )
    states = [each.state for each in container.audit.archives()]
    for state in ArchiveState:
        months.add_metric([state.value], states.count(state))
    yield _gauge(
        "weighbridge_unsealed_oldest_seconds",
        "How long the oldest hour that is over waits for its seal; 0 where none does.",
        0 if since is None else (now - since).total_seconds(),
    )
    yield _gauge(
        "weighbridge_seal_newest_number", "The newest seal; 0 before the first.",
        head.number if head else 0,
    )  # fmt: skip
    yield months


def _of_redis(container: Container) -> list[Metric]:
    seconds, microseconds = container.redis.time()
    now = int(seconds) + int(microseconds) / 1e6
    oldest_ms = container.outbox.oldest_ms()
    oldest = now if oldest_ms is None else (from_ms(oldest_ms) - EPOCH).total_seconds()
    return [
        _gauge(
            "weighbridge_outbox_events", "Usage that is charged and that RabbitMQ has not "
            "confirmed.", container.outbox.length(),
        ),
        _gauge(
            "weighbridge_outbox_oldest_seconds",
            "How long the oldest of it waits; 0 where none does.",
            max(now - oldest, 0),
        ),
        _gauge(
            "weighbridge_outbox_unreadable_events",
            "Entries that were put aside; each is charged and on no receipt.",
            container.outbox.bad_length(),
        ),
    ]  # fmt: skip


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
