"""A worker whose configuration cannot be right does not start: the rules, and real workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
import sqlalchemy as sa
import structlog
from live import Live, Worker
from support import eventually

from billing.container import ServerFacts
from billing.devtools.embedded_servers import LocalServers
from billing.settings import Settings
from workers.startup_checks import (
    EX_CONFIG,
    TaskSetup,
    check_serializers,
    check_servers,
    check_tasks,
    show_no_variables,
)

HEAD = "0007"


def task(
    *,
    sku: str = "page",
    acks_late: bool = True,
    time_limit: float | None = 600,
    soft_time_limit: float | None = None,
) -> TaskSetup:
    return TaskSetup(
        name="tests.capture",
        sku=sku,
        acks_late=acks_late,
        time_limit=time_limit,
        soft_time_limit=soft_time_limit,
    )


def servers(
    *, policy: str | None = "noeviction", revision: str | None = HEAD, database: bool = True
) -> ServerFacts:
    return ServerFacts(
        maxmemory_policy=policy,
        schema_revision=revision,
        schema_head=HEAD,
        database_answers=database,
    )


def settings(*, ttl: int = 2100, consumer_timeout: int = 1800) -> Settings:
    return Settings(hold_ttl_seconds=ttl, broker_consumer_timeout_seconds=consumer_timeout)


HOLD_TTL = "WEIGHBRIDGE_HOLD_TTL_SECONDS"
CONSUMER_TIMEOUT = "WEIGHBRIDGE_BROKER_CONSUMER_TIMEOUT_SECONDS"


@pytest.mark.parametrize(
    ("given", "of", "wrong"),
    [
        (settings(), task(), []),
        # A hold outlives the hard time limit by more than 30 s.
        (settings(ttl=631), task(time_limit=600), []),
        (settings(ttl=630), task(time_limit=600), [HOLD_TTL]),
        (settings(ttl=60), task(time_limit=29.5), []),
        (settings(ttl=60), task(time_limit=30), [HOLD_TTL]),
        # RabbitMQ gives a task again that is unacknowledged for longer than its consumer_timeout.
        (settings(consumer_timeout=600), task(time_limit=600), [CONSUMER_TIMEOUT]),
        (settings(consumer_timeout=601), task(time_limit=600), []),
        (settings(consumer_timeout=600), task(time_limit=600, acks_late=False), []),
        (settings(ttl=600, consumer_timeout=600), task(), [HOLD_TTL, CONSUMER_TIMEOUT]),
        # Celery counts the hard limit from the end of the soft one, if that is not the shorter.
        (settings(), task(time_limit=600, soft_time_limit=599), []),
        (settings(), task(time_limit=600, soft_time_limit=600), ["tests.capture.soft_time_limit"]),
        # Without a limit a run outlives every hold; without a SKU it has no price.
        (settings(), task(time_limit=None), ["tests.capture.time_limit"]),
        (settings(), task(sku=""), ["tests.capture.sku"]),
        (
            settings(),
            task(sku="", time_limit=None),
            ["tests.capture.sku", "tests.capture.time_limit"],
        ),
    ],
)
def test_time_limits_must_fit_the_life_of_a_hold_and_the_brokers_patience(
    given: Settings, of: TaskSetup, wrong: list[str]
):
    found = check_tasks(given, [of])

    assert [error.setting for error in found] == wrong
    for error in found:
        assert error.problem
        assert error.remedy


def test_every_task_is_checked_and_the_wrong_one_is_named():
    found = check_tasks(settings(ttl=700), [task(time_limit=10), task(time_limit=680), task()])

    assert len(found) == 1
    assert "tests.capture (680 s)" in found[0].problem
    assert "710" in found[0].remedy


@pytest.mark.parametrize(
    ("accepted", "others"),
    [
        (["json"], ""),
        (["application/json"], ""),
        (["json", "pickle"], "pickle"),
        (["yaml", "pickle", "json"], "pickle, yaml"),
    ],
)
def test_only_json_is_accepted(accepted: list[str], others: str):
    found = check_serializers(accepted)

    assert [error.setting for error in found] == (["accept_content"] if others else [])
    assert all(f"accepts {others} beside json" in error.problem for error in found)


@pytest.mark.parametrize(
    ("setup", "wrong"),
    [
        (servers(), []),
        (servers(policy="allkeys-lru"), ["maxmemory-policy"]),
        (servers(policy="volatile-ttl"), ["maxmemory-policy"]),
        (servers(revision=None), ["DATABASE_URL"]),
        (servers(revision="0006"), ["DATABASE_URL"]),
        (servers(policy="allkeys-lru", revision="0006"), ["maxmemory-policy", "DATABASE_URL"]),
        # A server that does not answer is not a wrong configuration: the worker waits for it.
        (servers(policy=None), []),
        (servers(revision=None, database=False), []),
    ],
)
def test_redis_must_keep_what_it_is_told_and_postgresql_have_the_tables(
    setup: ServerFacts, wrong: list[str]
):
    found = check_servers(setup)

    assert [error.setting for error in found] == wrong


def test_a_missing_migration_is_told_with_both_revisions():
    (error,) = check_servers(servers(revision="0006"))

    assert "0006" in error.problem
    assert HEAD in error.problem
    assert error.remedy == "run: billing migrate"


# -- real workers ------------------------------------------------------------------------------


def refused(live: Live, **environment: str) -> Worker:
    """A worker that ended by itself, with the exit code of a configuration error."""
    worker = live.start_worker(**environment)
    try:
        eventually(lambda: worker.process.poll() is not None, timeout=60, message="it refused")
    finally:
        worker.stop()
    assert worker.process.returncode == EX_CONFIG, worker.text[-3000:]
    assert " ready." not in worker.text
    assert "refusing to start" in worker.text
    return worker


@pytest.fixture
def unconfigured() -> Iterator[structlog.dev.ConsoleRenderer]:
    """structlog as it is where nobody configured it."""
    before = structlog.get_config() if structlog.is_configured() else None
    structlog.reset_defaults()
    renderer = structlog.get_config()["processors"][-1]
    formatter = renderer.exception_formatter
    yield renderer
    renderer.exception_formatter = formatter
    if before is not None:
        structlog.configure(**before)


def log_a_failure() -> None:
    password = "".join(reversed("retnuh"))
    try:
        raise ConnectionError("no answer")  # noqa: TRY301 - its own frame is what is looked at
    except ConnectionError:
        structlog.get_logger().exception("a hold could not be ended", shown=len(password))


def test_a_workers_tracebacks_show_no_variables(
    unconfigured: structlog.dev.ConsoleRenderer, capsys: pytest.CaptureFixture[str]
):
    del unconfigured
    show_no_variables()
    log_a_failure()

    told = capsys.readouterr().out
    assert "log_a_failure" in told
    assert "no answer" in told
    assert "hunter" not in told


def test_tracebacks_that_an_app_configured_stay_as_they_are(
    unconfigured: structlog.dev.ConsoleRenderer,
):
    own = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.rich_traceback)
    structlog.configure(processors=[own])
    show_no_variables()

    assert own.exception_formatter is structlog.dev.rich_traceback
    assert unconfigured.exception_formatter is not structlog.dev.plain_traceback
    structlog.reset_defaults()


@pytest.mark.worker
@pytest.mark.rabbitmq
def test_a_worker_names_everything_that_is_wrong_and_does_not_start(live: Live):
    with live.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0000'"))

    worker = refused(
        live,
        WEIGHBRIDGE_HOLD_TTL_SECONDS="600",
        WEIGHBRIDGE_BROKER_CONSUMER_TIMEOUT_SECONDS="500",
    )

    assert "setting=WEIGHBRIDGE_HOLD_TTL_SECONDS" in worker.text
    assert "setting=WEIGHBRIDGE_BROKER_CONSUMER_TIMEOUT_SECONDS" in worker.text
    assert "setting=DATABASE_URL" in worker.text
    assert "run: billing migrate" in worker.text
    # Nothing was asked of the broker: no other worker sees this one come and go.
    assert "Connected to" not in worker.text


@pytest.fixture
def forgetful_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey of the test's own that would throw data away when memory is short."""
    servers = LocalServers(tmp_path_factory.mktemp("valkey"), durable=False)
    try:
        url = servers.valkey()
        with redis.Redis.from_url(url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        yield url
    finally:
        servers.remove()


@pytest.mark.worker
@pytest.mark.rabbitmq
def test_a_worker_does_not_start_on_a_redis_that_may_forget(live: Live, forgetful_redis: str):
    worker = refused(live, REDIS_URL=forgetful_redis)

    assert "setting=maxmemory-policy" in worker.text
    assert "allkeys-lru" in worker.text
    assert "set maxmemory-policy noeviction" in worker.text


@pytest.mark.worker
@pytest.mark.rabbitmq
def test_a_pool_without_time_limits_starts_and_says_what_that_means(live: Live):
    with live.worker(pool="threads") as worker:
        assert "this pool enforces no time limits" in worker.text
        assert live.task("page").apply_async(("x",), customer="acme").get(timeout=20) == "x"
