"""Redis, and RabbitMQ too, away while real workers run: what is refused, what runs, what is kept.

The worker reaches Redis and RabbitMQ through proxies that can be cut. Celery's results and the
test's own looks go to the servers directly.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis
import sqlalchemy as sa
from live import Live, Worker
from support import TcpProxy, eventually

from billing.postgres.schema import quota_recounts
from billing.redis.keys import shard_of
from billing.server_urls import RESULT_DATABASE, sibling_database
from workers.errors import QuotaExceeded

pytestmark = [pytest.mark.worker, pytest.mark.rabbitmq]

CREDIT = 1_000_000
ALLOWED_WITHOUT_HOLD = 3


def proxied(url: str, default_port: int) -> tuple[TcpProxy, str]:
    """A proxy before the server of a URL, and the URL through it."""
    parts = urlsplit(url)
    proxy = TcpProxy(parts.hostname or "127.0.0.1", parts.port or default_port)
    credentials, at, _ = parts.netloc.rpartition("@")
    netloc = f"{credentials}{at}127.0.0.1:{proxy.port}"
    return proxy, urlunsplit(parts._replace(netloc=netloc))


class Bench:
    """A live system whose worker reaches the servers through proxies."""

    def __init__(self, live: Live, redis_url: str, rabbitmq_url: str) -> None:
        self.live = live
        self.redis, redis_through = proxied(redis_url, 6379)
        self.rabbitmq, amqp_through = proxied(rabbitmq_url, 5672)
        self._environment = {
            "REDIS_URL": redis_through,
            "AMQP_URL": amqp_through,
            "RESULT_URL": sibling_database(redis_url, RESULT_DATABASE),
        }

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """One worker with one child, which has run a task and so knows balance and catalogue."""
        with self.live.worker(concurrency=1, **self._environment) as worker:
            assert self.bill("page", "first").get(timeout=30) == "first"
            # A killed relay's shards are free again only when its lease is over.
            eventually(
                lambda: self.live.container.outbox.length() == 0,
                timeout=30,
                message="it is relayed",
            )
            yield worker

    def bill(self, name: str, *args: Any) -> Any:
        return self.live.task(name).apply_async(args, customer="acme")

    def spooled_whole(self) -> bool:
        """The spool has an event, and its line has ended: a file is there before its content."""
        return any(path.read_bytes().endswith(b"\n") for path in self.spooled())

    def gate(self) -> Path:
        return self.live.settings.spool_dir / "gate"

    def spooled(self) -> list[Path]:
        return self.live.container.spool.segments()

    def close(self) -> None:
        self.redis.close()
        self.rabbitmq.close()


@pytest.fixture
def bench(live: Live, redis_url: str, rabbitmq_url: str) -> Iterator[Bench]:
    bench = Bench(live, redis_url, rabbitmq_url)
    yield bench
    bench.close()


def let_time_pass_for_open_holds(live: Live, client: redis.Redis, customer: str) -> None:
    """As if the life of the customer's open holds were over; the sweeper finds them due."""
    keys = live.container.keys
    for hold in live.container.quota.open_holds(customer):
        client.hset(keys.hold(customer, hold.task_id), "expires_ms", 1)
        client.zadd(keys.open(shard_of(customer)), {f"{customer}|{hold.task_id}": 1})


def rows_of(live: Live, task_id: str) -> list[Any]:
    return [row for row in live.events() if row.task_id == task_id]


def test_redis_away_each_sku_does_as_its_policy_says(bench: Bench):
    live = bench.live
    with bench.worker() as worker:
        bench.redis.cut()
        back = bench.bill("page", "back")
        refused = bench.bill("strict")
        allowed = [bench.bill("allowed") for _ in range(ALLOWED_WITHOUT_HOLD + 2)]
        with pytest.raises(QuotaExceeded) as denial:
            refused.get(timeout=30)
        eventually(
            lambda: sum(result.ready() for result in allowed) == ALLOWED_WITHOUT_HOLD, timeout=30
        )
        eventually(lambda: back.id in worker.text and "Retry in" in worker.text, timeout=30)
        # Those over the bound come back as if their SKU said `retry`; nothing of them has run.
        assert len(live.trace("live.allowed")) == ALLOWED_WITHOUT_HOLD
        assert live.trace("live.strict") == []
        assert not live.trace(back.id)
        bench.redis.restore()
        assert back.get(timeout=30) == "back"
        assert [result.get(timeout=30) for result in allowed] == ["ran"] * len(allowed)
    live.drain()
    assert denial.value.reason == "quota_unavailable"
    assert [(row.outcome, row.reason) for row in rows_of(live, refused.id)] == [
        ("denied", "quota_unavailable")
    ]
    lines = [row for result in allowed for row in rows_of(live, result.id)]
    assert [row.amount_microcredits for row in lines] == [CREDIT] * len(allowed)
    unheld = [row for row in lines if row.degraded]
    assert [row.quota_epoch for row in unheld] == [0] * ALLOWED_WITHOUT_HOLD
    # The consumer told the balance what it had not counted: first, back, and five allowed ones.
    assert live.settled_and_held() == ((2 + len(allowed)) * CREDIT, 0)
    assert live.discrepancies() == []


