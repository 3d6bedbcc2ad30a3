"""Every table, in one file (SQLAlchemy Core). Migrations are checked against this for drift.

Roles: the *owner* migrates and keeps the catalogue; the *writer* (consumer) may insert into and
read the log and nothing more of it; the *reader* reads.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, UUID

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "ix": "%(table_name)s_%(column_0_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

OWNER_ROLE: Final = "weighbridge_owner"
WRITER_ROLE: Final = "weighbridge_writer"
READER_ROLE: Final = "weighbridge_reader"

_instant = sa.TIMESTAMP(timezone=True)
_now = sa.text("now()")
# Sums of amounts that are each at most 2^53 may pass 2^63; numeric cannot overflow.
_total = sa.Numeric(38, 0)

customers = sa.Table(
    "customers",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="active"),
    sa.Column("time_zone", sa.Text, nullable=False, server_default="UTC"),
    sa.Column("stripe_customer_id", sa.Text, unique=True),
    sa.Column("created_at", _instant, nullable=False, server_default=_now),
    sa.CheckConstraint("status IN ('active', 'suspended')", name="status"),
)

skus = sa.Table(
    "skus",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("description", sa.Text, nullable=False, server_default=""),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("pricing", sa.Text, nullable=False),
    sa.Column("hold_quantity", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("failure_policy", sa.Text, nullable=False, server_default="release"),
    sa.Column("denial_policy", sa.Text, nullable=False, server_default="fail"),
    sa.Column("unavailable_policy", sa.Text, nullable=False, server_default="retry"),
    sa.Column("allow_limit", sa.Integer, nullable=False, server_default="0"),
    sa.Column("created_at", _instant, nullable=False, server_default=_now),
    sa.CheckConstraint("pricing IN ('fixed', 'measured')", name="pricing"),
    sa.CheckConstraint("hold_quantity > 0", name="hold_quantity"),
    sa.CheckConstraint("pricing <> 'fixed' OR hold_quantity = 1", name="fixed_holds_one"),
    sa.CheckConstraint("failure_policy IN ('release', 'charge')", name="failure_policy"),
    sa.CheckConstraint("denial_policy IN ('fail', 'defer')", name="denial_policy"),
    sa.CheckConstraint("unavailable_policy IN ('retry', 'deny', 'allow')", name="unavailable"),
    sa.CheckConstraint(
        "allow_limit >= 0 AND (unavailable_policy <> 'allow' OR allow_limit > 0)",
        name="allow_limit",
    ),
)

prices = sa.Table(
    "prices",
    metadata,
    sa.Column("sku_id", sa.Text, sa.ForeignKey("skus.id"), primary_key=True),
    sa.Column("effective_from", _instant, primary_key=True),
    sa.Column("unit_price_microcredits", sa.BigInteger, nullable=False),
    sa.Column("created_at", _instant, nullable=False, server_default=_now),
    sa.CheckConstraint(
        "unit_price_microcredits BETWEEN 0 AND 9007199254740992", name="unit_price_microcredits"
    ),
)

budgets = sa.Table(
    "budgets",
    metadata,
    sa.Column("customer_id", sa.Text, sa.ForeignKey("customers.id"), primary_key=True),
    # A SKU, or '*' for all of them together.
    sa.Column("sku_id", sa.Text, primary_key=True),
    sa.Column("limit_microcredits", sa.BigInteger, nullable=False),
    sa.CheckConstraint("limit_microcredits BETWEEN 0 AND 9007199254740992", name="limit"),
)

grants = sa.Table(
    "grants",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("customer_id", sa.Text, sa.ForeignKey("customers.id"), nullable=False),
    sa.Column("amount_microcredits", sa.BigInteger, nullable=False),
    # The caller's own name for this grant; makes giving it twice one grant.
    sa.Column("reference", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
    sa.Column("created_at", _instant, nullable=False, server_default=_now),
    sa.UniqueConstraint("customer_id", "reference", name="grants_customer_id_reference_key"),
    sa.CheckConstraint("amount_microcredits BETWEEN 1 AND 9007199254740992", name="amount"),
)

quota_fences = sa.Table(
    "quota_fences",
    metadata,
    # One row per customer, made with the customer. `epoch` and `version`: quota.hold.AccountState.
    sa.Column("customer_id", sa.Text, sa.ForeignKey("customers.id"), primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("granted_microcredits", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("late_microcredits", _total, nullable=False, server_default="0"),
    sa.Column("rebuilt_at", _instant),
    sa.CheckConstraint("granted_microcredits BETWEEN 0 AND 9007199254740992", name="granted"),
)

# What a balance counted of an event that the log had already, told under another epoch (published
# directly, then settled by a run that came back). Each is taken out of that balance once.
quota_recounts = sa.Table(
    "quota_recounts",
    metadata,
    sa.Column("customer_id", sa.Text, sa.ForeignKey("customers.id"), primary_key=True),
    sa.Column("event_id", UUID(as_uuid=True), primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("amount_microcredits", sa.BigInteger, nullable=False),
    sa.Column("recorded_at", _instant, nullable=False, server_default=_now),
)

# The fulfillment log. Partitioned by month on a RANGE of the id (a UUIDv7), so that the id alone is
# unique across all partitions. Insert-only for the application.
usage_events = sa.Table(
    "usage_events",
    metadata,
    sa.Column("id", UUID(as_uuid=True), primary_key=True),
    sa.Column("customer_id", sa.Text, nullable=False),
    sa.Column("sku_id", sa.Text, nullable=False),
    sa.Column("line", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    sa.Column("amount_microcredits", sa.BigInteger, nullable=False),
    sa.Column("shortfall_microcredits", sa.BigInteger, nullable=False),
    sa.Column("held_microcredits", sa.BigInteger, nullable=False),
    sa.Column("cost_micros", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("subject", sa.Text),
    sa.Column("dimensions", JSONB, nullable=False),
    sa.Column("task_id", sa.Text, nullable=False),
    sa.Column("task_name", sa.Text, nullable=False),
    sa.Column("root_id", sa.Text),
    sa.Column("parent_id", sa.Text),
    sa.Column("group_id", sa.Text),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("degraded", sa.Boolean, nullable=False),
    sa.Column("quota_epoch", sa.BigInteger, nullable=False),
    sa.Column("started_at", _instant),
    sa.Column("finished_at", _instant),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    sa.Column("logged_at", _instant, nullable=False, server_default=_now),
    sa.CheckConstraint(
        "amount_microcredits BETWEEN 0 AND 9007199254740992"
        " AND quantity BETWEEN 0 AND 9007199254740992 AND shortfall_microcredits >= 0"
        " AND held_microcredits >= 0 AND cost_micros >= 0",
        name="amounts",
    ),
    sa.CheckConstraint("outcome IN ('succeeded', 'failed', 'denied')", name="outcome"),
    sa.CheckConstraint("outcome <> 'denied' OR amount_microcredits = 0", name="denied_is_free"),
    sa.Index("usage_events_customer_id_id_idx", "customer_id", "id"),
    sa.Index("usage_events_task_id_idx", "task_id"),
    postgresql_partition_by="RANGE (id)",
)

usage_hourly = sa.Table(
    "usage_hourly",
    metadata,
    sa.Column("customer_id", sa.Text, primary_key=True),
    sa.Column("hour", _instant, primary_key=True),
    sa.Column("sku_id", sa.Text, primary_key=True),
    sa.Column("outcome", sa.Text, primary_key=True),
    # Why it was denied or failed; empty for what succeeded.
    sa.Column("reason", sa.Text, primary_key=True),
    sa.Column("events", sa.BigInteger, nullable=False),
    sa.Column("quantity", _total, nullable=False),
    sa.Column("amount_microcredits", _total, nullable=False),
    sa.Column("shortfall_microcredits", _total, nullable=False),
    sa.Column("cost_micros", _total, nullable=False),
)

usage_subjects = sa.Table(
    "usage_subjects",
    metadata,
    # Which subjects a customer used a SKU on, per UTC month; only a digest of each is kept.
    sa.Column("customer_id", sa.Text, primary_key=True),
    sa.Column("sku_id", sa.Text, primary_key=True),
    sa.Column("month", sa.Date, primary_key=True),
    sa.Column("subject_digest", sa.LargeBinary, primary_key=True),
)

usage_subject_counts = sa.Table(
    "usage_subject_counts",
    metadata,
    sa.Column("customer_id", sa.Text, primary_key=True),
    sa.Column("sku_id", sa.Text, primary_key=True),
    sa.Column("month", sa.Date, primary_key=True),
    sa.Column("subjects", sa.BigInteger, nullable=False),
)

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    # SHA-256 of body and reason: a message that comes back unchanged is the same dead letter.
    sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    # What could be read of the message; for listing only.
    sa.Column("event_id", sa.Text),
    sa.Column("customer_id", sa.Text),
    sa.Column("task_id", sa.Text),
    sa.Column("times_seen", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("first_seen_at", _instant, nullable=False, server_default=_now),
    sa.Column("last_seen_at", _instant, nullable=False, server_default=_now),
    sa.Column("replayed_at", _instant),
    sa.Index("dead_letters_task_id_idx", "task_id"),
)
