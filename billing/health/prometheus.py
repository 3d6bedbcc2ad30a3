"""Figures in Prometheus' text format: what waits, and what does not agree.

Read anew at each scrape, from the servers, so any one process can give them for the whole
installation. They name no customer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Final

import redis
import sqlalchemy as sa
import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from billing.archive.catalog import ArchiveState
from billing.core.errors import QuotaUnavailable
from billing.health.facts import HealthSources, log_facts, open_dead_letters, outbox_facts
from billing.reconciliation.invariants import DiscrepancyKind
from billing.transport.outbox import OutboxUnavailable

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_AWAY: Final = (
    sa.exc.SQLAlchemyError,
    redis.RedisError,
    QuotaUnavailable,
    OutboxUnavailable,
    OSError,
)

_log = structlog.get_logger(__name__)


def exposition(sources: HealthSources) -> bytes:
    """Every figure, in Prometheus' text format.

    A server that does not answer has ``weighbridge_up`` 0, and its figures are left out.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(sources))
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, sources: HealthSources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "weighbridge_up", "Whether a server answered this scrape.", labels=["server"]
        )
        for server, read in (("postgresql", _of_postgresql), ("redis", _of_redis)):
            found = _answered(server, read, self._sources)
            up.add_metric([server], 0 if found is None else 1)
            yield from found or ()
        yield up


def _answered(
    server: str, read: Callable[[HealthSources], list[Metric]], sources: HealthSources
) -> list[Metric] | None:
    try:
        return read(sources)
    except _AWAY as error:
        _log.warning("metrics_unavailable", server=server, error=type(error).__name__)
        return None


def _of_postgresql(sources: HealthSources) -> list[Metric]:
    log = log_facts(sources)
    states = [each.state for each in log.archives]
    return [
        _labelled(
            GaugeMetricFamily(
                "weighbridge_discrepancies_open",
                "What the last check of the books found and is not put right, by kind.",
                labels=["kind"],
            ),
            {kind: log.open_by_kind.get(kind, 0) for kind in DiscrepancyKind},
        ),
        _labelled(
            CounterMetricFamily(
                "weighbridge_discrepancies",
                "Discrepancies ever found, by kind, those that were repaired included.",
                labels=["kind"],
            ),
            {kind: log.found_by_kind.get(kind, 0) for kind in DiscrepancyKind},
        ),
        *_gauges(
            ("weighbridge_discrepancy_oldest_open_seconds",
             "For how long the oldest open discrepancy has been known; 0 without one.",
             log.oldest_open_seconds),
            ("weighbridge_dead_letters_open",
             "Messages that could not be logged and were not replayed.",
             open_dead_letters(sources)),
            ("weighbridge_unsealed_oldest_seconds",
             "How long the oldest hour that is over waits for its seal; 0 where none does.",
             log.unsealed_seconds),
            ("weighbridge_seal_newest_number", "The newest seal; 0 before the first.",
             log.newest_seal),
        ),
        _labelled(
            GaugeMetricFamily(
                "weighbridge_archives",
                "Archived months, by how far each has come.",
                labels=["state"],
            ),
            {state: states.count(state) for state in ArchiveState},
        ),
    ]  # fmt: skip


def _of_redis(sources: HealthSources) -> list[Metric]:
    outbox = outbox_facts(sources)
    return _gauges(
        ("weighbridge_outbox_events",
         "Usage that is charged and that RabbitMQ has not confirmed.", outbox.length),
        ("weighbridge_outbox_oldest_seconds",
         "How long the oldest of it waits; 0 where none does.",
         max(outbox.oldest_seconds or 0, 0)),
        ("weighbridge_outbox_unreadable_events",
         "Entries that were put aside; each is charged and on no receipt.", outbox.unreadable),
    )  # fmt: skip


def _gauges(*figures: tuple[str, str, float | None]) -> list[Metric]:
    return [GaugeMetricFamily(name, text, value=value or 0) for name, text, value in figures]


def _labelled(
    family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[StrEnum, float]
) -> Metric:
    for label, value in values.items():
        family.add_metric([label.value], value)
    return family
