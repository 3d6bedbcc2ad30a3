"""Discrepancies that reconcile found."""

from __future__ import annotations

import sqlalchemy as sa

from billing.postgres.schema.base import instant, metadata, total

# What reconcile found, once for as long as it lasts. Customers are named, not referred to: one that
# only Redis knows is a discrepancy too.
discrepancies = sa.Table(
    "discrepancies",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("customer_id", sa.Text, nullable=False),
    sa.Column("expected", total, nullable=False),
    sa.Column("found", total, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("cause", sa.Text, nullable=False, server_default=""),
    sa.Column("remedy", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
    sa.Column("times_seen", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("first_seen_at", instant, nullable=False),
    sa.Column("last_seen_at", instant, nullable=False),
    sa.Column("ended_at", instant),
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
