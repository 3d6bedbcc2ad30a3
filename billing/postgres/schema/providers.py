"""The provider's invoices and webhook events; the built-in provider's figures."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from billing.postgres.schema.base import instant, metadata, now

# Invoices as the provider last reported them.
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
    sa.Column("period_start", instant, nullable=False),
    sa.Column("period_end", instant, nullable=False),
    sa.Column("finalized_at", instant),
    sa.Column("payment_failed_at", instant),
    sa.Column("updated_at", instant, nullable=False),
    sa.CheckConstraint(
        "status IN ('draft', 'open', 'paid', 'void', 'uncollectible', 'deleted')", name="status"
    ),
    sa.Index("provider_invoices_customer_idx", "customer_id", "period_end"),
)

# Events that a provider sent by webhook, once each: written with their effect.
webhook_events = sa.Table(
    "webhook_events",
    metadata,
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("type", sa.Text, nullable=False),
    # The provider's time of the event, and ours of its arrival.
    sa.Column("happened_at", instant, nullable=False),
    sa.Column("received_at", instant, nullable=False),
    sa.Column("result", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False, server_default=""),
    # Kept where nothing could be done with it yet.
    sa.Column("body", sa.LargeBinary),
    sa.CheckConstraint("result IN ('done', 'ignored', 'kept')", name="result"),
    sa.CheckConstraint("(result = 'kept') = (body IS NOT NULL)", name="body"),
    sa.Index("webhook_events_received_idx", "received_at"),
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
    sa.Column("hour", instant, nullable=False),
    sa.Column("value", sa.BigInteger, nullable=False),
    sa.Column("event_at", instant, nullable=False),
    sa.Column("taken_at", instant, nullable=False, server_default=now),
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
    sa.Column("created_at", instant, nullable=False, server_default=now),
    sa.CheckConstraint("status IN ('draft', 'open', 'paid', 'void')", name="status"),
)