def test_redis_cut_between_hold_and_settle_the_event_is_published_directly(
    bench: Bench, redis_client: redis.Redis
):
    live = bench.live
    with bench.worker():
        task = bench.bill("gated")
        eventually(lambda: live.trace("began"), timeout=60, message="the body runs")
        bench.redis.cut()
        bench.gate().touch()
        assert task.get(timeout=30) == "went through"
        # Logged while Redis is still away: it was neither in the outbox nor in the spool.
        live.container.consumer().run(threading.Event(), idle_exit=True)
        (line,) = rows_of(live, task.id)
        bench.redis.restore()
    assert (line.outcome, line.amount_microcredits) == ("succeeded", CREDIT)
    assert line.degraded
    assert line.quota_epoch == 0
    assert bench.spooled() == []
    live.drain()
    # The balance knows of it by the log, and the hold that nobody could settle is still open: until
    # its time is over and the sweeper comes, its credit is kept from the customer, but not charged.
    assert live.settled_and_held() == (2 * CREDIT, CREDIT)
    let_time_pass_for_open_holds(live, redis_client, "acme")
    assert live.sweep() == 1
    assert live.settled_and_held() == (2 * CREDIT, 0)
    assert live.discrepancies() == []


def test_redis_stalls_and_settles_after_all_what_was_published_directly_meanwhile(bench: Bench):
    live = bench.live
    with bench.worker():
        task = bench.bill("gated")
        eventually(lambda: live.trace("began"), timeout=60, message="the body runs")
        # Half-open: the settle reaches Redis, but only long after the worker gave up waiting.
        bench.redis.silence()
        bench.gate().touch()
        assert task.get(timeout=30) == "went through"
        live.container.consumer().run(threading.Event(), idle_exit=True)
        assert [row.quota_epoch for row in rows_of(live, task.id)] == [0]
        bench.redis.restore()
        live.await_idle()
    live.drain()
    # Told twice, under two epochs: the balance had both, and has taken one of them back.
    with live.engine.connect() as connection:
        recounted = connection.execute(sa.select(quota_recounts.c.amount_microcredits)).scalars()
        assert recounted.all() == [CREDIT]
    assert len(rows_of(live, task.id)) == 1
    assert live.settled_and_held() == (2 * CREDIT, 0)
    assert live.discrepancies() == []


def test_redis_and_rabbitmq_cut_the_event_waits_in_the_spool_for_the_next_relay(bench: Bench):
    live = bench.live
    with bench.worker() as worker:
        task = bench.bill("gated")
        eventually(lambda: live.trace("began"), timeout=60, message="the body runs")
        bench.redis.cut()
        bench.rabbitmq.cut()
        bench.gate().touch()
        eventually(bench.spooled_whole, timeout=40, message="the event is in the spool")
        assert rows_of(live, task.id) == []
        # The machine goes down with the servers still away.
        worker.kill()
    bench.redis.restore()
    bench.rabbitmq.restore()
    live.drain()
    assert bench.spooled() == []
    (line,) = rows_of(live, task.id)
    assert (line.outcome, line.amount_microcredits, line.degraded) == ("succeeded", CREDIT, True)
    assert live.settled_and_held() == (2 * CREDIT, CREDIT)
    # RabbitMQ never heard of the end, and gives the task to the next worker: it runs again, finds
    # its hold and settles it. It is billed already, and the balance must not count it twice.
    with bench.worker():
        eventually(lambda: len(live.trace("ended")) == 2, timeout=30)
        live.await_idle()
    live.drain()
    assert len(rows_of(live, task.id)) == 1
    assert live.settled_and_held() == (3 * CREDIT, 0)
    assert live.discrepancies() == []
