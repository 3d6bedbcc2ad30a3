"""The schema goes up, down and up again, and is what ``billing/postgres/schema/`` says it is."""

from __future__ import annotations

import hashlib
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from databases import downgrade, is_current
from psycopg import sql
from support import NOW, add_customer, add_sku, make_event

from billing.core.clock import ManualClock, to_ms
from billing.core.errors import ConfigurationError
from billing.core.usage_event import Outcome
from billing.postgres import migrations
from billing.postgres.engines import sqlalchemy_url
from billing.postgres.partitions import is_partition_name
from billing.postgres.schema import metadata
from billing.usage_log.distinct_subjects import HOUR_MS, SubjectIds, month_number
from billing.usage_log.log_writer import LogWriter

MakeDatabase = Callable[[], str]
VERSIONS = migrations.scripts_folder() / "versions"

CHECKS = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conparentid = 0
"""
INDEXES = "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
# SQLAlchemy writes a default of 0 as '0', which PostgreSQL keeps as '0'::bigint: the same.
COLUMNS = r"""
    SELECT table_name, column_name, data_type, is_nullable, identity_generation,
        regexp_replace(column_default, '^''(\d+)''::[a-z]+$', '\1'),
        numeric_precision, numeric_scale
    FROM information_schema.columns WHERE table_schema = 'public'
