"""How a SKU's tasks are admitted: one by one, or from credits that a process has leased."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply: every SKU there is stays exact."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Its owner is the role that every table belongs to, whoever runs the migration.
    op.execute("SET LOCAL ROLE weighbridge_owner")
    op.execute(
        "ALTER TABLE skus ADD COLUMN admission text NOT NULL DEFAULT 'exact',"
        " ADD CONSTRAINT skus_admission_check CHECK (admission IN ('exact', 'leased'))"
    )
    op.execute("RESET ROLE")


def downgrade() -> None:
    """Take back: all are exact again."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL ROLE weighbridge_owner")
    op.execute("ALTER TABLE skus DROP COLUMN admission")
    op.execute("RESET ROLE")
