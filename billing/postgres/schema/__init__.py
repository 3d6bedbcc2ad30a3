"""Every table (SQLAlchemy Core), by room. Migrations are checked against this for drift.

Roles: the *owner* migrates and keeps the catalogue; the *writer* (consumer) may insert into and
read the log and nothing more of it; the *reader* reads.
"""

from billing.postgres.schema.audit import log_archives, log_seal_leaves, log_seals
from billing.postgres.schema.base import OWNER_ROLE, READER_ROLE, WRITER_ROLE, metadata
from billing.postgres.schema.catalog import budgets, customers, grants, prices, skus
from billing.postgres.schema.providers import (
    ledger_figures,
    ledger_invoices,
    provider_invoices,
    webhook_events,
)
from billing.postgres.schema.quota import quota_fences, quota_recounts
from billing.postgres.schema.reconciliation import discrepancies
from billing.postgres.schema.reporting import (
    report_carries,
    report_passes,
    report_seals,
    usage_reports,
)
from billing.postgres.schema.usage_log import (
    dead_letters,
    log_manifests,
    usage_events,
    usage_hourly,
    usage_subject_counts,
    usage_subjects,
)

__all__ = [
    "OWNER_ROLE",
    "READER_ROLE",
    "WRITER_ROLE",
    "budgets",
    "customers",
    "dead_letters",
    "discrepancies",
    "grants",
    "ledger_figures",
    "ledger_invoices",
    "log_archives",
    "log_manifests",
    "log_seal_leaves",
    "log_seals",
    "metadata",
    "prices",
    "provider_invoices",
    "quota_fences",
    "quota_recounts",
    "report_carries",
    "report_passes",
    "report_seals",
    "skus",
    "usage_events",
    "usage_hourly",
    "usage_reports",
    "usage_subject_counts",
    "usage_subjects",
    "webhook_events",
]
