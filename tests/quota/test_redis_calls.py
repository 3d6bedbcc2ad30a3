"""Scripts over connections of their own: each answer is that of its question, whatever happens."""

from __future__ import annotations

import multiprocessing
import random
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial

import hiredis
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry
from stores import RedisStore, open_account, reserve

from billing.core.reservation import ReserveOutcome
from billing.quota.redis_store import RedisQuotaStore
from billing.redis.scripts import packed

pytestmark = pytest.mark.redis

ENOUGH = 30
MOST_CALLS = 20_000
FORK = multiprocessing.get_context("fork")


class Interrupted(Exception):  # noqa: N818 - as Celery's SoftTimeLimitExceeded
    pass


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisStore]:
    retry = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
    with redis.Redis.from_url(redis_url, retry=retry, socket_timeout=10) as client:
        store = RedisStore(client, f"wbtest.{secrets.token_hex(4)}")
        open_account(store, granted_microcredits=10**9)
        yield store
        store.lose_everything()


class Interruptions:
    """Calls broken off at some instant or other, until so many were as tell something."""

    def __init__(self, longest_seconds: float) -> None:
        self._longest_seconds = longest_seconds
        self._count = 0

    def numbers(self) -> Iterator[int]:
        """Of the calls."""
        for number in range(MOST_CALLS):
            if self._count == ENOUGH:
                return
            yield number
        pytest.fail(f"{self._count} of {MOST_CALLS} calls were interrupted")

    def call(self, function: Callable[[], object]) -> None:
        """Call it, perhaps interrupted."""
        before = signal.signal(signal.SIGALRM, _interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00005, self._longest_seconds))
            function()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupted:
            self._count += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _interrupt(*_: object) -> None:
    raise Interrupted


def holds_what_it_asked(store: RedisStore, task: str, amount: int) -> bool:
    reservation = reserve(store, task, amount)
    return (reservation.outcome, reservation.held_microcredits) == (ReserveOutcome.HELD, amount)


def test_a_call_interrupted_at_any_instant_leaves_no_answer_for_the_next(store: RedisStore):
    interruptions = Interruptions(0.0015)
    for number in interruptions.numbers():
        interruptions.call(partial(reserve, store, f"interrupted {number}", 7))
        assert holds_what_it_asked(store, f"t{number}", number + 100)


@given(st.lists(st.text() | st.binary() | st.integers(), min_size=1, max_size=20))
def test_a_command_is_packed_as_hiredis_packs_it(command: list[str | bytes | int]):
    assert packed(command) == hiredis.pack_command(tuple(command))


def test_a_connection_that_the_server_closed_is_made_anew(store: RedisStore):
    reserve(store, "t1", 1)
    assert isinstance(store.quota, RedisQuotaStore)
    (connection,) = store.quota._scripts._idle
    connection.send_command("CLIENT", "ID")
    store.client.client_kill_filter(_id=connection.read_response())
    assert holds_what_it_asked(store, "t2", 2)


def test_threads_get_each_their_own_answers(store: RedisStore):
    wrong: list[str] = []

    def ask(number: int) -> None:
        for count in range(100):
            name, amount = f"{number}-{count}", number * 1000 + count + 1
            if not holds_what_it_asked(store, name, amount):
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_a_forked_child_says_nothing_on_its_parents_connection(store: RedisStore):
    reserve(store, "parent", 1)

    def ask() -> None:
        assert all(holds_what_it_asked(store, f"child {n}", n + 1) for n in range(200))

    child = FORK.Process(target=ask)
    child.start()
    assert all(holds_what_it_asked(store, f"parent {n}", n + 1) for n in range(200))
    child.join(60)
    assert child.exitcode == 0
