"""Beat's jobs. Each does whatever is due, so it may fire twice, late or never without harm.

What an operator has to put right (a key, an outage) never fails a job: it is logged with what it
means for money, and everything stays as it is until the next time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Final

import structlog
from celery import shared_task

from billing.audit.sealer import SealingBusyError
from billing.container import Container
from billing.core.credit_lease import LEASE_PREFIX
from billing.core.errors import ConfigurationError
from billing.core.periods import Period, month_of
from billing.providers.port import ProviderUnavailable
from billing.reporting.report_store import Sums
from billing.stripe_webhooks.processor import Polled
from billing.transport.outbox import OutboxUnavailable

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
_REPORT_FOR: Final = timedelta(minutes=8)
"""A run begins nothing new after this; the next one goes on."""
_INVOICES_BACK: Final = timedelta(days=5)
"""An invoice is final at most three days after it was made; two more for an outage of ours."""


@shared_task(bind=True, name="billing.sweep_holds", ignore_result=True, acks_late=True)
def sweep_holds(self: Any) -> int:
    """Expire holds that are over time, so that their credits can be spent; returns how many."""
    container: Container = self.app.metering.container
    swept = 0
    while True:
        expired = container.quota.expire(SWEEP_LIMIT)
        for hold in expired:
            log.warning(
                "hold_expired",
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
    """Make the log's partitions for the months ahead; returns the names of new ones."""
    container: Container = self.app.metering.container
    return container.ensure_partitions()


@shared_task(bind=True, name="billing.check_balances", ignore_result=True, acks_late=True)
def check_balances(self: Any) -> list[dict[str, Any]]:
    """Load pending account changes into Redis, check every invariant, repair what is broken.

    Usage between outbox and log looks like a difference; only what a second reading finds unchanged
    counts. Each is a row of ``discrepancies``; see ``billing reconcile``.

    Returns:
        The discrepancies, JSON-friendly, with what became of each.
    """
    return _check_balances(self.app.metering.container)


@shared_task(bind=True, name="billing.check_after_loss", ignore_result=True, acks_late=True)
def check_after_loss(self: Any) -> list[dict[str, Any]]:
    """Check balances out of turn where Redis restarted, was replaced or lost data a moment ago.

    Returns:
        As ``check_balances``; nothing where no check was due.
    """
    container: Container = self.app.metering.container
    try:
        if not container.redis_restart_watch.is_due():
            return []
    except OutboxUnavailable:
        # Its restart is seen once it is back.
        return []
    log.warning(
        "redis_restarted",
        money="balances may have forgotten their newest settlements; they are rebuilt from the log",
    )
    return _check_balances(container)


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
        log.info("log_sealed", seals=done.seals, rows=done.rows, head=head)
    return {"seals": done.seals, "rows": done.rows, "head": head}


@shared_task(bind=True, name="billing.report_usage", ignore_result=True, acks_late=True)
def report_usage(self: Any) -> dict[str, Any]:
    """Report all usage that is due to the billing provider; returns counts by outcome."""
    container: Container = self.app.metering.container
    counts: dict[str, Any] = {}
    with _provider_errors_logged("usage is not reported; it stays due and keeps accruing"):
        done = container.reporting.reporter().advance(until=container.clock.now() + _REPORT_FOR)
        counts = {
            "planned": done.planned,
            "became": {state.value: count for state, count in done.became.items()},
            "stopped": done.stopped,
            "blocked": done.blocked,
        }
        for difference in done.differed:
            log.error(
                "closed_period_billed_otherwise",
                **asdict(difference),
                money="the difference is carried into the open period, so it is billed there",
                remedy="none is needed; billing report status shows sealed periods and carries",
            )
        if done.stopped or done.blocked:
            log.error(
                "usage_not_reported",
                **counts,
                money="it stays due and keeps accruing; nothing is lost",
                remedy="billing report status",
            )
        elif done.planned or done.became:
            log.info("usage_reported", **counts)
    return counts


