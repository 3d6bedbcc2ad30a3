"""Reports to a billing provider, and what it made final."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

from billing.postgres.schema.base import instant, metadata, total

_OPEN_STATES: Final = "state IN ('pending', 'sending', 'unknown')"

# Reports to a billing provider: an outbox. One row per revision of a bucket (customer, SKU, hour).
usage_reports = sa.Table(
    "usage_reports",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("customer_id", sa.Text, sa.ForeignKey("customers.id"), nullable=False),
    sa.Column("sku_id", sa.Text, sa.ForeignKey("skus.id"), nullable=False),
    sa.Column("hour", instant, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    # Whether it is its bucket's last revision.
    sa.Column("latest", sa.Boolean, nullable=False),
    # The complete request; never changed once written.
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("meter", sa.Text, nullable=False),
    sa.Column("overwrites", sa.Boolean, nullable=False),
    sa.Column("identifier", sa.Text, nullable=False, unique=True),
    sa.Column("customer_ref", sa.Text),
    sa.Column("value", total, nullable=False),
    sa.Column("event_at", instant, nullable=False),
    # The log's total that this revision stands for; what the provider has once it took this.
    sa.Column("total_microcredits", total, nullable=False),
    sa.Column("held_microcredits", total, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("cause", sa.Text, nullable=False, server_default=""),
    sa.Column("detail", sa.Text, nullable=False, server_default=""),
    # An attempt ended without an answer, and nothing since has shown whether it arrived.
    sa.Column("doubtful", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_at", instant, nullable=False),
    # Whose it is while it is being sent, and until when.
    sa.Column("claim", UUID(as_uuid=True)),
    sa.Column("lease_until", instant),
    sa.Column("created_at", instant, nullable=False),
    sa.Column("first_sent_at", instant),
    sa.Column("answered_at", instant),
    # When it is read back next; none where it is not. How often it was without agreeing, and how
    # many revisions before it were sent again because what was read back differed.
    sa.Column("confirm_at", instant),
    sa.Column("readings", sa.Integer, nullable=False, server_default="0"),
    sa.Column("resent", sa.Integer, nullable=False, server_default="0"),
    sa.Column("confirmed_at", instant),
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
        postgresql_where=sa.text(_OPEN_STATES),
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
    sa.Column("from_hour", instant, nullable=False),
    sa.Column("to_hour", instant, nullable=False),
    sa.Column("amount_microcredits", total, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
    sa.Column("created_at", instant, nullable=False),
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
    sa.Column("period_start", instant, nullable=False),
    sa.Column("period_end", instant, nullable=False),
    sa.Column("invoice_ref", sa.Text, nullable=False),
    sa.Column("billed_value", total, nullable=False),
    sa.Column("noticed_at", instant, nullable=False),
    sa.Column("settled_at", instant),
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

# When totals were last compared with reports, by how far back.
report_passes = sa.Table(
    "report_passes",
    metadata,
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("depth", sa.Text, primary_key=True),
    sa.Column("started_at", instant, nullable=False),
)
