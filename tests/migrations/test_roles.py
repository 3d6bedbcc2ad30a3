"""Who may do what to the log: the writer inserts and reads, the reader reads, nobody changes."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa
from databases import reader_engine
from support import NOW, add_customer, add_sku, make_event

from billing.core.clock import ManualClock
from billing.postgres.engines import owner_engine, writer_engine
from billing.postgres.partitions import partition_name
from billing.postgres.schema import metadata
from billing.usage_log.log_writer import LogWriter

MONTH = partition_name(NOW)

FORBIDDEN = [
    "UPDATE usage_events SET amount_microcredits = 0",
    "DELETE FROM usage_events",
    "TRUNCATE usage_events",
    f"UPDATE {MONTH} SET amount_microcredits = 0",
    f"DELETE FROM {MONTH}",
    f"TRUNCATE {MONTH}",
    f"INSERT INTO {MONTH} SELECT * FROM usage_events",
    f"SELECT * FROM {MONTH}",
    f"ALTER TABLE usage_events DETACH PARTITION {MONTH}",
    f"DROP TABLE {MONTH}",
    "ALTER TABLE usage_events DISABLE TRIGGER ALL",
    "SET session_replication_role = replica",
    "DELETE FROM usage_hourly",
    "DELETE FROM usage_subjects",
    "UPDATE usage_subjects SET sku_id = 'other'",
    "DELETE FROM dead_letters",
    "INSERT INTO grants (customer_id, amount_microcredits, reference) VALUES ('acme', 1, 'x')",
    "UPDATE customers SET status = 'suspended'",
    "UPDATE prices SET unit_price_microcredits = 0",
    "CREATE TABLE mine (id int)",
]


@pytest.fixture
def logged(engine: sa.Engine, database_url: str) -> Iterator[sa.Engine]:
    """The writer's engine; the log has one event."""
    add_customer(engine, "acme")
    add_sku(engine, "page-capture")
    writing = writer_engine(database_url)
    writer = LogWriter(
        writing,
        clock=ManualClock(NOW),
        max_age=NOW - NOW.replace(day=1),
        max_ahead=NOW - NOW,
        currency="USD",
    )
    assert writer.write([make_event(finished_at=NOW).to_wire()]).inserted == 1
    yield writing
    writing.dispose()


def refusals(engine: sa.Engine, statements: list[str]) -> dict[str, str]:
    """What PostgreSQL said to each statement; each in a transaction of its own."""
    said = {}
    for statement in statements:
        with engine.connect() as connection:
            try:
                connection.execute(sa.text(statement))
                said[statement] = "done"
            except sa.exc.ProgrammingError as error:
                if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
                    raise
                said[statement] = str(error.orig)
    return said


def test_the_writer_is_denied_everything_but_inserting_and_reading(logged: sa.Engine) -> None:
    said = refusals(logged, FORBIDDEN)
    assert [statement for statement, answer in said.items() if answer == "done"] == []
    allowed = ["SELECT * FROM usage_events", "UPDATE dead_letters SET detail = 'x'"]
    assert set(refusals(logged, allowed).values()) == {"done"}


def test_the_writers_connections_are_never_anybody_else(logged: sa.Engine) -> None:
    with logged.connect() as connection:
        assert connection.execute(sa.text("SELECT current_user")).scalar() == "weighbridge_writer"


def test_a_writer_keeps_the_options_of_its_url(database_url: str) -> None:
    engine = writer_engine(f"{database_url}?options=-c%20statement_timeout%3D4321")
    with engine.connect() as connection:
        assert connection.execute(sa.text("SHOW statement_timeout")).scalar() == "4321ms"
        assert connection.execute(sa.text("SELECT current_user")).scalar() == "weighbridge_writer"
    engine.dispose()


@pytest.mark.usefixtures("logged")
def test_the_reader_reads_every_table_and_writes_none(database_url: str) -> None:
    engine = reader_engine(database_url)
    for table in metadata.sorted_tables:
        with engine.connect() as connection:
            connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
                connection.execute(sa.delete(table))
    engine.dispose()


@pytest.mark.usefixtures("logged")
def test_even_the_owner_is_told_that_the_log_is_append_only(database_url: str) -> None:
    owner = owner_engine(database_url)
    changes = [
        f"{verb} {table} {rest}"
        for table in ("usage_events", MONTH)
        for verb, rest in (
            ("UPDATE", "SET amount_microcredits = 0"),
            ("DELETE FROM", ""),
            ("TRUNCATE", ""),
        )
    ]
    for statement, answer in refusals(owner, changes).items():
        assert answer.startswith("the log is append-only"), statement
    owner.dispose()


def test_every_table_belongs_to_the_owner_role_which_cannot_log_in(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        owners = connection.execute(
            sa.text("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
        )
        assert owners.scalars().all() == ["weighbridge_owner"]
        logins = connection.execute(
            sa.text(
                "SELECT rolname FROM pg_roles WHERE rolname LIKE 'weighbridge%' AND rolcanlogin"
            )
        )
        assert logins.all() == []
