"""The part of suite quota with many clients: checks a second, beside what else there is.

Each round has keys of its own, begins with whole accounts and is taken away afterwards, so that no
round finds what another has left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import redis

from billing.container import Container
from billing.core.clock import to_ms
from billing.core.periods import month_of
from billing.core.reservation import AccountState, LoadOutcome
from billing.devtools.embedded_servers.visit import delete_keys
from billing.redis.keys import RedisKeys, shard_of
from lab.bench import evalsha, rivals
from lab.bench.effort import Effort
from lab.bench.errors import BenchError
from lab.bench.events import PRICE_MICROCREDITS, SKU
from lab.bench.ground import Say
from lab.bench.quota_clients import CLIENTS, PROCESSES, THREADS, Crowd, Job, quota_on
from lab.bench.report import Figure, compare

MANY: Final = 1_000
_FIRST_CALLS: Final = 5_000
_GRANTED: Final = 1_000_000_000 * PRICE_MICROCREDITS
_TTL_MS: Final = 600_000
_COLLIDING: Final = 0.99
"""Two of redis-benchmark's random tasks may be the same one."""
_ONE: Final = "crowd"
_NOTE: Final = (
    f"quota, checks: {CLIENTS} clients are {PROCESSES} Python processes with {THREADS} threads; "
    "each reserve is a whole hold for a task of its own, none is settled. {against} sends the same "
    "script with the same arguments to one customer, and looks at no answer."
)
_RIVALS_NOTE: Final = (
    "quota, checks beside others: a PostgreSQL row (UPDATE … SET credits = credits - 1 WHERE … AND "
    "credits > 0, one transaction each), credit-ledger 0.3 with a key for each charge, limits 5 "
    "with a fixed window. All on one customer, from the same clients. A limit only counts: it has "
    "no holds, nothing to settle and nothing to look up afterwards."
)
_DRIVER_NOTE: Final = (
    "quota: there is no redis-benchmark or valkey-benchmark for this server; EVALSHA was driven by "
    "a Python program over plain sockets, which may be slower than the server."
)


@dataclass(slots=True)
class _Crowd:
    """Rounds on one server."""

    container: Container
    round_of: Callable[[Job], float]
    seconds: float
    numbers: Iterator[int] = field(default_factory=count)
    calls: int = _FIRST_CALLS

    def checks(self, customers: int) -> float:
        """Checks a second of the quota store."""
        names = [f"{_ONE}-{number}" for number in range(customers)]
        with self.accounts(names) as prefix:
            return self.round_of(
                Job(
                    kind="quota", url=self.url, prefix=prefix, customers=names,
                    seconds=self.seconds,
                )
            )  # fmt: skip

    def evalsha(self) -> float:
        """Calls a second of the script alone."""
        name = f"{_ONE}-0"
        calls = self.calls
        with self.accounts([name]) as prefix, redis.Redis.from_url(self.url) as client:
            keys, task = RedisKeys(prefix), "__rand_int__"
            declared = [
                keys.account(name),
                keys.hold(name, task),
                keys.open(shard_of(name)),
                keys.customer_holds(name),
            ]
            command = evalsha.reserve_command(
                client, declared, [name, task, SKU, PRICE_MICROCREDITS, _TTL_MS]
            )
            found = evalsha.rate(
                client, self.url, prefix, command, clients=CLIENTS, depth=1, calls=calls
            )
            account = quota_on(client, prefix).account(name)
            held = account.held_microcredits // PRICE_MICROCREDITS if account else 0
            if held < calls * _COLLIDING:
                raise BenchError(f"EVALSHA of {calls} reserves held {held}")
        self.calls = max(_FIRST_CALLS, int(found * self.seconds))
        return found

    def rival(self, kind: str) -> float:
        """Checks a second of something else."""
        url = self.url if kind == "limits" else self.container.database_url
        prefix = f"{self.container.settings.redis_prefix}.limits"
        job = Job(kind=kind, url=url, prefix=prefix, customers=[_ONE], seconds=self.seconds)
        return self.round_of(job)

    @property
    def url(self) -> str:
        return self.container.endpoints.redis_url

    @contextmanager
    def accounts(self, names: list[str]) -> Iterator[str]:
        """Accounts under a prefix of their own."""
        prefix = f"{self.container.settings.redis_prefix}.{next(self.numbers)}"
        month = month_of(self.container.clock.now())
        quota = quota_on(self.container.redis, prefix)
        for name in names:
            state = AccountState(
                customer=name, epoch=1, version=1, suspended=False,
                granted_microcredits=_GRANTED, settled_microcredits=0, late_microcredits=0,
                period_start_ms=to_ms(month.start), period_end_ms=to_ms(month.end),
            )  # fmt: skip
            if quota.load(state) is not LoadOutcome.LOADED:
                raise BenchError(f"the account of {name} was not loaded")
        try:
            yield prefix
        finally:
            delete_keys(self.url, [f"{prefix}:*"])


def run(container: Container, effort: Effort, say: Say) -> tuple[list[Figure], list[str]]:
    """Measure; the figures, and what to know of them."""
    rounds: dict[str, list[float]] = {}
    with Crowd() as clients:
        group = _Crowd(container, clients.round, effort.crowd_seconds)
        if effort.rivals:
            rivals.prepare(container.engine, _ONE)
        lanes = _lanes(group, rivals=effort.rivals)
        for name, lane in lanes.items():
            say(f"trying {name}")
            lane()
        for number in range(effort.repetitions):
            for name, lane in lanes.items():
                say(f"repetition {number + 1} of {effort.repetitions}: {name}")
                rounds.setdefault(name, []).append(lane())
    program = evalsha.program_for(container.redis, group.url)
    told = (program or "EVALSHA").rpartition("/")[2]
    notes = [_NOTE.format(against=told), *([_RIVALS_NOTE] if effort.rivals else [])]
    return _figures(rounds), notes if program else [*notes, _DRIVER_NOTE]


def _lanes(group: _Crowd, *, rivals: bool) -> dict[str, Callable[[], float]]:
    """What is measured, in an order that has each beside its baseline."""
    lanes: dict[str, Callable[[], float]] = {
        "one by one": lambda: group.checks(1),
        "EVALSHA": group.evalsha,
    }
    if rivals:
        lanes |= {
            "one by one, many": lambda: group.checks(MANY),
            "naive": lambda: group.rival("naive"),
            "credit-ledger": lambda: group.rival("credit-ledger"),
            "limits": lambda: group.rival("limits"),
        }
    return lanes


_SHOWN: Final = (
    ("one by one", "checks one by one, one customer", "EVALSHA"),
    ("one by one, many", f"checks one by one, {MANY:,} customers", "EVALSHA"),
    ("one by one", "the same, beside a PostgreSQL row", "naive"),
    ("one by one", "the same, beside credit-ledger", "credit-ledger"),
    ("one by one", "the same, beside limits", "limits"),
)
_AGAINST: Final = {
    "EVALSHA": "EVALSHA, one by one",
    "naive": "naive UPDATE of a row",
    "credit-ledger": "credit-ledger",
    "limits": "limits",
}


def _figures(rounds: dict[str, list[float]]) -> list[Figure]:
    return [
        compare(
            "quota", name, "checks/s", _AGAINST[base],
            list(zip(rounds[lane], rounds[base], strict=True)),
        )
        for lane, name, base in _SHOWN
        if lane in rounds and base in rounds
    ]  # fmt: skip
