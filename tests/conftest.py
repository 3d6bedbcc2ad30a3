"""Real servers for the tests, and data that is each test's own.

A server is taken from DATABASE_URL, REDIS_URL or AMQP_URL where set; else an embedded one is
started at the first test that needs it and stopped at the end of the session. Nothing that a test
did not make is touched: each has a database, a Redis prefix and RabbitMQ names of its own.
"""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import hypothesis
import psycopg
import pytest
import redis
import sqlalchemy as sa
from amqp import Connection
from amqp.exceptions import AMQPError
from kombu.utils.url import url_to_parts
from psycopg import sql
from support import NOW

from billing.core.clock import ManualClock
from billing.devtools.embedded_servers import LocalServerError, LocalServers, stop_abandoned
from billing.devtools.embedded_servers.rabbitmq import STANDARD_URL
from billing.postgres.engines import sqlalchemy_url
from billing.postgres.migrations import upgrade
from billing.postgres.partitions import ensure_partitions
from billing.settings import Settings
from lab.celery_exchanges import exchanges_of

TEST_DATABASES = "wbtest_"
A_DAY_SECONDS = 86_400
NO_RABBITMQ = "no RabbitMQ"
PROGRAMS = (
    "tests/embedded_servers/",
    "tests/docs/",
    "tests/demo/",
    "tests/transport/test_kombu_publisher.py",
)
"""Tests that start programs of their own: servers, environments, other runs of pytest."""

MARK_OF = {"rabbitmq_url": "rabbitmq", "redis_url": "redis", "postgres_url": "postgres"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """How far the model of a task's life looks; see ``tests/metering/test_pipeline_machine.py``."""
    parser.addoption(
        "--model-steps", type=int, default=5_000, help="steps of the life-cycle model (5000)"
    )


# How long an example takes says nothing on a machine that is busy with something else.
hypothesis.settings.register_profile(
    "weighbridge", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("weighbridge")


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """Find tests without looking for garbage: thousands are kept, and it took half of the time."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_configure() -> None:
    """A run in the background of a shell ignores Ctrl-C, and so would every program it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for a server is marked so; one marked ``rabbitmq`` asks for the server."""
    for item in items:
        names = getattr(item, "fixturenames", [])
        if item.get_closest_marker("rabbitmq") and "rabbitmq_url" not in names:
            names.insert(0, "rabbitmq_url")
        for name, mark in MARK_OF.items():
            if name in names:
                item.add_marker(mark)
        if item.nodeid.startswith(PROGRAMS):
            item.add_marker("process")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly when the AMQP path was not tested."""
    skipped = [
        r for r in terminalreporter.stats.get("skipped", []) if NO_RABBITMQ in str(r.longrepr)
    ]
    if skipped:
        terminalreporter.section("NOT TESTED: RabbitMQ", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} tests were skipped because there is {NO_RABBITMQ}.")


@pytest.fixture(scope="session")
def local_servers(pytestconfig: pytest.Config) -> Iterator[LocalServers]:
    """Embedded servers of this session in a folder of its own; each starts when first asked for."""
    base = pytestconfig.rootpath / ".local" / "test"
    stop_abandoned(base)
    servers = LocalServers(base / f"{os.getpid()}-{secrets.token_hex(3)}", durable=False)
    try:
        yield servers
    finally:
        servers.remove()


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> str:
    """PostgreSQL, as somebody who may create databases and roles."""
    return os.environ.get("DATABASE_URL") or _local(request).postgres()


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """Redis or Valkey."""
    return os.environ.get("REDIS_URL") or _local(request).valkey()


@pytest.fixture(scope="session")
def rabbitmq_url(request: pytest.FixtureRequest) -> str:
    """RabbitMQ: AMQP_URL, else the one on the standard port, else a private node.

    Without any, what asks for it is skipped; with CI=true it fails.
    """
    try:
        return os.environ.get("AMQP_URL") or _local(request).rabbitmq()
    except LocalServerError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{NO_RABBITMQ}, and CI=true: {error}", pytrace=False)
        pytest.skip(f"{NO_RABBITMQ}: {error.problem.splitlines()[0]}")


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> Iterator[str]:
    """The name of a migrated database that every test's own one is a copy of."""
    _drop_leftovers(postgres_url)
    name = _database_name()
    with _admin(postgres_url) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        upgrade(_with_database(postgres_url, name))
        _make_partitions(_with_database(postgres_url, name))
        yield name
    finally:
        _drop(postgres_url, name)


@pytest.fixture
def database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """A fresh, migrated database of this test's own."""
    name = _database_name()
    with _admin(postgres_url) as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(template_database)
            )
        )
    try:
        yield _with_database(postgres_url, name)
    finally:
        _drop(postgres_url, name)


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """SQLAlchemy on the test's database, as its owner."""
    engine = sa.create_engine(sqlalchemy_url(database_url))
    yield engine
    engine.dispose()


