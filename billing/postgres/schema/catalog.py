"""Customers and their budgets, SKUs and their prices, grants."""

from __future__ import annotations

import sqlalchemy as sa

from billing.postgres.schema.base import instant, metadata, now

customers = sa.Table(
    "customers",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="active"),
    sa.Column("time_zone", sa.Text, nullable=False, server_default="UTC"),
    sa.Column("stripe_customer_id", sa.Text, unique=True),
    sa.Column("created_at", instant, nullable=False, server_default=now),
    # When Stripe reported that its customer was deleted; none is linked since.
    sa.Column("stripe_deleted_at", instant),
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
    sa.Column("created_at", instant, nullable=False, server_default=now),
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
    sa.Column("effective_from", instant, primary_key=True),
    sa.Column("unit_price_microcredits", sa.BigInteger, nullable=False),
    sa.Column("created_at", instant, nullable=False, server_default=now),
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
    sa.Column("created_at", instant, nullable=False, server_default=now),
    sa.UniqueConstraint("customer_id", "reference", name="grants_customer_id_reference_key"),
    sa.CheckConstraint("amount_microcredits BETWEEN 1 AND 9007199254740992", name="amount"),
)
