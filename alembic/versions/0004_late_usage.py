"""What reporting needs beyond a single figure: carry lines, sealed periods, read-back, webhooks."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_COLUMNS = """
ALTER TABLE customers ADD COLUMN stripe_deleted_at timestamptz;
ALTER TABLE skus ADD COLUMN meter_decimals smallint NOT NULL DEFAULT 6,
    ADD CONSTRAINT skus_meter_decimals_check CHECK (meter_decimals BETWEEN 0 AND 6);
ALTER TABLE usage_reports ADD COLUMN confirm_at timestamptz,
    ADD COLUMN readings integer NOT NULL DEFAULT 0,
    ADD COLUMN resent integer NOT NULL DEFAULT 0,
    ADD COLUMN confirmed_at timestamptz;
CREATE INDEX usage_reports_confirm_idx ON usage_reports (provider, confirm_at, id)
    WHERE confirm_at IS NOT NULL;
CREATE INDEX usage_reports_parked_idx ON usage_reports (customer_id, sku_id, hour)
    WHERE state = 'parked' AND latest AND cause <> 'carried' AND cause <> 'nothing_to_tell';
UPDATE usage_reports SET confirm_at = now() WHERE state = 'accepted' AND latest
"""

_CARRIES = """
CREATE TABLE report_carries (
    id bigint GENERATED ALWAYS AS IDENTITY,
    customer_id text NOT NULL,
    sku_id text NOT NULL,
    from_hour timestamptz NOT NULL,
    to_hour timestamptz NOT NULL,
    amount_microcredits numeric(38, 0) NOT NULL,
    reason text NOT NULL,
    note text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    CONSTRAINT report_carries_pkey PRIMARY KEY (id),
    CONSTRAINT report_carries_customer_id_fkey FOREIGN KEY (customer_id) REFERENCES customers (id),
    CONSTRAINT report_carries_sku_id_fkey FOREIGN KEY (sku_id) REFERENCES skus (id),
    CONSTRAINT report_carries_forwards_check CHECK (to_hour > from_hour),
    CONSTRAINT report_carries_amount_check CHECK (amount_microcredits <> 0),
    CONSTRAINT report_carries_reason_check
        CHECK (reason IN ('late', 'too_old', 'remainder', 'below_zero', 'billed'))
);
CREATE INDEX report_carries_from_idx ON report_carries (customer_id, sku_id, from_hour);
CREATE INDEX report_carries_to_idx ON report_carries (customer_id, sku_id, to_hour);
CREATE INDEX report_carries_from_hour_idx ON report_carries (from_hour);
CREATE INDEX report_carries_to_hour_idx ON report_carries (to_hour)
"""

_SEALS = """
CREATE TABLE report_seals (
    id bigint GENERATED ALWAYS AS IDENTITY,
    provider text NOT NULL,
    customer_id text NOT NULL,
    customer_ref text NOT NULL,
    meter text NOT NULL,
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL,
    invoice_ref text NOT NULL,
    billed_value numeric(38, 0) NOT NULL,
    noticed_at timestamptz NOT NULL,
    settled_at timestamptz,
    CONSTRAINT report_seals_pkey PRIMARY KEY (id),
    CONSTRAINT report_seals_customer_id_fkey FOREIGN KEY (customer_id) REFERENCES customers (id),
    CONSTRAINT report_seals_invoice_key UNIQUE (provider, invoice_ref, meter, period_end),
    CONSTRAINT report_seals_period_check CHECK (period_start < period_end)
);
CREATE INDEX report_seals_customer_idx ON report_seals (customer_id, meter, period_end);
CREATE INDEX report_seals_unsettled_idx ON report_seals (provider, period_end)
    WHERE settled_at IS NULL
"""

_TOLD = """
CREATE TABLE provider_invoices (
    provider text NOT NULL,
    invoice_ref text NOT NULL,
    customer_ref text NOT NULL,
    customer_id text,
    status text NOT NULL,
    currency text NOT NULL,
    total_minor bigint NOT NULL,
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL,
    finalized_at timestamptz,
    payment_failed_at timestamptz,
    updated_at timestamptz NOT NULL,
    CONSTRAINT provider_invoices_pkey PRIMARY KEY (provider, invoice_ref),
    CONSTRAINT provider_invoices_customer_id_fkey
        FOREIGN KEY (customer_id) REFERENCES customers (id),
    CONSTRAINT provider_invoices_status_check
        CHECK (status IN ('draft', 'open', 'paid', 'void', 'uncollectible', 'deleted'))
);
CREATE INDEX provider_invoices_customer_idx ON provider_invoices (customer_id, period_end);
CREATE TABLE webhook_events (
    provider text NOT NULL,
    event_id text NOT NULL,
    type text NOT NULL,
    happened_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    result text NOT NULL,
    detail text NOT NULL DEFAULT '',
    body bytea,
    CONSTRAINT webhook_events_pkey PRIMARY KEY (provider, event_id),
    CONSTRAINT webhook_events_result_check CHECK (result IN ('done', 'ignored', 'kept')),
    CONSTRAINT webhook_events_body_check CHECK ((result = 'kept') = (body IS NOT NULL))
);
CREATE INDEX webhook_events_received_idx ON webhook_events (received_at)
"""

_GRANTS = """
GRANT SELECT ON report_carries, report_seals, provider_invoices, webhook_events
    TO weighbridge_reader
"""


def upgrade() -> None:
    """Apply: late usage, read-back, webhooks."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Its owner is the role that every table belongs to, whoever runs the migration.
    op.execute("SET LOCAL ROLE weighbridge_owner")
    for script in (_COLUMNS, _CARRIES, _SEALS, _TOLD, _GRANTS):
        op.execute(script)
    op.execute("RESET ROLE")


def downgrade() -> None:
    """Take back: late usage, read-back, webhooks."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL ROLE weighbridge_owner")
    op.execute("DROP TABLE webhook_events, provider_invoices, report_seals, report_carries")
    op.execute(
        "DROP INDEX usage_reports_parked_idx, usage_reports_confirm_idx;"
        "ALTER TABLE usage_reports DROP COLUMN confirm_at, DROP COLUMN readings,"
        " DROP COLUMN resent, DROP COLUMN confirmed_at;"
        "ALTER TABLE skus DROP COLUMN meter_decimals;"
        "ALTER TABLE customers DROP COLUMN stripe_deleted_at"
    )
    op.execute("RESET ROLE")
