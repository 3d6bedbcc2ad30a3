"""What checks the books and puts them right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kombu.exceptions import OperationalError

from billing.quota.hold_repair import HoldRepair
from billing.reconciliation.discrepancies import DiscrepancyStore
from billing.reconciliation.in_flight import InFlightUsage
from billing.reconciliation.repair import Repair
from billing.usage_log.queue_reader import broker

if TYPE_CHECKING:
    from billing.container.container import Container


_NOT_FOUND: Final = "404"


def build_repair(container: Container) -> Repair:
    """Of this process's system; the journal is this node's."""
    return Repair(
        container.engine,
        quota=container.quota,
        reconcile=container.invariant_checks,
        shelves=InFlightUsage(
            container.engine, container.outbox, container.journal, lambda: queue_depth(container)
        ),
        sync=container.account_loader,
        mend=HoldRepair(container.redis, container.keys),
        publisher=container.publisher,
        record=DiscrepancyStore(container.engine),
        clock=container.clock,
    )


def queue_depth(container: Container) -> int | None:
    """Messages ready in the usage queue; None where RabbitMQ does not say.

    A queue that is not there has none.
    """
    connection: Any = broker(container.endpoints.amqp_url or "")()
    try:
        with connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
            found = connection.channel().queue_declare(
                queue=container.settings.usage_queue, passive=True
            )
            return int(found.message_count)
    except connection.channel_errors as error:
        return 0 if str(getattr(error, "code", "")) == _NOT_FOUND else None
    except (*connection.connection_errors, OperationalError, OSError):
        return None
