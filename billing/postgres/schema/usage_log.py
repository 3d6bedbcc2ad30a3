"""The fulfillment log with its manifests, rollups and dead letters."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, UUID

from billing.core.event_columns import ALL, LOGGED_AT, EventColumn
from billing.postgres.schema.base import instant, metadata, now, total

_KINDS: Final[dict[str, sa.types.TypeEngine[Any]]] = {
    "uuid": UUID(as_uuid=True),
    "text": sa.Text(),
    "int8": sa.BigInteger(),
    "int4": sa.Integer(),
    "bool": sa.Boolean(),
    "jsonb": JSONB(),
    "timestamptz": instant,
    "bytea": sa.LargeBinary(),
}


def _event_column(column: EventColumn) -> sa.Column[Any]:
    return sa.Column(
        column.name,
        _KINDS[column.kind],
        primary_key=column.name == "id",
        nullable=column.nullable,
        server_default=now if column is LOGGED_AT else None,
    )


# The fulfillment log. Partitioned by month on a RANGE of the id (a UUIDv7), so that the id alone is
# unique across all partitions. Insert-only for the application.
usage_events = sa.Table(
    "usage_events",
    metadata,
    *(_event_column(column) for column in ALL),
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
    sa.Column("hour", instant, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("ids", sa.LargeBinary, nullable=False),
    sa.Column("hashes", sa.LargeBinary, nullable=False),
    sa.Column("logged_at", instant, nullable=False, server_default=now),
    sa.CheckConstraint(
        "rows > 0 AND octet_length(ids) = 16 * rows AND octet_length(hashes) = 32 * rows",
        name="rows",
    ),
    sa.Index("log_manifests_hour_idx", "hour", "id"),
)

usage_hourly = sa.Table(
    "usage_hourly",
    metadata,
    sa.Column("customer_id", sa.Text, primary_key=True),
    sa.Column("hour", instant, primary_key=True),
    sa.Column("sku_id", sa.Text, primary_key=True),
    sa.Column("outcome", sa.Text, primary_key=True),
    # Why it was denied or failed; empty for what succeeded.
    sa.Column("reason", sa.Text, primary_key=True),
    sa.Column("events", sa.BigInteger, nullable=False),
    sa.Column("quantity", total, nullable=False),
    sa.Column("amount_microcredits", total, nullable=False),
    sa.Column("shortfall_microcredits", total, nullable=False),
    sa.Column("cost_micros", total, nullable=False),
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
    sa.Column("first_seen_at", instant, nullable=False, server_default=now),
    sa.Column("last_seen_at", instant, nullable=False, server_default=now),
    sa.Column("replayed_at", instant),
    sa.Index("dead_letters_task_id_idx", "task_id"),
)