@shared_task(bind=True, name="billing.confirm_reports", ignore_result=True, acks_late=True)
def confirm_reports(self: Any) -> dict[str, int]:
    """Read accepted reports back; returns how many were confirmed, resent and parked."""
    container: Container = self.app.metering.container
    counts = Counter[str]()
    with _provider_errors_logged("what was accepted is not confirmed; it is read back later"):
        until = container.clock.now() + _REPORT_FOR
        # A former provider, too, may count something else than it accepted.
        for reader in container.reporting.readers():
            done = reader.confirm(until=until)
            counts.update(confirmed=done.confirmed, resent=done.resent, parked=done.parked)
            if done.stopped:
                log.error("reports_not_read_back", stopped=done.stopped)
    if counts["parked"]:
        log.error(
            "reports_parked",
            **counts,
            problem="the provider counts something else than it accepted",
            money="these hours may be billed wrongly until somebody looks",
            remedy="billing report list --state parked",
        )
    return dict(counts)


@shared_task(bind=True, name="billing.poll_invoices", ignore_result=True, acks_late=True)
def poll_invoices(self: Any) -> dict[str, int]:
    """Find invoices that became final, whether or not a webhook came; returns counts."""
    container: Container = self.app.metering.container
    done = Polled()
    with _provider_errors_logged("sealed periods are not noticed; late usage waits"):
        since = container.clock.now() - _INVOICES_BACK
        done = container.reporting.webhook_processor.poll(container.reporting.provider, since)
    return asdict(done)


@shared_task(bind=True, name="billing.check_reports", ignore_result=True, acks_late=True)
def check_reports(self: Any) -> list[dict[str, Any]]:
    """Check the invariant: log = accepted + open + parked + unclaimed + carried, to the unit.

    Covers the closed hours of this month and the last one, in which nothing may be unclaimed.

    Returns:
        One row for each customer, SKU and month where it does not hold, or usage is in no report.
    """
    container: Container = self.app.metering.container
    found = []
    for period in _closed_months(container):
        for row in container.reporting.reports.sums(period):
            if not (row.unclaimed or row.off_by):
                continue
            figures = {
                "month": period.label,
                "customer": row.customer,
                "sku": row.sku,
                "unclaimed_microcredits": row.unclaimed,
                "off_by_microcredits": row.off_by,
            }
            found.append(figures)
            _log_broken_sums(figures, row)
    return found


def _check_balances(container: Container) -> list[dict[str, Any]]:
    container.account_loader.sync_many(customer.id for customer in container.customers.list())
    since = container.clock.now() - _LOOK_BACK
    discrepancies = container.repair.run(since, repair=container.settings.reconcile_repairs)
    return [one.as_dict() for one in discrepancies]


def _closed_months(container: Container) -> list[Period]:
    """This month and the last one, as far as their hours are closed and a report was due since."""
    now = container.clock.now()
    closed = now - timedelta(seconds=container.settings.report_lag_seconds) - timedelta(hours=2)
    this = month_of(now)
    months = (this, month_of(this.start - timedelta(days=1)))
    ends = ((month, min(month.end, closed)) for month in months)
    return [Period(month.label, month.start, end) for month, end in ends if end > month.start]


def _log_broken_sums(figures: dict[str, Any], row: Sums) -> None:
    if row.off_by:
        log.error(
            "reports_differ_from_log",
            **figures,
            accepted_microcredits=row.accepted,
            logged_microcredits=row.logged,
            money="what was accepted is not what the log has: some of it is billed wrongly",
            remedy="billing report status and billing reconcile provider; please report it",
        )
    if row.unclaimed:
        log.error(
            "closed_usage_in_no_report",
            **figures,
            money="it is not billed until it is reported; nothing is lost",
            remedy="billing report run; is beat running, and is the provider's key right? What "
            "came late for an hour older than three days is reported within six hours",
        )


@contextmanager
def _provider_errors_logged(money: str) -> Iterator[None]:
    try:
        yield
    except ConfigurationError as error:
        # The message says it all; a traceback every ten minutes would bury it.
        log.error("provider_misconfigured", error=str(error), money=money)  # noqa: TRY400
    except ProviderUnavailable as error:
        log.warning("provider_unavailable", error=str(error), money=money)
