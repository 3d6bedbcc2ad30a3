"""The log, its rollups and dead letters; customers, SKUs, prices, grants; the three roles."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Roles belong to the whole cluster: another database's migration may make them at the same moment,
# and taking this schema back must not take them from the others. From PostgreSQL 16 on, who creates
# a role may grant it but is not by that alone allowed to SET ROLE to it.
_ROLES = """
DO $$
DECLARE
    wanted text;
    able text := CASE WHEN current_setting('server_version_num')::int >= 160000
                      THEN 'SET' ELSE 'MEMBER' END;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['weighbridge_owner', 'weighbridge_writer', 'weighbridge_reader']
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;  -- made elsewhere, a moment ago
            END;
        END IF;
        FOR attempt IN 1..20 LOOP
            EXIT WHEN pg_has_role(current_user, wanted, able)
                  AND pg_has_role(current_user, wanted, 'USAGE');
            BEGIN
                EXECUTE format('GRANT %I TO CURRENT_USER', wanted);
            EXCEPTION
                -- Two grants of one role at once: 'tuple concurrently updated', or one row twice.
                WHEN internal_error OR unique_violation THEN
                    PERFORM pg_sleep(0.02 * attempt);
                WHEN insufficient_privilege THEN
                    RAISE insufficient_privilege USING
                        MESSAGE = format('%I may not become %I', current_user, wanted),
                        HINT = format('As an administrator: GRANT %I TO %I', wanted, current_user);
            END;
        END LOOP;
    END LOOP;
    EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO weighbridge_owner', current_schema());
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO weighbridge_writer, weighbridge_reader',
                   current_schema());
END
$$
"""

_CATALOGUE = """
CREATE TABLE customers (
    id text NOT NULL,
    name text NOT NULL,
    status text NOT NULL DEFAULT 'active',
    time_zone text NOT NULL DEFAULT 'UTC',
    stripe_customer_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT customers_pkey PRIMARY KEY (id),
    CONSTRAINT customers_stripe_customer_id_key UNIQUE (stripe_customer_id),
    CONSTRAINT customers_status_check CHECK (status IN ('active', 'suspended'))
);

CREATE TABLE skus (
    id text NOT NULL,
    description text NOT NULL DEFAULT '',
    unit text NOT NULL,
    pricing text NOT NULL,
    hold_quantity bigint NOT NULL DEFAULT 1,
    failure_policy text NOT NULL DEFAULT 'release',
    denial_policy text NOT NULL DEFAULT 'fail',
    unavailable_policy text NOT NULL DEFAULT 'retry',
    allow_limit integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT skus_pkey PRIMARY KEY (id),
    CONSTRAINT skus_pricing_check CHECK (pricing IN ('fixed', 'measured')),
    CONSTRAINT skus_hold_quantity_check CHECK (hold_quantity > 0),
    CONSTRAINT skus_fixed_holds_one_check CHECK (pricing <> 'fixed' OR hold_quantity = 1),
    CONSTRAINT skus_failure_policy_check CHECK (failure_policy IN ('release', 'charge')),
    CONSTRAINT skus_denial_policy_check CHECK (denial_policy IN ('fail', 'defer')),
    CONSTRAINT skus_unavailable_check CHECK (unavailable_policy IN ('retry', 'deny', 'allow')),
    CONSTRAINT skus_allow_limit_check
        CHECK (allow_limit >= 0 AND (unavailable_policy <> 'allow' OR allow_limit > 0))
);

CREATE TABLE prices (
    sku_id text NOT NULL,
    effective_from timestamptz NOT NULL,
    unit_price_microcredits bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT prices_pkey PRIMARY KEY (sku_id, effective_from),
    CONSTRAINT prices_sku_id_fkey FOREIGN KEY (sku_id) REFERENCES skus (id),
    CONSTRAINT prices_unit_price_microcredits_check
        CHECK (unit_price_microcredits BETWEEN 0 AND 9007199254740992)
);

CREATE TABLE budgets (
    customer_id text NOT NULL,
    sku_id text NOT NULL,
    limit_microcredits bigint NOT NULL,
    CONSTRAINT budgets_pkey PRIMARY KEY (customer_id, sku_id),
    CONSTRAINT budgets_customer_id_fkey FOREIGN KEY (customer_id) REFERENCES customers (id),
    CONSTRAINT budgets_limit_check CHECK (limit_microcredits BETWEEN 0 AND 9007199254740992)
);

