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
    # When Stripe told that it has deleted whom it knew this customer by; nobody is linked since.
    sa.Column("stripe_deleted_at", _instant),
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
    # Decimals of a credit that the provider's meter counts: 6 are microcredits.
    sa.Column("meter_decimals", sa.SmallInteger, nullable=False, server_default="6"),
    sa.CheckConstraint("meter_decimals BETWEEN 0 AND 6", name="meter_decimals"),
    # Whether each task asks the quota store, or a lease is asked for many.
    sa.Column("admission", sa.Text, nullable=False, server_default="exact"),
    sa.CheckConstraint("admission IN ('exact', 'leased')", name="admission"),
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

# What a batch has logged, written with it: for each row its id (16 bytes) and its leaf (32 bytes
# over all of it), one manifest per hour of usage. They wait here for their hour's seal.
log_manifests = sa.Table(
    "log_manifests",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("hour", _instant, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("ids", sa.LargeBinary, nullable=False),
    sa.Column("hashes", sa.LargeBinary, nullable=False),
    sa.Column("logged_at", _instant, nullable=False, server_default=_now),
    sa.CheckConstraint(
        "rows > 0 AND octet_length(ids) = 16 * rows AND octet_length(hashes) = 32 * rows",
        name="rows",
    ),
    sa.Index("log_manifests_hour_idx", "hour", "id"),
)

# Seals, each chained to the one before (billing/audit/seal_chain.py); kept for good.
log_seals = sa.Table(
    "log_seals",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("hour", _instant, nullable=False),
    sa.Column("sealed_at", _instant, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    # In the log without the application having said so, and sealed at an operator's word.
    sa.Column("adopted", sa.Boolean, nullable=False),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sa.Column("previous", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("hash", sa.LargeBinary, nullable=False, unique=True),
    sa.CheckConstraint("number > 0 AND rows > 0", name="counts"),
    sa.Index("log_seals_hour_idx", "hour", "number"),
)

# The ids and leaves under a seal's root; an archived month has them in its file instead.
log_seal_leaves = sa.Table(
    "log_seal_leaves",
    metadata,
    sa.Column("number", sa.BigInteger, sa.ForeignKey("log_seals.number"), primary_key=True),
    sa.Column("ids", sa.LargeBinary, nullable=False),
    sa.Column("hashes", sa.LargeBinary, nullable=False),
)

# Months that left the database, or are on their way. Files are named without their folder.
log_archives = sa.Table(
    "log_archives",
    metadata,
    sa.Column("month", sa.Date, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("file", sa.Text),
    sa.Column("file_bytes", sa.BigInteger),
    sa.Column("file_sha256", sa.LargeBinary),
    # The month's seals with their leaves.
    sa.Column("seals_file", sa.Text),
    sa.Column("seals_bytes", sa.BigInteger),
    sa.Column("seals_sha256", sa.LargeBinary),
    sa.Column("rows", sa.BigInteger),
    sa.Column("quantity", _total),
    sa.Column("amount_microcredits", _total),
    sa.Column("shortfall_microcredits", _total),
    sa.Column("cost_micros", _total),
    # Over the hashes of the month's seals; and the newest seal at that time.
    sa.Column("seals_root", sa.LargeBinary),
    sa.Column("head_number", sa.BigInteger),
    sa.Column("head_hash", sa.LargeBinary),
    sa.Column("begun_at", _instant, nullable=False),
    sa.Column("verified_at", _instant),
    sa.Column("dropped_at", _instant),
    sa.Column("restored_at", _instant),
    sa.CheckConstraint("extract(day FROM month) = 1", name="month"),
    sa.CheckConstraint(
        "state IN ('exporting', 'exported', 'verified', 'detached', 'dropped', 'restored')",
        name="state",
    ),
    sa.CheckConstraint(
        "state IN ('exporting', 'restored') OR (file IS NOT NULL AND file_bytes IS NOT NULL"
        " AND file_sha256 IS NOT NULL AND seals_file IS NOT NULL AND seals_bytes IS NOT NULL"
        " AND seals_sha256 IS NOT NULL AND rows IS NOT NULL AND seals_root IS NOT NULL)",
        name="exported",
    ),
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
    # Reports compare hours of all customers.
    sa.Index("usage_hourly_hour_idx", "hour"),
)

usage_subjects = sa.Table(
    "usage_subjects",
    metadata,
    # Which subjects a customer used a SKU on, per UTC month. The id stands for all four
    # (billing.usage_log.distinct_subjects): of the subject itself nothing more is kept.
    sa.Column("id", UUID(as_uuid=True), primary_key=True),
    sa.Column("customer_id", sa.Text, nullable=False),
    sa.Column("sku_id", sa.Text, nullable=False),
    sa.Column("month", sa.Date, nullable=False),
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

_open_states: Final = "state IN ('pending', 'sending', 'unknown')"

# Reports to a billing provider: an outbox. One row per revision of a bucket (customer, SKU, hour).
usage_reports = sa.Table(
    "usage_reports",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("customer_id", sa.Text, sa.ForeignKey("customers.id"), nullable=False),
    sa.Column("sku_id", sa.Text, sa.ForeignKey("skus.id"), nullable=False),
    sa.Column("hour", _instant, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    # Whether it is its bucket's last revision.
    sa.Column("latest", sa.Boolean, nullable=False),
    # The complete request; never changed once written.
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("meter", sa.Text, nullable=False),
    sa.Column("overwrites", sa.Boolean, nullable=False),
    sa.Column("identifier", sa.Text, nullable=False, unique=True),
    sa.Column("customer_ref", sa.Text),
    sa.Column("value", _total, nullable=False),
    sa.Column("event_at", _instant, nullable=False),
    # The log's total that this revision stands for; what the provider has once it took this.
    sa.Column("total_microcredits", _total, nullable=False),
    sa.Column("held_microcredits", _total, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("cause", sa.Text, nullable=False, server_default=""),
    sa.Column("detail", sa.Text, nullable=False, server_default=""),
    # An attempt ended without an answer, and nothing since has told whether it arrived.
    sa.Column("doubtful", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_at", _instant, nullable=False),
    # Whose it is while it is being sent, and until when.
    sa.Column("claim", UUID(as_uuid=True)),
    sa.Column("lease_until", _instant),
    sa.Column("created_at", _instant, nullable=False),
    sa.Column("first_sent_at", _instant),
    sa.Column("answered_at", _instant),
    # When it is read back next; none where it is not. How often it was without agreeing, and how
    # many revisions before it were sent again because what was read back differed.
    sa.Column("confirm_at", _instant),
    sa.Column("readings", sa.Integer, nullable=False, server_default="0"),
    sa.Column("resent", sa.Integer, nullable=False, server_default="0"),
    sa.Column("confirmed_at", _instant),
    sa.UniqueConstraint(
        "customer_id", "sku_id", "hour", "revision", name="usage_reports_bucket_revision_key"
    ),
    sa.CheckConstraint(
        "state IN ('pending', 'sending', 'unknown', 'accepted', 'confirmed', 'parked')",
        name="state",
    ),
    sa.CheckConstraint("revision >= 1 AND attempts >= 0", name="counts"),
    sa.CheckConstraint("char_length(identifier) BETWEEN 1 AND 100", name="identifier"),
    sa.CheckConstraint("event_at >= hour AND event_at < hour + interval '1 hour'", name="event_at"),
    sa.CheckConstraint(
        "state = 'parked' OR (customer_ref IS NOT NULL AND abs(value) < 1000000000000000)",
        name="sendable",
    ),
    sa.CheckConstraint("(state = 'sending') = (claim IS NOT NULL)", name="claim"),
    sa.CheckConstraint("state <> 'parked' OR cause <> ''", name="parked_for"),
    sa.Index(
        "usage_reports_latest_idx",
        "customer_id", "sku_id", "hour",
        unique=True,
        postgresql_where=sa.text("latest"),
    ),
    # Never revision n+1 before n has its answer.
    sa.Index(
        "usage_reports_open_idx",
        "customer_id", "sku_id", "hour",
        unique=True,
        postgresql_where=sa.text(_open_states),
    ),
    # One in flight per customer and meter.
    sa.Index(
        "usage_reports_in_flight_idx",
        "provider", "customer_id", "meter",
        unique=True,
        postgresql_where=sa.text("state = 'sending'"),
    ),
    sa.Index(
        "usage_reports_due_idx",
        "provider", "customer_id", "meter", "hour",
        postgresql_where=sa.text("state IN ('pending', 'unknown')"),
    ),
    sa.Index(
        "usage_reports_confirm_idx",
        "provider", "confirm_at", "id",
        postgresql_where=sa.text("confirm_at IS NOT NULL"),
    ),
    sa.Index(
        "usage_reports_parked_idx",
        "customer_id", "sku_id", "hour",
        postgresql_where=sa.text(
            "state = 'parked' AND latest AND cause <> 'carried' AND cause <> 'nothing_to_tell'"
        ),
    ),
)  # fmt: skip

# Amounts that are reported in a later hour than they were used in: signed lines. What an hour comes
# to for a provider is its rollup, less what was carried out of it, and what was carried into it.
report_carries = sa.Table(
    "report_carries",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("customer_id", sa.Text, sa.ForeignKey("customers.id"), nullable=False),
    sa.Column("sku_id", sa.Text, sa.ForeignKey("skus.id"), nullable=False),
    sa.Column("from_hour", _instant, nullable=False),
    sa.Column("to_hour", _instant, nullable=False),
    sa.Column("amount_microcredits", _total, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
    sa.Column("created_at", _instant, nullable=False),
    sa.CheckConstraint("to_hour > from_hour", name="forwards"),
    sa.CheckConstraint("amount_microcredits <> 0", name="amount"),
    sa.CheckConstraint(
        "reason IN ('late', 'too_old', 'remainder', 'below_zero', 'billed')", name="reason"
    ),
    sa.Index("report_carries_from_idx", "customer_id", "sku_id", "from_hour"),
    sa.Index("report_carries_to_idx", "customer_id", "sku_id", "to_hour"),
    sa.Index("report_carries_from_hour_idx", "from_hour"),
    sa.Index("report_carries_to_hour_idx", "to_hour"),
)

# Periods that a provider has made final for a customer's meter: nothing is sent for their hours any
# more. `billed_value`: what its invoice has, in the meter's unit. Settled: compared with what was
# accepted.
report_seals = sa.Table(
    "report_seals",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("customer_id", sa.Text, sa.ForeignKey("customers.id"), nullable=False),
    sa.Column("customer_ref", sa.Text, nullable=False),
    sa.Column("meter", sa.Text, nullable=False),
    sa.Column("period_start", _instant, nullable=False),
    sa.Column("period_end", _instant, nullable=False),
    sa.Column("invoice_ref", sa.Text, nullable=False),
    sa.Column("billed_value", _total, nullable=False),
    sa.Column("noticed_at", _instant, nullable=False),
    sa.Column("settled_at", _instant),
    sa.UniqueConstraint(
        "provider", "invoice_ref", "meter", "period_end", name="report_seals_invoice_key"
    ),
    sa.CheckConstraint("period_start < period_end", name="period"),
    # Whoever sealed it: its hours are sent to nobody.
    sa.Index("report_seals_customer_idx", "customer_id", "meter", "period_end"),
    sa.Index(
        "report_seals_unsettled_idx",
        "provider", "period_end",
        postgresql_where=sa.text("settled_at IS NULL"),
    ),
)  # fmt: skip

# Invoices as the provider last told of them.
provider_invoices = sa.Table(
    "provider_invoices",
    metadata,
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("invoice_ref", sa.Text, primary_key=True),
    sa.Column("customer_ref", sa.Text, nullable=False),
    # None where no customer of ours is known by that name there.
    sa.Column("customer_id", sa.Text, sa.ForeignKey("customers.id")),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("total_minor", sa.BigInteger, nullable=False),
    sa.Column("period_start", _instant, nullable=False),
    sa.Column("period_end", _instant, nullable=False),
    sa.Column("finalized_at", _instant),
    sa.Column("payment_failed_at", _instant),
    sa.Column("updated_at", _instant, nullable=False),
    sa.CheckConstraint(
        "status IN ('draft', 'open', 'paid', 'void', 'uncollectible', 'deleted')", name="status"
    ),
    sa.Index("provider_invoices_customer_idx", "customer_id", "period_end"),
)

# What a provider has told by webhook, once per event: written with its effect.
webhook_events = sa.Table(
    "webhook_events",
    metadata,
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("type", sa.Text, nullable=False),
    # The provider's time of the event, and ours of its arrival.
    sa.Column("happened_at", _instant, nullable=False),
    sa.Column("received_at", _instant, nullable=False),
    sa.Column("result", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False, server_default=""),
    # Kept where nothing could be done with it yet.
    sa.Column("body", sa.LargeBinary),
    sa.CheckConstraint("result IN ('done', 'ignored', 'kept')", name="result"),
    sa.CheckConstraint("(result = 'kept') = (body IS NOT NULL)", name="body"),
    sa.Index("webhook_events_received_idx", "received_at"),
)

# When totals were last compared with reports, by how far back.
report_passes = sa.Table(
    "report_passes",
    metadata,
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("depth", sa.Text, primary_key=True),
    sa.Column("started_at", _instant, nullable=False),
)

# The built-in provider: figures it has accepted, and its invoices.
ledger_figures = sa.Table(
    "ledger_figures",
    metadata,
    # The order of arrival: the last figure of an hour counts.
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("identifier", sa.Text, nullable=False, unique=True),
    sa.Column("customer_id", sa.Text, sa.ForeignKey("customers.id"), nullable=False),
    sa.Column("meter", sa.Text, nullable=False),
    sa.Column("hour", _instant, nullable=False),
    sa.Column("value", sa.BigInteger, nullable=False),
    sa.Column("event_at", _instant, nullable=False),
    sa.Column("taken_at", _instant, nullable=False, server_default=_now),
    sa.Index("ledger_figures_hour_idx", "customer_id", "meter", "hour", "id"),
)

ledger_invoices = sa.Table(
    "ledger_invoices",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("customer_id", sa.Text, sa.ForeignKey("customers.id"), nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="draft"),
    sa.Column("lines", JSONB, nullable=False),
    sa.Column("created_at", _instant, nullable=False, server_default=_now),
    sa.CheckConstraint("status IN ('draft', 'open', 'paid', 'void')", name="status"),
)

# What reconcile found, once for as long as it lasts. Customers are named, not referred to: one that
# only Redis knows is a discrepancy too.
discrepancies = sa.Table(
    "discrepancies",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("customer_id", sa.Text, nullable=False),
    sa.Column("expected", _total, nullable=False),
    sa.Column("found", _total, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("cause", sa.Text, nullable=False, server_default=""),
    sa.Column("remedy", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
    sa.Column("times_seen", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("first_seen_at", _instant, nullable=False),
    sa.Column("last_seen_at", _instant, nullable=False),
    sa.Column("ended_at", _instant),
    sa.CheckConstraint(
        "state IN ('found', 'waiting', 'failed', 'repaired', 'gone')", name="state"
    ),
    sa.CheckConstraint("(state IN ('repaired', 'gone')) = (ended_at IS NOT NULL)", name="ended"),
    sa.Index(
        "discrepancies_open_idx",
        "kind", "customer_id", sa.text("md5(detail)"),
        unique=True,
        postgresql_where=sa.text("ended_at IS NULL"),
    ),
    sa.Index("discrepancies_last_seen_at_idx", "last_seen_at"),
)  # fmt: skip
