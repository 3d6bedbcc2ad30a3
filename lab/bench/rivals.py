"""What the quota store is measured beside: a row in PostgreSQL, and two packages.

``credit-ledger`` ships no schema in its wheel; this is the one that its page describes: an exact
balance, a ledger with a unique key for repeats, row-level security on both.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

_PLENTY: Final = 100_000_000
_TABLES: Final = """
    CREATE TABLE bench_credits (id text PRIMARY KEY, credits bigint NOT NULL);
    CREATE TABLE credit_balance (
        tenant_id text PRIMARY KEY,
        credits numeric(18,4) NOT NULL CHECK (credits >= 0),
        updated_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE credit_ledger (
        id uuid PRIMARY KEY,
        tenant_id text NOT NULL REFERENCES credit_balance,
        delta numeric(18,4) NOT NULL,
        reason text NOT NULL,
        idempotency_key text,
        balance_after numeric(18,4) NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (tenant_id, idempotency_key)
    );
"""
_SECURE: Final = """
    ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
    ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
    CREATE POLICY tenant_isolation ON {table}
        USING (tenant_id = current_setting('app.current_tenant', true));
"""


def prepare(engine: sa.Engine, customer: str) -> None:
    """Make the tables, with credits for one customer that the run will not use up."""
    with engine.begin() as connection:
        connection.exec_driver_sql(_TABLES)
        for table in ("credit_balance", "credit_ledger"):
            connection.exec_driver_sql(_SECURE.format(table=table))
        tenant = sa.text("SELECT set_config('app.current_tenant', :id, true)")
        connection.execute(tenant, {"id": customer})
        for table in ("bench_credits (id, credits)", "credit_balance (tenant_id, credits)"):
            insert = sa.text(f"INSERT INTO {table} VALUES (:id, :credits)")  # noqa: S608 - ours
            connection.execute(insert, {"id": customer, "credits": _PLENTY})
