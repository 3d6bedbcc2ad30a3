"""Reports to a billing provider as an outbox, and the built-in provider's own books."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_REPORTS = """
CREATE TABLE usage_reports (
    id bigint GENERATED ALWAYS AS IDENTITY,
    customer_id text NOT NULL,
    sku_id text NOT NULL,
    hour timestamptz NOT NULL,
    revision integer NOT NULL,
    latest boolean NOT NULL,
    provider text NOT NULL,
    meter text NOT NULL,
    overwrites boolean NOT NULL,
    identifier text NOT NULL,
    customer_ref text,
    value numeric(38, 0) NOT NULL,
    event_at timestamptz NOT NULL,
    total_microcredits numeric(38, 0) NOT NULL,
    held_microcredits numeric(38, 0) NOT NULL,
    state text NOT NULL,
    cause text NOT NULL DEFAULT '',
    detail text NOT NULL DEFAULT '',
    doubtful boolean NOT NULL DEFAULT false,
    attempts integer NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL,
    claim uuid,
    lease_until timestamptz,
    created_at timestamptz NOT NULL,
    first_sent_at timestamptz,
    answered_at timestamptz,
    CONSTRAINT usage_reports_pkey PRIMARY KEY (id),
    CONSTRAINT usage_reports_identifier_key UNIQUE (identifier),
    CONSTRAINT usage_reports_bucket_revision_key UNIQUE (customer_id, sku_id, hour, revision),
    CONSTRAINT usage_reports_customer_id_fkey FOREIGN KEY (customer_id) REFERENCES customers (id),
    CONSTRAINT usage_reports_sku_id_fkey FOREIGN KEY (sku_id) REFERENCES skus (id),
    CONSTRAINT usage_reports_state_check CHECK (
        state IN ('pending', 'sending', 'unknown', 'accepted', 'confirmed', 'parked')
    ),
    CONSTRAINT usage_reports_counts_check CHECK (revision >= 1 AND attempts >= 0),
    CONSTRAINT usage_reports_identifier_check CHECK (char_length(identifier) BETWEEN 1 AND 100),
    CONSTRAINT usage_reports_event_at_check
        CHECK (event_at >= hour AND event_at < hour + interval '1 hour'),
    CONSTRAINT usage_reports_sendable_check CHECK (
        state = 'parked' OR (customer_ref IS NOT NULL AND abs(value) < 1000000000000000)
    ),
    CONSTRAINT usage_reports_claim_check CHECK ((state = 'sending') = (claim IS NOT NULL)),
    CONSTRAINT usage_reports_parked_for_check CHECK (state <> 'parked' OR cause <> '')
);
CREATE UNIQUE INDEX usage_reports_latest_idx ON usage_reports (customer_id, sku_id, hour)
    WHERE latest;
CREATE UNIQUE INDEX usage_reports_open_idx ON usage_reports (customer_id, sku_id, hour)
    WHERE state IN ('pending', 'sending', 'unknown');
CREATE UNIQUE INDEX usage_reports_in_flight_idx ON usage_reports (provider, customer_id, meter)
    WHERE state = 'sending';
CREATE INDEX usage_reports_due_idx ON usage_reports (provider, customer_id, meter, hour)
    WHERE state IN ('pending', 'unknown');
CREATE TABLE report_passes (
    provider text NOT NULL,
    depth text NOT NULL,
    started_at timestamptz NOT NULL,
    CONSTRAINT report_passes_pkey PRIMARY KEY (provider, depth)
)
"""

_LEDGER = """
CREATE TABLE ledger_figures (
    id bigint GENERATED ALWAYS AS IDENTITY,
    identifier text NOT NULL,
    customer_id text NOT NULL,
    meter text NOT NULL,
    hour timestamptz NOT NULL,
    value bigint NOT NULL,
    event_at timestamptz NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ledger_figures_pkey PRIMARY KEY (id),
    CONSTRAINT ledger_figures_identifier_key UNIQUE (identifier),
    CONSTRAINT ledger_figures_customer_id_fkey FOREIGN KEY (customer_id) REFERENCES customers (id)
);
CREATE INDEX ledger_figures_hour_idx ON ledger_figures (customer_id, meter, hour, id);
CREATE TABLE ledger_invoices (
    id bigint GENERATED ALWAYS AS IDENTITY,
    key text NOT NULL,
    customer_id text NOT NULL,
    currency text NOT NULL,
    status text NOT NULL DEFAULT 'draft',
    lines jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ledger_invoices_pkey PRIMARY KEY (id),
    CONSTRAINT ledger_invoices_key_key UNIQUE (key),
    CONSTRAINT ledger_invoices_customer_id_fkey FOREIGN KEY (customer_id) REFERENCES customers (id),
    CONSTRAINT ledger_invoices_status_check CHECK (status IN ('draft', 'open', 'paid', 'void'))
)
"""

_GRANTS = """
GRANT SELECT ON usage_reports, report_passes, ledger_figures, ledger_invoices
    TO weighbridge_reader
"""


def upgrade() -> None:
    """Apply: reports to a billing provider."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Its owner is the role that every table belongs to, whoever runs the migration.
    op.execute("SET LOCAL ROLE weighbridge_owner")
    for script in (_REPORTS, _LEDGER, _GRANTS):
        op.execute(script)
    op.execute("CREATE INDEX usage_hourly_hour_idx ON usage_hourly (hour)")
    op.execute("RESET ROLE")


def downgrade() -> None:
    """Take back: reports to a billing provider."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL ROLE weighbridge_owner")
    op.execute("DROP INDEX usage_hourly_hour_idx")
    op.execute("DROP TABLE ledger_invoices, ledger_figures, report_passes, usage_reports")
    op.execute("RESET ROLE")
