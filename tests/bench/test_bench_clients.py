"""Many clients: what they say they did is what the servers have."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import pytest
import redis
import sqlalchemy as sa

from billing.core.clock import to_ms
from billing.core.periods import month_of
from billing.core.reservation import AccountState
from billing.devtools.embedded_servers.visit import delete_keys
from billing.redis.keys import RedisKeys, shard_of
from lab.bench import evalsha, rivals
from lab.bench.events import PRICE_MICROCREDITS, SKU
from lab.bench.quota_clients import THREADS, Job, quota_on, serve

CUSTOMERS = ["acme", "globex", "initech"]
GRANTED = 1_000_000 * PRICE_MICROCREDITS


class Account:
    """The quota store under a prefix of its own, with credits for three customers."""

    def __init__(self, client: redis.Redis, url: str) -> None:
        self.client, self.url = client, url
        self.prefix = f"wbtest.{secrets.token_hex(4)}"
        self.quota = quota_on(client, self.prefix)
        month = month_of(datetime.now(UTC))
        for customer in CUSTOMERS:
            self.quota.load(
                AccountState(
                    customer=customer, epoch=1, version=1, suspended=False,
                    granted_microcredits=GRANTED, settled_microcredits=0, late_microcredits=0,
                    period_start_ms=to_ms(month.start), period_end_ms=to_ms(month.end),
                )
            )  # fmt: skip

    def held(self, customer: str) -> int:
        """How many checks took a credit of this customer."""
        account = self.quota.account(customer)
        assert account is not None
        return account.held_microcredits // PRICE_MICROCREDITS

    def command(self) -> list[str]:
        keys, customer = RedisKeys(self.prefix), CUSTOMERS[0]
        names = [
            keys.account(customer),
            keys.hold(customer, "__rand_int__"),
            keys.open(shard_of(customer)),
            keys.customer_holds(customer),
        ]
        arguments = [customer, "__rand_int__", SKU, PRICE_MICROCREDITS, 60_000]
        return evalsha.reserve_command(self.client, names, arguments)


@pytest.fixture
def accounts(redis_url: str) -> Iterator[Account]:
    with redis.Redis.from_url(redis_url) as client:
        accounts = Account(client, redis_url)
        yield accounts
        delete_keys(redis_url, [f"{accounts.prefix}:*"])


def job(kind: str, url: str, prefix: str = "") -> Job:
    return Job(kind=kind, url=url, prefix=prefix, customers=CUSTOMERS[:1], seconds=0.1)


@pytest.mark.redis
def test_every_check_that_is_counted_took_a_credit(accounts: Account) -> None:
    count = serve(job("quota", accounts.url, accounts.prefix), time.monotonic_ns())
    # Each thread made one call before its time was taken.
    assert accounts.held(CUSTOMERS[0]) == count.made + THREADS
    assert count.made > 0
    assert count.ended_ns > count.began_ns


@pytest.mark.redis
def test_checks_spread_over_all_customers(accounts: Account) -> None:
    every = Job(
        kind="quota", url=accounts.url, prefix=accounts.prefix, customers=CUSTOMERS, seconds=0.1
    )
    made = serve(every, time.monotonic_ns()).made + THREADS
    held = [accounts.held(customer) for customer in CUSTOMERS]
    assert sum(held) == made
    assert min(held) > 0


@pytest.mark.redis
@pytest.mark.parametrize("depth", [1, 20])
def test_the_driver_in_place_of_redis_benchmark_makes_the_calls_it_counts(
    accounts: Account, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    rate = evalsha.rate(
        accounts.client, accounts.url, accounts.prefix, accounts.command(),
        clients=4, depth=depth, calls=400,
    )  # fmt: skip
    assert accounts.held(CUSTOMERS[0]) == 400
    assert rate > 0


@pytest.mark.redis
def test_redis_benchmark_makes_the_calls_and_leaves_no_user(accounts: Account) -> None:
    if evalsha.program_for(accounts.client, accounts.url) is None:
        pytest.skip("there is no redis-benchmark or valkey-benchmark")
    before = accounts.client.acl_users()
    rate = evalsha.rate(
        accounts.client, accounts.url, accounts.prefix, accounts.command(),
        clients=4, depth=10, calls=400,
    )  # fmt: skip
    assert accounts.held(CUSTOMERS[0]) >= 396
    assert rate > 0
    assert accounts.client.acl_users() == before


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("naive", "SELECT credits FROM bench_credits"),
        ("credit-ledger", "SELECT credits FROM credit_balance"),
    ],
)
def test_a_row_in_postgresql_is_charged_for_every_check(
    engine: sa.Engine, kind: str, left: str
) -> None:
    rivals.prepare(engine, CUSTOMERS[0])
    with engine.connect() as connection:
        before = connection.execute(sa.text(left)).scalar_one()
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    count = serve(job(kind, url), time.monotonic_ns())
    with engine.connect() as connection:
        after = connection.execute(sa.text(left)).scalar_one()
    assert Decimal(before) - Decimal(after) == count.made + THREADS