CREATE TABLE grants (
    id bigint GENERATED ALWAYS AS IDENTITY NOT NULL,
    customer_id text NOT NULL,
    amount_microcredits bigint NOT NULL,
    reference text NOT NULL,
    note text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT grants_pkey PRIMARY KEY (id),
    CONSTRAINT grants_customer_id_fkey FOREIGN KEY (customer_id) REFERENCES customers (id),
    CONSTRAINT grants_customer_id_reference_key UNIQUE (customer_id, reference),
    CONSTRAINT grants_amount_check CHECK (amount_microcredits BETWEEN 1 AND 9007199254740992)
);

CREATE TABLE quota_fences (
    customer_id text NOT NULL,
    epoch bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,
    granted_microcredits bigint NOT NULL DEFAULT 0,
    late_microcredits numeric(38, 0) NOT NULL DEFAULT 0,
    rebuilt_at timestamptz,
    CONSTRAINT quota_fences_pkey PRIMARY KEY (customer_id),
    CONSTRAINT quota_fences_customer_id_fkey FOREIGN KEY (customer_id) REFERENCES customers (id),
    CONSTRAINT quota_fences_granted_check
        CHECK (granted_microcredits BETWEEN 0 AND 9007199254740992)
)
"""

_LOG = """
CREATE TABLE usage_events (
    id uuid NOT NULL,
    customer_id text NOT NULL,
    sku_id text NOT NULL,
    line text NOT NULL,
    outcome text NOT NULL,
    reason text NOT NULL,
    quantity bigint NOT NULL,
    amount_microcredits bigint NOT NULL,
    shortfall_microcredits bigint NOT NULL,
    held_microcredits bigint NOT NULL,
    cost_micros bigint NOT NULL,
    currency text NOT NULL,
    subject text,
    dimensions jsonb NOT NULL,
    task_id text NOT NULL,
    task_name text NOT NULL,
    root_id text,
    parent_id text,
    group_id text,
    attempt integer NOT NULL,
    worker text NOT NULL,
    degraded boolean NOT NULL,
    quota_epoch bigint NOT NULL,
    started_at timestamptz,
    finished_at timestamptz,
    fingerprint bytea NOT NULL,
    logged_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT usage_events_pkey PRIMARY KEY (id),
    CONSTRAINT usage_events_amounts_check CHECK (
        amount_microcredits BETWEEN 0 AND 9007199254740992
        AND quantity BETWEEN 0 AND 9007199254740992 AND shortfall_microcredits >= 0
        AND held_microcredits >= 0 AND cost_micros >= 0
    ),
    CONSTRAINT usage_events_outcome_check CHECK (outcome IN ('succeeded', 'failed', 'denied')),
    CONSTRAINT usage_events_denied_is_free_check
        CHECK (outcome <> 'denied' OR amount_microcredits = 0)
) PARTITION BY RANGE (id);

CREATE INDEX usage_events_customer_id_id_idx ON usage_events (customer_id, id);
CREATE INDEX usage_events_task_id_idx ON usage_events (task_id);

CREATE FUNCTION weighbridge_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE insufficient_privilege USING
        MESSAGE = format('the log is append-only: %s of %s refused', TG_OP, TG_TABLE_NAME),
        HINT = 'A correction is a new row. A month is archived by detaching its partition.';
END
$$;

CREATE TRIGGER usage_events_append_only BEFORE UPDATE OR DELETE ON usage_events
    FOR EACH ROW EXECUTE FUNCTION weighbridge_refuse_change();
CREATE TRIGGER usage_events_no_truncate BEFORE TRUNCATE ON usage_events
    FOR EACH STATEMENT EXECUTE FUNCTION weighbridge_refuse_change()
"""

_DERIVED = """
CREATE TABLE usage_hourly (
    customer_id text NOT NULL,
    hour timestamptz NOT NULL,
    sku_id text NOT NULL,
    outcome text NOT NULL,
    reason text NOT NULL,
    events bigint NOT NULL,
    quantity numeric(38, 0) NOT NULL,
    amount_microcredits numeric(38, 0) NOT NULL,
    shortfall_microcredits numeric(38, 0) NOT NULL,
    cost_micros numeric(38, 0) NOT NULL,
    CONSTRAINT usage_hourly_pkey PRIMARY KEY (customer_id, hour, sku_id, outcome, reason)
);

CREATE TABLE usage_subjects (
    customer_id text NOT NULL,
    sku_id text NOT NULL,
    month date NOT NULL,
    subject_digest bytea NOT NULL,
    CONSTRAINT usage_subjects_pkey PRIMARY KEY (customer_id, sku_id, month, subject_digest)
);

