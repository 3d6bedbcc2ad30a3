"""Seals of the log, and months that left the database."""

from __future__ import annotations

import sqlalchemy as sa

from billing.postgres.schema.base import instant, metadata, total

# Seals, each chained to the one before (billing/audit/seal_chain.py); kept for good.
log_seals = sa.Table(
    "log_seals",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("hour", instant, nullable=False),
    sa.Column("sealed_at", instant, nullable=False),
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
    sa.Column("quantity", total),
    sa.Column("amount_microcredits", total),
    sa.Column("shortfall_microcredits", total),
    sa.Column("cost_micros", total),
    # Over the hashes of the month's seals; and the newest seal at that time.
    sa.Column("seals_root", sa.LargeBinary),
    sa.Column("head_number", sa.BigInteger),
    sa.Column("head_hash", sa.LargeBinary),
    sa.Column("begun_at", instant, nullable=False),
    sa.Column("verified_at", instant),
    sa.Column("dropped_at", instant),
    sa.Column("restored_at", instant),
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
