"""${message}."""

from __future__ import annotations

from alembic import op
% if imports:
${imports}
% endif

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply: ${message}."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    ${upgrades if upgrades else ""}


def downgrade() -> None:
    """Take back: ${message}."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    ${downgrades if downgrades else ""}