@pytest.fixture
def settings(
    request: pytest.FixtureRequest, database_url: str, redis_url: str, tmp_path: Path
) -> Iterator[Settings]:
    """Settings of the test's own servers, names and folders.

    RabbitMQ is started only for a test that asks for it, by ``rabbitmq_url`` or the mark
    ``rabbitmq``; any other gets the address where one would be.
    """
    asked = "rabbitmq_url" in request.fixturenames
    amqp_url = request.getfixturevalue("rabbitmq_url") if asked else None
    own = f"wbtest.{secrets.token_hex(4)}"
    settings = Settings(
        database_url=database_url,
        redis_url=redis_url,
        amqp_url=amqp_url or os.environ.get("AMQP_URL") or STANDARD_URL,
        local_dir=tmp_path / "local",
        spool_dir=tmp_path / "spool",
        redis_prefix=own,
        usage_exchange=f"{own}.usage",
        usage_queue=f"{own}.usage.log",
        task_queue=f"{own}.ingestion",
        quarantine_seconds=0,
    )
    yield settings
    if amqp_url:
        _delete_names(amqp_url, settings)


@pytest.fixture
def redis_client(redis_url: str, settings: Settings) -> Iterator[redis.Redis]:
    """Redis; afterwards the keys under the test's prefix are deleted, and no others."""
    with redis.Redis.from_url(redis_url) as client:
        yield client
        for key in client.scan_iter(match=f"{settings.redis_prefix}:*", count=1000):
            client.unlink(key)


@pytest.fixture
def now() -> datetime:
    """The instant at which ``clock`` stands."""
    return NOW


@pytest.fixture
def clock(now: datetime) -> ManualClock:
    """A clock that stands still in the middle of a partition."""
    return ManualClock(now)


def _make_partitions(url: str) -> None:
    """Make those around the tests' clock, which in a month's first days is a month behind."""
    engine = sa.create_engine(sqlalchemy_url(url))
    with engine.begin() as connection:
        ensure_partitions(connection, NOW)
    engine.dispose()


def _local(request: pytest.FixtureRequest) -> LocalServers:
    servers = request.getfixturevalue("local_servers")
    assert isinstance(servers, LocalServers)
    return servers


def _admin(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url, autocommit=True)


def _database_name() -> str:
    # The second it was made at tells a crashed run's leftover from a running one's.
    return f"{TEST_DATABASES}{int(time.time())}_{secrets.token_hex(4)}"


def _with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def _drop(postgres_url: str, name: str) -> None:
    with _admin(postgres_url) as admin:
        admin.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )


def _drop_leftovers(postgres_url: str) -> None:
    with _admin(postgres_url) as admin:
        names = admin.execute(
            "SELECT datname FROM pg_database WHERE datname LIKE %s", [f"{TEST_DATABASES}%"]
        ).fetchall()
    for (name,) in names:
        made = str(name).removeprefix(TEST_DATABASES).partition("_")[0]
        if made.isdecimal() and time.time() - int(made) > A_DAY_SECONDS:
            _drop(postgres_url, str(name))


def _delete_names(amqp_url: str, settings: Settings) -> None:
    _, host, port, user, password, path, _ = url_to_parts(amqp_url)
    connection = Connection(
        host=f"{host}:{port or 5672}", userid=user, password=password, virtual_host=path or "/"
    )
    queues = {settings.usage_queue, settings.task_queue}
    exchanges = {settings.usage_exchange, settings.task_queue}
    with contextlib.suppress(OSError, AMQPError), connection:
        connection.connect()
        channel = connection.channel()
        for queue in sorted(queues | {f"{name}.dead" for name in queues}):
            channel.queue_delete(queue)
        exchanges |= {f"{name}.dead" for name in queues | exchanges} | set(exchanges_of(settings))
        for exchange in sorted(exchanges):
            channel.exchange_delete(exchange)
