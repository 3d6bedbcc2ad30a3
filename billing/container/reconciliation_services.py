"""What checks the books and puts them right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from billing.quota.hold_repair import HoldRepair
from billing.reconciliation.discrepancies import DiscrepancyStore
from billing.reconciliation.in_flight import InFlightUsage
from billing.reconciliation.repair import Repair
from billing.transport.queue_depth import queue_depth

if TYPE_CHECKING:
    from billing.container.container import Container


def build_repair(container: Container) -> Repair:
    """Of this process's system; the journal is this node's."""
    return Repair(
        container.engine,
        quota=container.quota,
        reconcile=container.invariant_checks,
        shelves=InFlightUsage(
            container.engine, container.outbox, container.journal, lambda: _ready(container)
        ),
        sync=container.account_loader,
        mend=HoldRepair(container.redis, container.keys),
        publisher=container.publisher,
        record=DiscrepancyStore(container.engine),
        clock=container.clock,
    )


def _ready(container: Container) -> int | None:
    depth = queue_depth(container.endpoints.amqp_url or "", container.settings.usage_queue)
    return None if depth is None else depth.ready