"""


def url_of(postgres_url: str, name: str, user: str | None = None) -> str:
    parts = urlsplit(postgres_url)
    netloc = parts.netloc
    if user is not None:
        netloc = f"{user}:{user}@{parts.netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=netloc, path=f"/{name}"))


@pytest.fixture
def make_database(postgres_url: str) -> Iterator[MakeDatabase]:
    """Makes empty databases, dropped after the test."""
    made: list[str] = []

    def make() -> str:
        name = f"wbtest_migrate_{secrets.token_hex(4)}"
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        made.append(name)
        return url_of(postgres_url, name)

    yield make
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        for name in made:
            admin.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )


def rows(url: str, query: str) -> set[tuple[object, ...]]:
    """The rows of a query about the catalogue, without what belongs to partitions or Alembic."""
    with psycopg.connect(url) as connection:
        found = connection.execute(query).fetchall()
    return {
        row
        for row in found
        if not is_partition_name(str(row[0])) and not str(row[0]).startswith("alembic")
    }


def tables_of(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {str(row[0]) for row in found}


def test_up_down_and_up_again_leaves_the_same_schema(make_database: MakeDatabase) -> None:
    url = make_database()
    migrations.upgrade(url)
    before = [rows(url, query) for query in (COLUMNS, CHECKS, INDEXES)]
    downgrade(url, "base")
    assert tables_of(url) == {"alembic_version"}
    assert migrations.current(url) is None
    migrations.upgrade(url)
    assert [rows(url, query) for query in (COLUMNS, CHECKS, INDEXES)] == before


def test_a_second_upgrade_changes_nothing(make_database: MakeDatabase) -> None:
    url = make_database()
    migrations.upgrade(url)
    before = tables_of(url)
    migrations.upgrade(url)
    assert tables_of(url) == before


def test_current_tells_where_a_database_stands(make_database: MakeDatabase) -> None:
    url = make_database()
    assert migrations.current(url) is None
    assert not is_current(url)
    migrations.upgrade(url)
    assert migrations.current(url) == migrations.head()
    assert is_current(url)


def test_alembic_sees_no_drift_from_the_tables(database_url: str) -> None:
    def include(_: object, name: str | None, kind: str, reflected: bool, __: object) -> bool:
        return not (kind == "table" and reflected and is_partition_name(str(name)))

    engine = sa.create_engine(sqlalchemy_url(database_url), poolclass=sa.NullPool)
    options = {"include_object": include, "compare_type": True, "compare_server_default": True}
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_the_migrated_schema_is_the_one_made_from_the_tables(
    database_url: str, make_database: MakeDatabase
) -> None:
    made = make_database()
    metadata.create_all(sa.create_engine(sqlalchemy_url(made), poolclass=sa.NullPool))
    for query in (COLUMNS, CHECKS, INDEXES):
        assert rows(database_url, query) == rows(made, query)
    # The comparison is worth something: it notices what is missing.
    with psycopg.connect(made) as connection:
        connection.execute("ALTER TABLE skus DROP CONSTRAINT skus_pricing_check")
        connection.execute("DROP INDEX usage_events_task_id_idx")
    for query in (CHECKS, INDEXES):
        assert rows(database_url, query) != rows(made, query)


def test_the_log_has_no_default_partition(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            "SELECT partdefid FROM pg_partitioned_table WHERE partrelid = 'usage_events'::regclass"
        ).fetchone()
    assert found == (0,)


@pytest.mark.parametrize("script", sorted(VERSIONS.glob("*.py")), ids=lambda path: path.stem)
def test_every_migration_sets_a_lock_timeout_both_ways(script: Path) -> None:
    up, down = re.split(r"^def downgrade", script.read_text(), flags=re.MULTILINE)
    for way in (up[up.index("def upgrade") :], down):
        first = next(line for line in way.splitlines() if "op." in line)
        assert "SET LOCAL lock_timeout" in first


def test_the_template_of_new_migrations_sets_a_lock_timeout() -> None:
    template = (VERSIONS.parent / "script.py.mako").read_text()
    assert template.count("SET LOCAL lock_timeout") == 2


def test_databases_migrated_at_the_same_time_do_not_fail_over_the_roles(
    make_database: MakeDatabase,
) -> None:
    urls = [make_database() for _ in range(3)]
    with ThreadPoolExecutor(len(urls)) as pool:
        list(pool.map(_migrate_in_a_process, urls))
    assert all(is_current(url) for url in urls)


def _migrate_in_a_process(url: str) -> None:
    # Alembic keeps its context in module globals: two at once need two processes.
    code = "import sys; from billing.postgres.migrations import upgrade; upgrade(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, url], check=True, timeout=60)


def test_two_upgrades_of_one_database_at_once_are_one(make_database: MakeDatabase) -> None:
    url = make_database()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_migrate_in_a_process, [url, url]))
    assert is_current(url)


def test_the_scripts_can_be_elsewhere(tmp_path: Path, make_database: MakeDatabase) -> None:
    elsewhere = tmp_path / "moved"
    (elsewhere / "versions").mkdir(parents=True)
    (elsewhere / "env.py").write_text((VERSIONS.parent / "env.py").read_text())
    for script in VERSIONS.glob("*.py"):
        (elsewhere / "versions" / script.name).write_text(script.read_text())
    url = make_database()
    migrations.upgrade(url, scripts=elsewhere)
    assert migrations.head(scripts=elsewhere) == migrations.current(url)


def test_a_folder_without_migrations_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(str(tmp_path))):
        migrations.scripts_folder(tmp_path)


@pytest.fixture
def migrator(postgres_url: str) -> Iterator[str]:
    """A login that is no superuser, may create roles and owns a database of its own name."""
    name = f"wbtest_migrator_{secrets.token_hex(4)}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        login = sql.Identifier(name)
        admin.execute(
            sql.SQL("CREATE ROLE {} LOGIN CREATEROLE PASSWORD {}").format(login, sql.Literal(name))
        )
        admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(login, login))
        yield name
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(login))
        admin.execute(sql.SQL("DROP ROLE {}").format(login))


@pytest.mark.usefixtures("database_url")  # its template made the roles, as somebody else
def test_a_migrator_who_is_no_superuser_can_migrate_where_the_roles_exist_already(
    postgres_url: str, migrator: str
) -> None:
    url = url_of(postgres_url, migrator, user=migrator)
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        if admin.info.server_version >= 160_000:
            # From 16 on CREATEROLE alone does not hand out the roles of others.
            with pytest.raises(sa.exc.ProgrammingError, match="As an administrator: GRANT"):
                migrations.upgrade(url)
            for role in ("weighbridge_owner", "weighbridge_writer", "weighbridge_reader"):
                admin.execute(
                    sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), sql.Identifier(migrator))
                )
    migrations.upgrade(url)
    assert is_current(url)
    with psycopg.connect(url) as connection:
        connection.execute("SET ROLE weighbridge_writer")
        assert connection.execute("SELECT count(*) FROM usage_events").fetchone() == (0,)
    downgrade(url, "base")
    assert tables_of(url) == {"alembic_version"}


SUBJECTS = [("acme", "page", "https://example.com/ä"), ("ältere", "s", "x"), ("acme", "page", "")]


def subject_rows(url: str, columns: str) -> set[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        found = connection.execute(
            sql.SQL("SELECT {} FROM usage_subjects").format(sql.SQL(columns))
        )
        return set(found.fetchall())


def test_subjects_that_were_counted_have_the_ids_that_the_writer_makes(
    make_database: MakeDatabase,
) -> None:
    url, month = make_database(), NOW.date().replace(day=1)
    migrations.upgrade(url, "0004")
    with psycopg.connect(url) as connection:
        for customer, sku, subject in SUBJECTS:
            digest = hashlib.sha256(subject.encode()).digest()[:16]
            connection.execute(
                "INSERT INTO usage_subjects VALUES (%s, %s, %s, %s)", [customer, sku, month, digest]
            )
    migrations.upgrade(url, "0006")
    ids, number = SubjectIds(), month_number(to_ms(NOW) // HOUR_MS)
    assert subject_rows(url, "customer_id, sku_id, month, uuid_send(id)") == {
        (customer, sku, month, ids.id_of(customer, sku, number, subject))
        for customer, sku, subject in SUBJECTS
    }


def test_the_way_back_to_digests_of_subjects_is_found_from_the_log(
    make_database: MakeDatabase,
) -> None:
    url, month = make_database(), NOW.date().replace(day=1)
    migrations.upgrade(url)
    engine = sa.create_engine(sqlalchemy_url(url), poolclass=sa.NullPool)
    add_customer(engine, "acme")
    add_sku(engine, "page-capture")
    writer = LogWriter(
        engine,
        clock=ManualClock(NOW),
        max_age=timedelta(days=90),
        max_ahead=timedelta(seconds=300),
        currency="USD",
    )
    used = [make_event(subject=subject) for subject in ("a", "b", "b", None)]
    unused = make_event(subject="c", outcome=Outcome.FAILED, amount_microcredits=0)
    told = writer.write([event.to_wire() for event in (*used, unused)])
    assert told.inserted == 5
    assert len(subject_rows(url, "id")) == 2
    downgrade(url, "0004")
    assert subject_rows(url, "customer_id, sku_id, month, subject_digest") == {
        ("acme", "page-capture", month, hashlib.sha256(subject.encode()).digest()[:16])
        for subject in ("a", "b")
    }
