"""Admission and delivery while Redis is away."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import structlog

from billing.core.admission import Admission
from billing.core.errors import DenialReason, QuotaUnavailable
from billing.core.sku import Sku, UnavailablePolicy
from billing.core.usage_event import UsageEvent
from billing.transport.journal import EventKeeper
from billing.transport.publishers import Publisher

log = structlog.get_logger(__name__)


class Fallback:
    """One process's way without the quota store. Safe to use from several threads.

    Args:
        publisher: The way out when Redis is away.
        spool: The way out when RabbitMQ is away too.
    """

    def __init__(self, publisher: Publisher, spool: EventKeeper) -> None:
        self._publisher = publisher
        self._spool = spool
        self._allowed: dict[str, int] = {}
        self._allowed_lock = threading.Lock()

    def admit(self, base: Admission, error: QuotaUnavailable) -> Admission:
        """Refuse, unless the SKU allows a bounded number of unheld runs."""
        sku = base.sku
        if sku.unavailable_policy is UnavailablePolicy.ALLOW:
            with self._allowed_lock:
                used = self._allowed.get(sku.id, 0)
                if used < sku.allow_limit:
                    self._allowed[sku.id] = used + 1
                    log.warning(
                        "admitted_without_hold",
                        task_id=base.facts.task_id,
                        customer=base.facts.customer,
                        money="the run is metered; the balance counts it when its event is logged",
                        allowed=used + 1,
                        allow_limit=sku.allow_limit,
                        error=str(error),
                    )
                    return replace(base, degraded=True)
        return replace(base, reason=DenialReason.QUOTA_UNAVAILABLE)

    def redis_answered(self, sku: Sku) -> None:
        """Note that Redis has answered: the count of unheld runs begins anew."""
        if sku.id in self._allowed:
            with self._allowed_lock:
                self._allowed.pop(sku.id, None)

    def deliver(self, events: Sequence[UsageEvent]) -> None:
        """Publish with a confirm, else spool with an fsync.

        Raises:
            OSError: The disk refused as well.
        """
        try:
            self._publisher.publish(events)
        except Exception as error:  # noqa: BLE001 - whatever a broken connection makes a driver raise
            self._spool.append(events)
            log.warning(
                "usage_spooled",
                events=len(events),
                money="nothing is lost; it reaches the log when the relay can publish again",
                remedy="bring Redis and RabbitMQ back",
                error=str(error),
            )
