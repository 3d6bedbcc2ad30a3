"""Amounts that a balance counted although the log had them already, each remembered once."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TABLE = """
CREATE TABLE quota_recounts (
    customer_id text NOT NULL,
    event_id uuid NOT NULL,
    epoch bigint NOT NULL,
    amount_microcredits bigint NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT quota_recounts_pkey PRIMARY KEY (customer_id, event_id, epoch),
    CONSTRAINT quota_recounts_customer_id_fkey
        FOREIGN KEY (customer_id) REFERENCES customers (id)
)
"""

_GRANTS = """
GRANT SELECT ON quota_recounts TO weighbridge_writer, weighbridge_reader;
GRANT INSERT ON quota_recounts TO weighbridge_writer
"""


def upgrade() -> None:
    """Apply: amounts that a balance counted twice."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Its owner is the role that every table belongs to, whoever runs the migration.
    op.execute("SET LOCAL ROLE weighbridge_owner")
    op.execute(_TABLE)
    op.execute(_GRANTS)
    op.execute("RESET ROLE")


def downgrade() -> None:
    """Take back: amounts that a balance counted twice."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL ROLE weighbridge_owner")
    op.execute("DROP TABLE quota_recounts")
    op.execute("RESET ROLE")
