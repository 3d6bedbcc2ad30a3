"""Beat's schedule: when each job of ``beat_jobs`` is due."""

from __future__ import annotations

from typing import Any, Final

from celery.schedules import crontab

_REPORTS_EVERY_SECONDS: Final = 600

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
    "report-usage": {
        "task": "billing.report_usage",
        # Not on the hour: an hour is reported once it is closed.
        "schedule": crontab(minute="6-59/10"),
        "options": {"expires": _REPORTS_EVERY_SECONDS - 30},
    },
    "confirm-reports": {
        "task": "billing.confirm_reports",
        "schedule": crontab(minute="1-59/10"),
        "options": {"expires": _REPORTS_EVERY_SECONDS - 30},
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
