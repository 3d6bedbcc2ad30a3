"""Distinct subjects by one id of 16 bytes, instead of by four columns."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# As billing.usage_log.distinct_subjects makes them: the month in two bytes, then 14 of SHA-256
# over the names, with their lengths before them, and the digest that was kept so far. One pass over
# the table.
# (A constraint NOT NULL has a name since PostgreSQL 18, and would keep that of the old column.)
_BY_ID = """
ALTER TABLE usage_subjects DROP CONSTRAINT usage_subjects_pkey;
ALTER TABLE usage_subjects ALTER COLUMN subject_digest DROP NOT NULL;
ALTER TABLE usage_subjects ALTER COLUMN subject_digest TYPE uuid USING encode(
    int2send(((extract(year FROM month) - 1970) * 12 + extract(month FROM month) - 1)::int2)
    || substr(
        sha256(
            convert_to(
                char_length(customer_id) || ':' || customer_id
                || char_length(sku_id) || ':' || sku_id,
                'UTF8'
            ) || subject_digest
        ),
        1, 14
    ),
    'hex'
)::uuid;
ALTER TABLE usage_subjects RENAME COLUMN subject_digest TO id;
ALTER TABLE usage_subjects ALTER COLUMN id SET NOT NULL;
ALTER TABLE usage_subjects ADD CONSTRAINT usage_subjects_pkey PRIMARY KEY (id)
"""

# An id cannot be turned back; the log tells the subjects of every month that is attached.
_BY_COLUMNS = """
TRUNCATE usage_subjects;
ALTER TABLE usage_subjects DROP CONSTRAINT usage_subjects_pkey;
ALTER TABLE usage_subjects ALTER COLUMN id DROP NOT NULL;
ALTER TABLE usage_subjects RENAME COLUMN id TO subject_digest;
ALTER TABLE usage_subjects ALTER COLUMN subject_digest TYPE bytea USING uuid_send(subject_digest);
ALTER TABLE usage_subjects ALTER COLUMN subject_digest SET NOT NULL;
INSERT INTO usage_subjects (customer_id, sku_id, month, subject_digest)
SELECT DISTINCT customer_id, sku_id,
    date_trunc('month', to_timestamp(
        ('x' || lpad(replace(left(id::text, 13), '-', ''), 16, '0'))::bit(64)::bigint / 1000.0
    ) AT TIME ZONE 'UTC')::date,
    substr(sha256(convert_to(subject, 'UTF8')), 1, 16)
FROM usage_events
WHERE subject IS NOT NULL AND (outcome = 'succeeded' OR amount_microcredits > 0);
ALTER TABLE usage_subjects ADD CONSTRAINT usage_subjects_pkey
    PRIMARY KEY (customer_id, sku_id, month, subject_digest)
"""


def upgrade() -> None:
    """Apply: distinct subjects by one id. Consumers of the version before cannot go on with it."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL ROLE weighbridge_owner")
    op.execute(_BY_ID)
    op.execute("RESET ROLE")


def downgrade() -> None:
    """Take back: distinct subjects by four columns."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL ROLE weighbridge_owner")
    op.execute(_BY_COLUMNS)
    op.execute("RESET ROLE")
