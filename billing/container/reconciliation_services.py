"""What checks the books and puts them right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kombu.exceptions import OperationalError

from billing.quota.hold_repair import RedisMend
from billing.reconciliation.discrepancies import Record
from billing.reconciliation.in_flight import Shelves
from billing.reconciliation.repair import Repair
from billing.usage_log.queue_reader import broker

if TYPE_CHECKING:
    from billing.container.container import System


_NOT_FOUND: Final = "404"


def build_repair(system: System) -> Repair:
    """Of this process's system; the journal is this node's."""
    return Repair(
        system.engine,
        quota=system.quota,
        reconcile=system.reconcile,
        shelves=Shelves(system.engine, system.outbox, system.journal, lambda: queue_depth(system)),
        sync=system.account_sync,
        mend=RedisMend(system.redis, system.keys),
        publisher=system.publisher,
        record=Record(system.engine),
        clock=system.clock,
    )


def queue_depth(system: System) -> int | None:
    """Messages ready in the usage queue; None where RabbitMQ does not say.

    A queue that is not there has none.
    """
    connection: Any = broker(system.endpoints.amqp_url or "")()
    try:
        with connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
            found = connection.channel().queue_declare(
                queue=system.settings.usage_queue, passive=True
            )
            return int(found.message_count)
    except connection.channel_errors as error:
        return 0 if str(getattr(error, "code", "")) == _NOT_FOUND else None
    except (*connection.connection_errors, OperationalError, OSError):
        return None