CREATE TABLE usage_subject_counts (
    customer_id text NOT NULL,
    sku_id text NOT NULL,
    month date NOT NULL,
    subjects bigint NOT NULL,
    CONSTRAINT usage_subject_counts_pkey PRIMARY KEY (customer_id, sku_id, month)
);

CREATE TABLE dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY NOT NULL,
    digest bytea NOT NULL,
    reason text NOT NULL,
    detail text NOT NULL,
    body bytea NOT NULL,
    event_id text,
    customer_id text,
    task_id text,
    times_seen bigint NOT NULL DEFAULT 1,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    replayed_at timestamptz,
    CONSTRAINT dead_letters_pkey PRIMARY KEY (id),
    CONSTRAINT dead_letters_digest_key UNIQUE (digest)
);

CREATE INDEX dead_letters_task_id_idx ON dead_letters (task_id)
"""

# The writer is granted nothing on the partitions themselves: it reaches them through the log only.
_GRANTS = """
GRANT SELECT ON customers, skus, prices, budgets, grants, quota_fences, usage_events, usage_hourly,
    usage_subjects, usage_subject_counts, dead_letters, alembic_version
    TO weighbridge_writer, weighbridge_reader;
GRANT INSERT ON usage_events, usage_subjects TO weighbridge_writer;
GRANT INSERT, UPDATE ON usage_hourly, usage_subject_counts, quota_fences, dead_letters
    TO weighbridge_writer
"""

_DROP = """
DROP TABLE dead_letters, usage_subject_counts, usage_subjects, usage_hourly, usage_events,
    quota_fences, grants, budgets, prices, skus, customers;
DROP FUNCTION weighbridge_refuse_change()
"""

_REVOKE = """
DO $$
BEGIN
    EXECUTE format('REVOKE ALL ON SCHEMA %I FROM weighbridge_owner, weighbridge_writer,'
                   ' weighbridge_reader', current_schema());
END
$$
"""


# One per UTC month: a range of UUIDv7s, whose first 48 bits are milliseconds since 1970. The CHECK
# spares PostgreSQL the scan at ATTACH. A statement trigger is each table's own.
_PARTITION = """
CREATE TABLE {name} (LIKE usage_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
ALTER TABLE {name} ADD CONSTRAINT {name}_bounds CHECK (id >= '{lowest}' AND id < '{end}');
ALTER TABLE usage_events ATTACH PARTITION {name} FOR VALUES FROM ('{lowest}') TO ('{end}');
ALTER TABLE {name} DROP CONSTRAINT {name}_bounds;
CREATE TRIGGER {name}_no_truncate BEFORE TRUNCATE ON {name}
    FOR EACH STATEMENT EXECUTE FUNCTION weighbridge_refuse_change()
"""
_MONTHS_BACK = _MONTHS_AHEAD = 3


def _partitions(now: datetime) -> list[str]:
    this_month = now.year * 12 + now.month - 1
    months = range(this_month - _MONTHS_BACK, this_month + _MONTHS_AHEAD + 1)
    return [
        _PARTITION.format(
            name=f"usage_events_{_start(month):%Y_%m}",
            lowest=_lowest_id(_start(month)),
            end=_lowest_id(_start(month + 1)),
        )
        for month in months
    ]


def _start(month: int) -> datetime:
    return datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC)


def _lowest_id(instant: datetime) -> UUID:
    since_1970 = instant - datetime(1970, 1, 1, tzinfo=UTC)
    return UUID(int=since_1970 // timedelta(milliseconds=1) << 80)


def upgrade() -> None:
    """Make everything; partitions from three months back to three ahead."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(_ROLES)
    op.execute("ALTER TABLE alembic_version OWNER TO weighbridge_owner")
    op.execute("SET LOCAL ROLE weighbridge_owner")
    for script in (_CATALOGUE, _LOG, _DERIVED, _GRANTS, *_partitions(datetime.now(UTC))):
        op.execute(script)
    op.execute("RESET ROLE")


def downgrade() -> None:
    """Take everything back but the roles, which belong to the whole cluster."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL ROLE weighbridge_owner")
    op.execute(_DROP)
    op.execute("RESET ROLE")
    op.execute("REVOKE ALL ON alembic_version FROM weighbridge_writer, weighbridge_reader")
    op.execute(_REVOKE)
