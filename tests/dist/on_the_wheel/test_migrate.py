"""``billing migrate`` of the wheel: an empty database, and one that the release before left."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from weighbridge.billing.postgres import migrations

RELEASE_BEFORE = "0007"
BILLING = Path(sys.executable).parent / "billing"
ROWS = """
INSERT INTO customers (id, name, time_zone) VALUES ('acme', 'Acme Ltd', 'UTC');
INSERT INTO skus (id, unit, pricing, hold_quantity, failure_policy, denial_policy,
                  unavailable_policy, allow_limit)
    VALUES ('page-render', 'page', 'fixed', 1, 'release', 'fail', 'retry', 0);
INSERT INTO prices (sku_id, effective_from, unit_price_microcredits)
    VALUES ('page-render', '2020-01-01', 2500000);
INSERT INTO grants (customer_id, amount_microcredits, reference)
    VALUES ('acme', 100000000, 'order-1017');
"""
EVENT = """
INSERT INTO usage_events (id, customer_id, sku_id, line, outcome, reason, quantity,
    amount_microcredits, shortfall_microcredits, held_microcredits, cost_micros, currency, subject,
    dimensions, task_id, task_name, attempt, worker, degraded, quota_epoch, fingerprint)
    VALUES (%s, 'acme', 'page-render', 'page-render', 'succeeded', '', 1,
            2500000, 0, 2500000, 0, 'EUR', 'page', '{}', 't1', 'shop.render', 0,
            'worker@node', false, 1, '\\x00')
"""


@pytest.fixture
def database_url() -> Iterator[str]:
    """An empty database on the server of ``DATABASE_URL``."""
    url = os.environ["DATABASE_URL"]
    name = f"wbtest_{int(time.time())}_{secrets.token_hex(4)}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            yield urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def billing(url: str, *arguments: str) -> str:
    # Nothing is asked of a broker; it has to be named all the same.
    environment = {**os.environ, "DATABASE_URL": url, "AMQP_URL": "amqp://127.0.0.1//"}
    return subprocess.check_output([BILLING, *arguments], text=True, env=environment)


def test_the_migrations_are_those_in_the_wheel():
    package = Path(migrations.__file__).parents[1]
    assert package.parts[-2:] == ("weighbridge", "billing")
    assert migrations.scripts_folder() == package / "alembic"


def test_an_empty_database(database_url: str):
    billing(database_url, "migrate")
    assert migrations.current(database_url) == migrations.head()
    with psycopg.connect(database_url) as connection:
        months = connection.execute("SELECT count(*) FROM pg_inherits").fetchone()
    assert months is not None
    assert months[0] >= 7


def test_one_of_the_release_before_keeps_its_rows(database_url: str):
    migrations.upgrade(database_url, RELEASE_BEFORE)
    milliseconds = int(datetime.now(UTC).timestamp() * 1000)
    event = f"{milliseconds << 80 | 0x7 << 76 | 0b10 << 62:032x}"
    with psycopg.connect(database_url) as connection:
        connection.execute(ROWS)
        connection.execute(EVENT, [event])
    billing(database_url, "migrate")
    assert migrations.current(database_url) == migrations.head()
    receipt = json.loads(billing(database_url, "receipt", "--task", "t1", "--json"))
    assert [line["subject"] for line in receipt["lines"]] == ["page"]
    listed = json.loads(billing(database_url, "skus", "list", "--json"))
    assert "page-render" in str(listed)
