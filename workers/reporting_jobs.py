"""Beat's jobs on the way to a billing provider. Each does whatever is due, and may fire twice.

They never raise for what an operator has to put right (a key, an outage): that is logged with what
it means for money, and everything stays as it is until the next time.
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
from celery.schedules import crontab

from billing.container import Container
from billing.core.errors import ConfigurationError
from billing.core.periods import Period, month_of
from billing.providers.port import ProviderUnavailable
from billing.reporting.report_store import Sums
from billing.stripe_webhooks.processor import Polled

log = structlog.get_logger(__name__)

EVERY_MINUTES: Final = 10
RUN: Final = timedelta(minutes=8)
"""A run begins nothing new after this; the next one goes on."""
INVOICES_BACK: Final = timedelta(days=5)
"""An invoice is final at most three days after it was made; two more for an outage of ours."""

REPORTING_SCHEDULE: Final[dict[str, dict[str, Any]]] = {
    "report-usage": {
        "task": "billing.report_usage",
        # Not on the hour: an hour is reported once it is closed.
        "schedule": crontab(minute="6-59/10"),
        "options": {"expires": EVERY_MINUTES * 60 - 30},
    },
    "confirm-reports": {
        "task": "billing.confirm_reports",
        "schedule": crontab(minute="1-59/10"),
        "options": {"expires": EVERY_MINUTES * 60 - 30},
    },
    "poll-invoices": {
        "task": "billing.poll_invoices",
        "schedule": crontab(minute="16"),
        "options": {"expires": 1800},
    },
    "check-reports": {
        "task": "billing.check_reports",
        "schedule": crontab(minute="36"),
        "options": {"expires": 1800},
    },
}


@shared_task(bind=True, name="billing.report_usage", ignore_result=True, acks_late=True)
def report_usage(self: Any) -> dict[str, Any]:
    """Advance everything due; returns what became of it."""
    container: Container = self.app.metering.container
    told: dict[str, Any] = {}
    with _told_to_an_operator("usage is not reported; it stays due and keeps accruing"):
        done = container.reporting.reporter().advance(until=container.clock.now() + RUN)
        told = {
            "planned": done.planned,
            "became": {state.value: count for state, count in done.became.items()},
            "stopped": done.stopped,
            "blocked": done.blocked,
        }
        for difference in done.differed:
            log.error(
                "a period was billed otherwise than it was accepted",
                **asdict(difference),
                money="the difference is carried into the open period, so it is billed there",
                remedy="none is needed; billing report status shows sealed periods and carries",
            )
        if done.stopped or done.blocked:
            log.error(
                "usage is not reported",
                **told,
                money="it stays due and keeps accruing; nothing is lost",
                remedy="billing report status",
            )
        elif done.planned or done.became:
            log.info("usage reported", **told)
    return told


@shared_task(bind=True, name="billing.confirm_reports", ignore_result=True, acks_late=True)
def confirm_reports(self: Any) -> dict[str, int]:
    """Read back what was accepted; returns how many reports were confirmed, resent, parked."""
    container: Container = self.app.metering.container
    told = Counter[str]()
    with _told_to_an_operator("what was accepted is not confirmed; it is read back later"):
        until = container.clock.now() + RUN
        # A former provider, too, may count something else than it accepted.
        for reader in container.reporting.readers():
            done = reader.confirm(until=until)
            told.update(confirmed=done.confirmed, resent=done.resent, parked=done.parked)
            if done.stopped:
                log.error("reports are not read back", stopped=done.stopped)
    if told["parked"]:
        log.error(
            "reports were parked: the provider counts something else than it accepted",
            **told,
            money="these hours may be billed wrongly until somebody looks",
            remedy="billing report list --state parked",
        )
    return dict(told)


@shared_task(bind=True, name="billing.poll_invoices", ignore_result=True, acks_late=True)
def poll_invoices(self: Any) -> dict[str, int]:
    """Notice invoices that became final, also where no webhook told of them; returns counts."""
    container: Container = self.app.metering.container
    done = Polled()
    with _told_to_an_operator("sealed periods are not noticed; late usage waits"):
        since = container.clock.now() - INVOICES_BACK
        done = container.reporting.webhook_processor.poll(container.reporting.provider, since)
    return asdict(done)


@shared_task(bind=True, name="billing.check_reports", ignore_result=True, acks_late=True)
def check_reports(self: Any) -> list[dict[str, Any]]:
    """Check the invariant: log = accepted + open + parked + unclaimed + carried, to the unit.

    Of this month and the last one, and of closed hours, so that nothing may be unclaimed.

    Returns:
        Per customer, SKU and month where it does not hold, or what is in no report.
    """
    container: Container = self.app.metering.container
    found = []
    for period in _closed_months(container):
        for row in container.reporting.reports.sums(period):
            if not (row.unclaimed or row.off_by):
                continue
            told = {
                "month": period.label,
                "customer": row.customer,
                "sku": row.sku,
                "unclaimed_microcredits": row.unclaimed,
                "off_by_microcredits": row.off_by,
            }
            found.append(told)
            _tell(told, row)
    return found


def _closed_months(container: Container) -> list[Period]:
    """This month and the last one, as far as their hours are closed and were looked at since."""
    now = container.clock.now()
    closed = now - timedelta(seconds=container.settings.report_lag_seconds) - timedelta(hours=2)
    this = month_of(now)
    months = (this, month_of(this.start - timedelta(days=1)))
    ends = ((month, min(month.end, closed)) for month in months)
    return [Period(month.label, month.start, end) for month, end in ends if end > month.start]


def _tell(told: dict[str, Any], row: Sums) -> None:
    if row.off_by:
        log.error(
            "the reports do not add up to the log",
            **told,
            accepted_microcredits=row.accepted,
            logged_microcredits=row.logged,
            money="what was accepted is not what the log has: some of it is billed wrongly",
            remedy="billing report status and billing reconcile provider; please report it",
        )
    if row.unclaimed:
        log.error(
            "usage of closed hours is in no report",
            **told,
            money="it is not billed until it is reported; nothing is lost",
            remedy="billing report run; is beat running, and is the provider's key right? What "
            "came late for an hour older than three days is reported within six hours",
        )


@contextmanager
def _told_to_an_operator(money: str) -> Iterator[None]:
    try:
        yield
    except ConfigurationError as error:
        # The message says it all; a traceback every ten minutes would bury it.
        log.error("the billing provider cannot be used", error=str(error), money=money)  # noqa: TRY400
    except ProviderUnavailable as error:
        log.warning("the billing provider did not answer", error=str(error), money=money)
