"""Beat's jobs. Each may fire twice, late or never, without harm: it does whatever is due."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import structlog
from celery import shared_task
from celery.schedules import crontab

from billing.audit.sealer import SealingBusyError
from billing.container import Container
from billing.core.credit_lease import LEASE_PREFIX
from billing.transport.outbox import OutboxUnavailable
from workers.reporting_jobs import REPORTING_SCHEDULE

log = structlog.get_logger(__name__)

SWEEP_LIMIT: Final = 500
"""Holds expired in one step; a sweep takes as many steps as it needs."""

_EXPIRED: Final = (
    "nobody settled it, so nothing was charged; what the task did, if it ran, is charged only if "
    "it settles after all"
)
_LEASE_EXPIRED: Final = (
    "its process is gone, and no relay of its node gave it back; what that node has on its disk is "
    "charged when a relay runs there again"
)
_LOOK_BACK: Final = timedelta(days=2)

BEAT_SCHEDULE: Final[dict[str, dict[str, Any]]] = {
    "sweep-holds": {
        "task": "billing.sweep_holds",
        "schedule": 30.0,
        # A worker that was away must not find a day of sweeps in its queue.
        "options": {"expires": 25},
    },
    "ensure-partitions": {
        "task": "billing.ensure_partitions",
        "schedule": 6 * 3600.0,
        "options": {"expires": 3600},
    },
    "check-balances": {
        "task": "billing.check_balances",
        "schedule": 3600.0,
        "options": {"expires": 1800},
    },
    "check-after-loss": {
        "task": "billing.check_after_loss",
        "schedule": 20.0,
        "options": {"expires": 15},
    },
    "seal-log": {
        "task": "billing.seal_log",
        # An hour is sealed once it has been over for a quarter of one.
        "schedule": crontab(minute="21"),
        "options": {"expires": 1800},
    },
    **REPORTING_SCHEDULE,
}


@shared_task(bind=True, name="billing.sweep_holds", ignore_result=True, acks_late=True)
def sweep_holds(self: Any) -> int:
    """Expire holds that are over time; their credits can be spent again. Returns how many."""
    container: Container = self.app.metering.container
    swept = 0
    while True:
        expired = container.quota.expire(SWEEP_LIMIT)
        for hold in expired:
            log.warning(
                "a hold expired",
                task_id=hold.task_id,
                customer=hold.customer,
                sku=hold.sku,
                held_microcredits=hold.held_microcredits,
                money=_LEASE_EXPIRED if hold.task_id.startswith(LEASE_PREFIX) else _EXPIRED,
            )
        swept += len(expired)
        if len(expired) < SWEEP_LIMIT:
            return swept


@shared_task(bind=True, name="billing.ensure_partitions", ignore_result=True, acks_late=True)
def ensure_partitions(self: Any) -> list[str]:
    """Make the log's partitions for the months ahead. Returns the names of new ones."""
    container: Container = self.app.metering.container
    return container.ensure_partitions()


@shared_task(bind=True, name="billing.check_balances", ignore_result=True, acks_late=True)
def check_balances(self: Any) -> list[dict[str, Any]]:
    """Bring Redis what it has not heard yet, then check every invariant and put right what is not.

    What is on its way between outbox and log looks like a difference; only what a second reading
    finds unchanged counts. Each is a row of ``discrepancies``; see ``billing reconcile``.

    Returns:
        What was found, JSON-friendly, with what became of it.
    """
    return _check_books(self.app.metering.container)


@shared_task(bind=True, name="billing.check_after_loss", ignore_result=True, acks_late=True)
def check_after_loss(self: Any) -> list[dict[str, Any]]:
    """Check the books out of turn where Redis restarted, was replaced or lost data a moment ago.

    Returns:
        As ``check_balances``; nothing where there was no reason to look.
    """
    container: Container = self.app.metering.container
    try:
        if not container.redis_restart_watch.is_due():
            return []
    except OutboxUnavailable:
        # What it was like is seen once it is back.
        return []
    log.warning(
        "redis restarted or lost data: the books are checked",
        money="balances may have forgotten their newest settlements; they are rebuilt from the log",
    )
    return _check_books(container)


@shared_task(bind=True, name="billing.seal_log", ignore_result=True, acks_late=True)
def seal_log(self: Any) -> dict[str, Any]:
    """Seal every hour of the log that is over, and what came late to those sealed before.

    Returns:
        How many seals were made over how many rows, and the newest seal's number.
    """
    container: Container = self.app.metering.container
    try:
        done = container.seal()
    except SealingBusyError:
        # Another worker, or somebody by hand: what is due is being sealed.
        return {"seals": 0, "rows": 0, "head": None}
    head = done.head.number if done.head else None
    if done.seals:
        log.info("the log was sealed", seals=done.seals, rows=done.rows, head=head)
    return {"seals": done.seals, "rows": done.rows, "head": head}


def _check_books(container: Container) -> list[dict[str, Any]]:
    container.account_loader.sync_many(customer.id for customer in container.customers.list())
    since = container.clock.now() - _LOOK_BACK
    findings = container.repair.run(since, repair=container.settings.reconcile_repairs)
    return [finding.as_dict() for finding in findings]
