"""The shared fixtures and helpers of the tests themselves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
import sqlalchemy as sa
from redis.backoff import NoBackoff
from redis.retry import Retry
from support import NOW, TcpProxy, add_customer, add_sku, eventually, make_event

from billing.core.clock import Clock
from billing.core.usage_event_json import from_wire
from billing.postgres import schema as tables
from billing.settings import Settings


def test_an_event_made_for_a_test_is_valid_on_the_wire():
    event = make_event()
    assert from_wire(event.to_wire()) == event


def test_an_event_made_with_another_instant_has_it_in_its_id():
    metered_at = NOW - timedelta(days=1)
    assert make_event(metered_at=metered_at).metered_at == metered_at


def test_the_clock_stands_still_within_the_last_forty_days(clock: Clock, now: datetime):
    assert clock.now() == now
    assert timedelta(0) <= datetime.now(UTC) - now < timedelta(days=41)


def test_eventually_returns_the_first_true_answer():
    answers = iter([None, 0, "yes"])
    assert eventually(lambda: next(answers)) == "yes"


def test_eventually_takes_an_exception_for_not_yet():
    answers = iter([False, True])

    def ask() -> bool:
        if not next(answers):
            raise ConnectionRefusedError
        return True

    assert eventually(ask)


def test_eventually_fails_with_what_was_waited_for_and_the_last_answer():
    with pytest.raises(AssertionError, match="the pigs fly; last answer: 0"):
        eventually(lambda: 0, timeout=0.05, message="the pigs fly")


def test_each_test_has_a_migrated_database_and_may_add_customers_and_skus(engine: sa.Engine):
    add_customer(engine, "acme", credits="12.5", budgets={"*": 10})
    add_sku(engine, "page-capture", price="0.25")
    with engine.connect() as connection:
        granted = connection.scalar(sa.select(tables.quota_fences.c.granted_microcredits))
        given = connection.scalar(sa.select(tables.grants.c.amount_microcredits))
        price = connection.scalar(sa.select(tables.prices.c.unit_price_microcredits))
        budget = connection.scalar(sa.select(tables.budgets.c.limit_microcredits))
    assert (granted, given, price, budget) == (12_500_000, 12_500_000, 250_000, 10_000_000)


def test_no_customer_of_another_test_is_there(engine: sa.Engine):
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.customers)) == 0


def test_the_settings_name_this_tests_own_database(settings: Settings, database_url: str):
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == database_url
    with psycopg.connect(database_url) as connection:
        name = connection.execute("SELECT current_database()").fetchone()
    assert name is not None
    assert str(name[0]).startswith("wbtest_")


def test_the_settings_prefix_every_key(settings: Settings, redis_client: redis.Redis):
    redis_client.set(f"{settings.redis_prefix}:a", "1")
    assert settings.redis_prefix != "wb"


def test_rabbitmq_is_one_that_takes_a_queue(rabbitmq_url: str, settings: Settings):
    assert settings.amqp_url is not None
    assert settings.amqp_url.get_secret_value() == rabbitmq_url


@pytest.mark.rabbitmq
def test_the_mark_alone_is_enough_to_get_rabbitmq(
    settings: Settings, request: pytest.FixtureRequest
):
    assert settings.amqp_url is not None
    assert settings.amqp_url.get_secret_value() == request.getfixturevalue("rabbitmq_url")


WITHOUT_RABBITMQ = """
from billing.devtools.embedded_servers import LocalServerError, LocalServers

def rabbitmq(self):
    raise LocalServerError("RabbitMQ", "none is installed", "install it")

LocalServers.rabbitmq = rabbitmq
"""


@pytest.mark.parametrize(
    ("ci", "exit_code", "said"), [("", 0, "NOT TESTED: RabbitMQ"), ("true", 1, "and CI=true")]
)
def test_without_rabbitmq_a_test_is_skipped_loudly_and_fails_in_ci(
    tmp_path: Path, ci: str, exit_code: int, said: str
):
    (tmp_path / "without_rabbitmq.py").write_text(WITHOUT_RABBITMQ)
    names = {k: v for k, v in os.environ.items() if not k.endswith("AMQP_URL")}
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "without_rabbitmq", "-p", "no:cacheprovider"),
            f"{__file__}::test_the_mark_alone_is_enough_to_get_rabbitmq",
        ],
        env=names | {"CI": ci, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == exit_code, ran.stdout
    assert said in ran.stdout


@pytest.fixture
def proxy(redis_url: str) -> Iterator[TcpProxy]:
    parts = urlsplit(redis_url)
    with TcpProxy(parts.hostname or "127.0.0.1", parts.port or 6379) as proxy:
        yield proxy


@pytest.fixture
def far_redis(redis_url: str, proxy: TcpProxy) -> Iterator[redis.Redis]:
    password = urlsplit(redis_url).password
    with redis.Redis(
        port=proxy.port, password=password, socket_timeout=0.5, retry=Retry(NoBackoff(), 0)
    ) as client:
        yield client


def test_a_good_network_passes_everything_on(far_redis: redis.Redis):
    assert far_redis.echo("x" * 200_000) == b"x" * 200_000


def test_a_cut_network_refuses_until_it_is_restored(proxy: TcpProxy, far_redis: redis.Redis):
    assert far_redis.ping()
    proxy.cut()
    with pytest.raises(redis.ConnectionError):
        far_redis.ping()
    proxy.restore()
    assert far_redis.ping()


def test_a_silent_network_keeps_the_connection_and_answers_nothing(
    proxy: TcpProxy, far_redis: redis.Redis
):
    assert far_redis.ping()
    proxy.silence()
    with pytest.raises(redis.TimeoutError):
        far_redis.ping()
    proxy.restore()
    assert far_redis.ping()


def test_a_slow_network_takes_its_time(proxy: TcpProxy, far_redis: redis.Redis):
    assert far_redis.ping()
    proxy.latency_seconds = 0.05
    began = time.monotonic()
    assert far_redis.ping()
    assert time.monotonic() - began >= 0.1
