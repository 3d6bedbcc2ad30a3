"""The fence between the log and the balances that Redis keeps."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

from billing.postgres.schema.base import instant, metadata, now, total

quota_fences = sa.Table(
    "quota_fences",
    metadata,
    # One row per customer, made with the customer. `epoch` and `version`: quota.hold.AccountState.
    sa.Column("customer_id", sa.Text, sa.ForeignKey("customers.id"), primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("granted_microcredits", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("late_microcredits", total, nullable=False, server_default="0"),
    sa.Column("rebuilt_at", instant),
    sa.CheckConstraint("granted_microcredits BETWEEN 0 AND 9007199254740992", name="granted"),
)

# Amounts that a balance counted of events that the log had already under another epoch (published
# directly, then settled by a run that came back). Each is taken out of that balance once.
quota_recounts = sa.Table(
    "quota_recounts",
    metadata,
    sa.Column("customer_id", sa.Text, sa.ForeignKey("customers.id"), primary_key=True),
    sa.Column("event_id", UUID(as_uuid=True), primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("amount_microcredits", sa.BigInteger, nullable=False),
    sa.Column("recorded_at", instant, nullable=False, server_default=now),
)
