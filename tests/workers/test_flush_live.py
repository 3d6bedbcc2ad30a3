"""FLUSHALL on Redis under load: nothing runs on an unknown balance, then the balances are right.

On a Valkey of the test's own. FLUSHALL takes everything: balances, open holds, the outbox with what
was not yet published, the relay's marker, and Celery's results in the next database. So what became
of a task is read from the log, not from its result.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
import redis
import sqlalchemy as sa
from live import Live
from support import add_customer, eventually

from billing.devtools.embedded_servers import LocalServers
from billing.postgres.schema import quota_fences

pytestmark = [pytest.mark.worker, pytest.mark.rabbitmq]

CREDIT = 1_000_000
CUSTOMERS = ("acme", "globex", "tight")
TASKS_EACH = 120
TIGHT_CREDITS = 60
QUARANTINE_SECONDS = 2


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey of this module alone, which it may empty."""
    servers = LocalServers(tmp_path_factory.mktemp("valkey"), durable=False)
    try:
        yield servers.valkey()
    finally:
        servers.remove()


# Only while there is something in the outbox that only the node's journal can bring back.
FLUSH_WITH_LOSS = """
local waiting = 0
for _, stream in ipairs(KEYS) do
  waiting = waiting + redis.call('XLEN', stream)
end
if waiting > 0 then
  redis.call('FLUSHALL')
end
return waiting
"""


class Flush:
    """One FLUSHALL: when, how many bodies had run, and what was lost with it."""

    def __init__(self, live: Live, client: redis.Redis) -> None:
        self.epochs = epochs(live)
        self.ran = len(live.trace())
        flush = client.register_script(FLUSH_WITH_LOSS)

        def lost() -> int:
            self.before = live.container.clock.now()
            return int(flush(keys=live.container.keys.outbox_keys()))

        self.lost_events = eventually(lost, timeout=60, interval=0, message="events in the outbox")
        self.after = live.container.clock.now()

    @property
    def quarantined_until(self) -> datetime:
        """No balance with usage can be known before."""
        return self.before + timedelta(seconds=QUARANTINE_SECONDS)


def epochs(live: Live) -> dict[str, int]:
    with live.engine.connect() as connection:
        rows = connection.execute(sa.select(quota_fences.c.customer_id, quota_fences.c.epoch))
        return {row.customer_id: row.epoch for row in rows}


def submit(live: Live) -> dict[str, str]:
    """Customer by task id."""
    return {
        live.task("page").apply_async((str(n),), customer=customer).id: customer
        for n in range(TASKS_EACH)
        for customer in CUSTOMERS
    }


def flush_under_load(live: Live, client: redis.Redis, *, after: int) -> Flush:
    """Empty Redis once so many bodies have run and each customer has usage in the log."""
    eventually(lambda: len(live.trace()) >= after, timeout=60, message=f"{after} bodies ran")
    eventually(
        lambda: {row.customer_id for row in live.events()} >= set(CUSTOMERS),
        timeout=30,
        message="every customer has usage in the log",
    )
    return Flush(live, client)


def assert_unknown_while_quarantined(live: Live, flush: Flush) -> None:
    """As long as the quarantine lasts no balance is there that anything could be held of."""
    seen: list[list[str]] = []

    def over() -> bool:
        known = [name for name in CUSTOMERS if live.container.quota.account(name) is not None]
        if live.container.clock.now() >= flush.quarantined_until:
            return True
        seen.append(known)
        return False

    eventually(over, timeout=10, interval=0.01, message="the quarantine is over")
    assert len(seen) > 10
    assert not any(seen)


def await_rebuilt(live: Live, flush: Flush) -> None:
    def rebuilt() -> bool:
        return all(
            (account := live.container.quota.account(customer)) is not None
            and account.epoch > flush.epochs[customer]
            for customer in CUSTOMERS
        )

    eventually(rebuilt, timeout=30, message="every balance is rebuilt under a new epoch")


def is_replayed(live: Live) -> bool:
    """Whether the node's relay is through with the loss of the outbox."""
    remembered = live.settings.spool_dir / "journal" / "generation"
    return remembered.read_text() == live.container.outbox.generation()


def test_redis_emptied_twice_under_load_admits_nothing_unknown_and_loses_nothing(
    live: Live, redis_client: redis.Redis
):
    add_customer(live.engine, "tight", credits=TIGHT_CREDITS)
    stop = threading.Event()
    consumer = threading.Thread(target=live.container.consumer().run, args=(stop,))
    consumer.start()
    try:
        with live.worker(
            WEIGHBRIDGE_QUARANTINE_SECONDS=str(QUARANTINE_SECONDS), WEIGHBRIDGE_DEFER_SECONDS="1"
        ) as worker:
            customers = submit(live)
            flushes = []
            for after in (60, 120):
                flush = flush_under_load(live, redis_client, after=after)
                assert_unknown_while_quarantined(live, flush)
                await_rebuilt(live, flush)
                flushes.append(flush)
            eventually(
                lambda: {row.task_id for row in live.events()} >= set(customers),
                timeout=90,
                interval=0.2,
                message="every task is in the log",
            )
            # The relay sends the journal once more some seconds later: duplicates, all of them.
            eventually(lambda: is_replayed(live), timeout=30, message="the journal is replayed")
    finally:
        stop.set()
        consumer.join(60)
    live.drain()
    assert all(flush.ran < len(customers) - 30 for flush in flushes), "Redis was emptied under load"
    assert all(flush.lost_events for flush in flushes)
    assert_nothing_was_admitted_unknown(live, flushes)
    assert_nothing_is_lost_or_doubled(live, customers)
    for customer in CUSTOMERS:
        account = live.container.quota.account(customer)
        assert account is not None
        assert account.available_microcredits >= 0
        assert account.held_microcredits == 0
    assert "is being rebuilt" in worker.text or "quota_unavailable" in worker.text
    assert live.discrepancies() == []


def assert_nothing_was_admitted_unknown(live: Live, flushes: list[Flush]) -> None:
    """No admitted run began and ended between the loss and the end of the quarantine."""
    admitted = [row for row in live.events() if row.outcome != "denied"]
    for flush in flushes:
        assert [
            row
            for row in admitted
            if row.started_at > flush.after and row.finished_at < flush.quarantined_until
        ] == []
    # The runs that follow were counted by a later balance than the one that was lost.
    last = flushes[-1]
    later = [row for row in admitted if row.started_at > last.after]
    assert later
    assert all(row.quota_epoch > last.epochs[row.customer_id] for row in later)


def assert_nothing_is_lost_or_doubled(live: Live, customers: dict[str, str]) -> None:
    """Each body that ran is one charged line; each task that did not, is one denial."""
    charged = Counter(row.task_id for row in live.events() if row.outcome == "succeeded")
    assert charged == Counter(line.split()[1] for line in live.trace())
    denied = Counter(row.task_id for row in live.events() if row.outcome == "denied")
    assert charged + denied == Counter(list(customers))
    by_customer = Counter(customers[task_id] for task_id in charged)
    assert by_customer == {
        "acme": TASKS_EACH,
        "globex": TASKS_EACH,
        "tight": TIGHT_CREDITS,
    }
    assert {customers[task_id] for task_id in denied} == {"tight"}
