"""Questions answered by a streaming replica: what it says of itself, and who answers without it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import urlsplit, urlunsplit

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from support import NOW, add_customer, add_sku, eventually, make_event

from billing.container import Container
from billing.core.clock import ManualClock
from billing.core.periods import month_of
from billing.devtools.embedded_servers import LocalServers
from billing.postgres.engines import (
    REPLICA_PAUSE_SECONDS,
    replica_engine,
    sqlalchemy_url,
    writer_engine,
)
from billing.postgres.migrations import upgrade
from billing.postgres.replica import AsOf, as_of
from billing.settings import Settings
from billing.usage_log.log_writer import LogWriter
from billing.usage_log.usage_queries import UsageQueries
from lab.scale.postgres import Replica

pytestmark = [pytest.mark.postgres, pytest.mark.process]

Servers = tuple[str, Replica]


class Seconds:
    """A monotonic clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def servers(pytestconfig: pytest.Config) -> Iterator[Servers]:
    """A primary with the schema, and a replica that follows it."""
    base = pytestconfig.rootpath / ".local" / "test" / f"replica-{secrets.token_hex(3)}"
    local = LocalServers(base, durable=False)
    url = local.postgres()
    replica = Replica(url, base / "replica")
    try:
        upgrade(url)
        replica.start()
        yield url, replica
    finally:
        replica.remove()
        local.remove()


def _is_replica(engine: sa.Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.execute(sa.text("SELECT pg_is_in_recovery()")).scalar())


def _nowhere(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition(":")[0] + ":1"))


def test_totals_come_from_the_replica_once_it_has_repeated_them(servers: Servers):
    url, replica = servers
    primary = sa.create_engine(sqlalchemy_url(url))
    customer = add_customer(primary, f"c{secrets.token_hex(3)}")
    add_sku(primary, "page-capture")
    reading = replica_engine(replica.url, url)
    writing = writer_engine(url)
    writer = LogWriter(
        writing,
        clock=ManualClock(NOW),
        max_age=timedelta(days=90),
        max_ahead=timedelta(seconds=300),
        currency="USD",
    )
    assert writer.write([make_event(customer=customer).to_wire()]).inserted == 1
    month = month_of(NOW)
    total = eventually(
        lambda: t if (t := UsageQueries(reading).total(customer, month)).events else None
    )
    assert total == UsageQueries(primary).total(customer, month)
    assert _is_replica(reading)
    for engine in (reading, primary, writing):
        engine.dispose()


def test_a_replica_says_up_to_which_commit_it_has_repeated(servers: Servers):
    url, replica = servers
    primary, reading = sa.create_engine(sqlalchemy_url(url)), replica_engine(replica.url, url)
    with primary.begin() as connection:
        before = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
        connection.execute(sa.text("CREATE TABLE IF NOT EXISTS later (n int)"))
    answer = eventually(lambda: a if (a := as_of(reading)).at and a.at >= before else None)
    assert answer.replica
    assert "from a replica" in str(answer)
    reading.dispose()
    primary.dispose()


def test_while_the_replica_is_away_the_primary_answers_and_says_so(servers: Servers):
    url, _ = servers
    reading = replica_engine(_nowhere(url), url)
    assert not _is_replica(reading)
    assert not as_of(reading).replica
    reading.dispose()


def test_a_replica_that_comes_back_is_asked_again_after_a_while(servers: Servers):
    url, replica = servers
    clock = Seconds()
    reading = replica_engine(replica.url, url, monotonic=clock)
    replica.stop()
    assert not _is_replica(reading)
    replica.start()
    reading.dispose()  # as the pool does with connections that are older than the pause
    assert not _is_replica(reading)
    clock.now += REPLICA_PAUSE_SECONDS
    reading.dispose()
    assert _is_replica(reading)
    reading.dispose()


def test_a_lost_replica_is_noticed_by_the_next_question(servers: Servers):
    url, replica = servers
    reading = replica_engine(replica.url, url)
    assert _is_replica(reading)
    replica.stop()
    assert not _is_replica(reading)
    replica.start()
    reading.dispose()


@pytest.mark.parametrize("away", [False, True])
def test_nothing_can_be_written_through_it_wherever_it_leads(servers: Servers, away: bool):
    url, replica = servers
    reading = replica_engine(_nowhere(url) if away else replica.url, url)
    with pytest.raises(sa.exc.InternalError, match="read-only"), reading.begin() as connection:
        connection.execute(sa.text("CREATE TABLE never (n int)"))
    reading.dispose()


def test_a_system_without_a_replica_reads_from_the_primary_and_says_nothing(settings: Settings):
    with Container(settings) as container:
        assert container.read_engine is container.engine
        assert container.as_of() is None


def test_a_system_with_one_says_which_server_answers(settings: Settings, database_url: str):
    with_replica = settings.model_copy(
        update={"database_read_url": SecretStr(_nowhere(database_url))}
    )
    with Container(with_replica) as container:
        found = container.as_of()
        assert isinstance(found, AsOf)
        assert not found.replica
