"""Seals of the log, manifests that they are made from, and months that left the database."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_SEALS = """
CREATE TABLE log_manifests (
    id bigint GENERATED ALWAYS AS IDENTITY,
    hour timestamptz NOT NULL,
    rows integer NOT NULL,
    ids bytea NOT NULL,
    hashes bytea NOT NULL,
    logged_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT log_manifests_pkey PRIMARY KEY (id),
    CONSTRAINT log_manifests_rows_check CHECK (
        rows > 0 AND octet_length(ids) = 16 * rows AND octet_length(hashes) = 32 * rows
    )
);
CREATE INDEX log_manifests_hour_idx ON log_manifests (hour, id);
CREATE TABLE log_seals (
    number bigint NOT NULL,
    hour timestamptz NOT NULL,
    sealed_at timestamptz NOT NULL,
    rows integer NOT NULL,
    adopted boolean NOT NULL,
    root bytea NOT NULL,
    previous bytea NOT NULL,
    hash bytea NOT NULL,
    CONSTRAINT log_seals_pkey PRIMARY KEY (number),
    CONSTRAINT log_seals_previous_key UNIQUE (previous),
    CONSTRAINT log_seals_hash_key UNIQUE (hash),
    CONSTRAINT log_seals_counts_check CHECK (number > 0 AND rows > 0)
);
CREATE INDEX log_seals_hour_idx ON log_seals (hour, number);
CREATE TABLE log_seal_leaves (
    number bigint NOT NULL,
    ids bytea NOT NULL,
    hashes bytea NOT NULL,
    CONSTRAINT log_seal_leaves_pkey PRIMARY KEY (number),
    CONSTRAINT log_seal_leaves_number_fkey FOREIGN KEY (number) REFERENCES log_seals (number)
)
"""

# Ids and hashes do not compress: nobody needs to try. (In CREATE TABLE only from PostgreSQL 16 on.)
_AS_THEY_ARE = """
ALTER TABLE log_manifests ALTER COLUMN ids SET STORAGE EXTERNAL,
    ALTER COLUMN hashes SET STORAGE EXTERNAL;
ALTER TABLE log_seal_leaves ALTER COLUMN ids SET STORAGE EXTERNAL,
    ALTER COLUMN hashes SET STORAGE EXTERNAL
"""

_ARCHIVES = """
CREATE TABLE log_archives (
    month date NOT NULL,
    state text NOT NULL,
    file text,
    file_bytes bigint,
    file_sha256 bytea,
    seals_file text,
    seals_bytes bigint,
    seals_sha256 bytea,
    rows bigint,
    quantity numeric(38, 0),
    amount_microcredits numeric(38, 0),
    shortfall_microcredits numeric(38, 0),
    cost_micros numeric(38, 0),
    seals_root bytea,
    head_number bigint,
    head_hash bytea,
    begun_at timestamptz NOT NULL,
    verified_at timestamptz,
    dropped_at timestamptz,
    restored_at timestamptz,
    CONSTRAINT log_archives_pkey PRIMARY KEY (month),
    CONSTRAINT log_archives_month_check CHECK (extract(day FROM month) = 1),
    CONSTRAINT log_archives_state_check CHECK (
        state IN ('exporting', 'exported', 'verified', 'detached', 'dropped', 'restored')
    ),
    CONSTRAINT log_archives_exported_check CHECK (
        state IN ('exporting', 'restored') OR (file IS NOT NULL AND file_bytes IS NOT NULL
        AND file_sha256 IS NOT NULL AND seals_file IS NOT NULL AND seals_bytes IS NOT NULL
        AND seals_sha256 IS NOT NULL AND rows IS NOT NULL AND seals_root IS NOT NULL)
    )
)
"""

# Leaves and manifests may be deleted by their owner: they move, from manifest to seal to file.
_GUARDS = """
CREATE TRIGGER log_seals_append_only BEFORE UPDATE OR DELETE ON log_seals
    FOR EACH ROW EXECUTE FUNCTION weighbridge_refuse_change();
CREATE TRIGGER log_seals_no_truncate BEFORE TRUNCATE ON log_seals
    FOR EACH STATEMENT EXECUTE FUNCTION weighbridge_refuse_change();
CREATE TRIGGER log_seal_leaves_as_sealed BEFORE UPDATE ON log_seal_leaves
    FOR EACH ROW EXECUTE FUNCTION weighbridge_refuse_change();
CREATE TRIGGER log_manifests_as_written BEFORE UPDATE ON log_manifests
    FOR EACH ROW EXECUTE FUNCTION weighbridge_refuse_change()
"""

# The writer says what it logs, and nothing of what is sealed.
_GRANTS = """
GRANT SELECT ON log_manifests, log_seals, log_seal_leaves, log_archives TO weighbridge_reader;
GRANT INSERT ON log_manifests TO weighbridge_writer
"""

_NOTHING_ARCHIVED = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM log_archives WHERE state IN ('verified', 'detached', 'dropped')) THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = 'months of the log are in archives, which would be forgotten',
            HINT = 'Restore each first: billing archive --list, billing restore YYYY-MM';
    END IF;
END
$$
"""


def upgrade() -> None:
    """Apply: seals and archives."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Its owner is the role that every table belongs to, whoever runs the migration.
    op.execute("SET LOCAL ROLE weighbridge_owner")
    for script in (_SEALS, _AS_THEY_ARE, _ARCHIVES, _GUARDS, _GRANTS):
        op.execute(script)
    op.execute("RESET ROLE")


def downgrade() -> None:
    """Take back: seals and archives."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL ROLE weighbridge_owner")
    op.execute(_NOTHING_ARCHIVED)
    op.execute("DROP TABLE log_archives, log_seal_leaves, log_seals, log_manifests")
    op.execute("RESET ROLE")
