"""Many clients of one kind at once: processes with threads, each with a connection of its own.

What they ask is a check each: may this customer spend one more credit, and if so it is taken. The
quota store is asked as a platform would; so are a plain row in PostgreSQL and two packages.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from itertools import cycle, islice
from typing import IO, Final, Self, cast

import psycopg
import redis
import sqlalchemy as sa
from credit_ledger import metering  # type: ignore[import-untyped]
from limits import RateLimitItemPerYear
from limits.storage import storage_from_string
from limits.strategies import FixedWindowRateLimiter

from billing.core.reservation import HoldRequest, ReserveOutcome
from billing.quota.redis_store import RedisQuotaStore
from lab.bench.errors import BenchError
from lab.bench.events import PRICE_MICROCREDITS, SKU

PROCESSES: Final = 5
THREADS: Final = 10
CLIENTS: Final = PROCESSES * THREADS
_TTL_SECONDS: Final = 600
_LEAD_SECONDS: Final = 0.25
"""Until when every client is connected and waits for its start."""
_TIMEOUT_SECONDS: Final = 30.0
_NAIVE: Final = "UPDATE bench_credits SET credits = credits - 1 WHERE id = %s AND credits > 0"
_PLENTY: Final = 1_000_000_000

Check = Callable[[], int]
"""Makes one call; how many checks it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every process of a round gets.

    ``kind``: of ``KINDS``; ``url``: the server's.
    """

    kind: str
    url: str
    prefix: str
    customers: Sequence[str]
    seconds: float


@dataclass(frozen=True, slots=True)
class Count:
    """Checks that one process made, and from when to when, in nanoseconds."""

    made: int
    began_ns: int
    ended_ns: int


def quota_on(client: redis.Redis, prefix: str) -> RedisQuotaStore:
    """The quota store of a round."""
    return RedisQuotaStore(client, prefix=prefix, hold_record_ttl_seconds=600, quarantine_seconds=0)


class Crowd:
    """Processes that wait for jobs, each a job at a time; a context manager that ends them."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "lab.bench.quota_clients"]
        for _ in range(PROCESSES):
            self._processes.append(
                subprocess.Popen(  # noqa: S603 - our own module, no shell
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
        for process in self._processes:
            _answer(process)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def round(self, job: Job) -> float:
        """Run a job on all of them at once: checks a second.

        Raises:
            BenchError: A client failed.
        """
        start_ns = time.monotonic_ns() + int(_LEAD_SECONDS * 1e9)
        line = json.dumps([asdict(job), start_ns]) + "\n"
        for process in self._processes:
            told = cast("IO[str]", process.stdin)
            told.write(line)
            told.flush()
        counts = [Count(*_answer(process)) for process in self._processes]
        took = max(c.ended_ns for c in counts) - min(c.began_ns for c in counts)
        return sum(count.made for count in counts) / took * 1e9


def _answer(process: subprocess.Popen[str]) -> list[int]:
    line = cast("IO[str]", process.stdout).readline()
    answer = json.loads(line) if line else "a client ended by itself"
    if isinstance(answer, str):
        raise BenchError(answer)
    return cast("list[int]", answer)


def main() -> None:
    """Run the jobs that come in; ended by the end of them."""
    # Ctrl-C reaches the whole group; the driver ends these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("[]", flush=True)
    for line in sys.stdin:
        fields, start_ns = json.loads(line)
        try:
            answer: object = astuple(serve(Job(**fields), start_ns))
        except Exception as error:  # noqa: BLE001 - told to the driver
            answer = repr(error)
        print(json.dumps(answer), flush=True)


def serve(job: Job, start_ns: int) -> Count:
    """One process's part of a round.

    Raises:
        BenchError: A check was refused.
    """
    made: list[tuple[int, int, int]] = []
    failures: list[BaseException] = []
    with KINDS[job.kind](job) as client_of:

        def some(number: int) -> None:
            try:
                made.append(_loop(client_of(number), job.seconds, start_ns))
            except BaseException as error:  # noqa: BLE001 - told by the process that waits
                failures.append(error)

        threads = [threading.Thread(target=some, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise BenchError(f"{job.kind}: {failures[0]!r}")
    counts, begins, ends = zip(*made, strict=True)
    return Count(sum(counts), min(begins), max(ends))


def _loop(check: Check, seconds: float, start_ns: int) -> tuple[int, int, int]:
    check()  # connected, and everything is loaded where it is used
    time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
    began = now = time.monotonic_ns()
    deadline, made = began + int(seconds * 1e9), 0
    while now < deadline:
        made += check()
        now = time.monotonic_ns()
    return made, began, now


@contextmanager
def _quota(job: Job) -> Iterator[Callable[[int], Check]]:
    with redis.Redis.from_url(job.url, socket_timeout=_TIMEOUT_SECONDS) as client:
        quota = quota_on(client, job.prefix)

        def client_of(number: int) -> Check:
            names = islice(cycle(job.customers), number * 7, None)

            def one() -> int:
                request = HoldRequest(
                    task_id=str(uuid.uuid4()),
                    customer=next(names),
                    sku=SKU,
                    amount_microcredits=PRICE_MICROCREDITS,
                    ttl_seconds=_TTL_SECONDS,
                )
                if quota.reserve(request).outcome is not ReserveOutcome.HELD:
                    raise BenchError("a check was refused, although credits abound")
                return 1

            return one

        yield client_of


@contextmanager
def _naive(job: Job) -> Iterator[Callable[[int], Check]]:
    connections = [psycopg.connect(job.url, autocommit=True) for _ in range(THREADS)]

    def client_of(number: int) -> Check:
        connection, names = connections[number], cycle(job.customers)

        def one() -> int:
            if connection.execute(_NAIVE, (next(names),)).rowcount != 1:
                raise BenchError("the row had no credits left")
            return 1

        return one

    try:
        yield client_of
    finally:
        for connection in connections:
            connection.close()


@contextmanager
def _credit_ledger(job: Job) -> Iterator[Callable[[int], Check]]:
    url = sa.make_url(job.url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url, pool_size=THREADS)

    def client_of(_number: int) -> Check:
        names = cycle(job.customers)

        def one() -> int:
            key = str(uuid.uuid4())
            if not metering.decrement(next(names), 1, idempotency_key=key, engine=engine).ok:
                raise BenchError("credit-ledger refused, although credits abound")
            return 1

        return one

    try:
        yield client_of
    finally:
        engine.dispose()


@contextmanager
def _limits(job: Job) -> Iterator[Callable[[int], Check]]:
    limiter = FixedWindowRateLimiter(storage_from_string(job.url, key_prefix=job.prefix))
    limit = RateLimitItemPerYear(_PLENTY)

    def client_of(_number: int) -> Check:
        names = cycle(job.customers)

        def one() -> int:
            if not limiter.hit(limit, next(names)):
                raise BenchError("limits refused, although the limit is far away")
            return 1

        return one

    yield client_of


KINDS: Final = {
    "quota": _quota,
    "naive": _naive,
    "credit-ledger": _credit_ledger,
    "limits": _limits,
}


if __name__ == "__main__":
    main()
