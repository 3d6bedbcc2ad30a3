"""The shared fixtures and helpers of the tests themselves."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import redis
import sqlalchemy as sa
from amqp import Connection
from support import NOW, TcpProxy, add_customer, add_sku, eventually, make_event

from billing import tables
from billing.core.clock import Clock
from billing.core.period import month_of
from billing.settings import Settings
from billing.usage.event import from_wire


def test_an_event_made_for_a_test_is_valid_on_the_wire():
    event = make_event()
    assert from_wire(event.to_wire()) == event


def test_an_event_made_with_another_instant_has_it_in_its_id():
    metered_at = NOW - timedelta(days=1)
    assert make_event(metered_at=metered_at).metered_at == metered_at


def test_the_clock_stands_still_in_this_month(clock: Clock, now: datetime):
    assert clock.now() == now
    assert now in month_of(datetime.now(UTC))


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


class _Echo:
    """A server that sends back what it gets."""

    def __enter__(self) -> _Echo:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
