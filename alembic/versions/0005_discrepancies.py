"""What did not agree, why as far as is known, and what was done about it."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_DISCREPANCIES = """
CREATE TABLE discrepancies (
    id bigint GENERATED ALWAYS AS IDENTITY,
    kind text NOT NULL,
    customer_id text NOT NULL,
    expected numeric(38, 0) NOT NULL,
    found numeric(38, 0) NOT NULL,
    detail text NOT NULL,
    cause text NOT NULL DEFAULT '',
    remedy text NOT NULL,
    state text NOT NULL,
    note text NOT NULL DEFAULT '',
    times_seen bigint NOT NULL DEFAULT 1,
    first_seen_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    ended_at timestamptz,
    CONSTRAINT discrepancies_pkey PRIMARY KEY (id),
    CONSTRAINT discrepancies_state_check
        CHECK (state IN ('found', 'waiting', 'failed', 'repaired', 'gone')),
    CONSTRAINT discrepancies_ended_check
        CHECK ((state IN ('repaired', 'gone')) = (ended_at IS NOT NULL))
);
CREATE UNIQUE INDEX discrepancies_open_idx ON discrepancies (kind, customer_id, md5(detail))
    WHERE ended_at IS NULL;
CREATE INDEX discrepancies_last_seen_at_idx ON discrepancies (last_seen_at);
GRANT SELECT ON discrepancies TO weighbridge_reader
"""


def upgrade() -> None:
    """Apply: discrepancies as rows."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Its owner is the role that every table belongs to, whoever runs the migration.
    op.execute("SET LOCAL ROLE weighbridge_owner")
    op.execute(_DISCREPANCIES)
    op.execute("RESET ROLE")


def downgrade() -> None:
    """Take back: discrepancies as rows."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL ROLE weighbridge_owner")
    op.execute("DROP TABLE discrepancies")
    op.execute("RESET ROLE")
