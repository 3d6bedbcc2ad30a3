"""Suite quota: how long a reserve and a settle take, against a PING on the same connection.

One call after another from one client, as a worker's child makes them. A settle also writes the
usage event into the outbox; encoding it is part of the time.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Final, TypeVar

from billing.container import Container
from billing.core.reservation import HoldRequest, LoadOutcome, ReserveOutcome, SettleOutcome
from lab.bench import crowds
from lab.bench.effort import Effort, Outcome
from lab.bench.errors import BenchError
from lab.bench.events import PRICE_MICROCREDITS, SKU, add_customers, make_event
from lab.bench.ground import Ground, Say
from lab.bench.report import Goal, compare, percentile

NAME: Final = "quota"
_CUSTOMERS: Final = 8
_PERCENTILES: Final = (50, 99)
_TTL_SECONDS: Final = 600
_GOALS: Final = {("reserve", 50): Goal(ratio_at_most=2)}

T = TypeVar("T")

Times = dict[str, list[float]]
"""Milliseconds of each call, by its name."""


def run(ground: Ground, effort: Effort, say: Say) -> Outcome:
    """Measure.

    Raises:
        BenchError: The quota store answered something else than it must.
    """
    container = ground.container(ground.settings(NAME))
    customers = add_customers(container, NAME, _CUSTOMERS)
    for customer in customers:
        if container.account_loader.rebuild(customer) is not LoadOutcome.LOADED:
            raise BenchError(f"the account of {customer} was not loaded")
    _repetition(container, customers, effort.quota_calls // 4)
    repetitions = []
    for number in range(effort.repetitions):
        say(f"repetition {number + 1} of {effort.repetitions}")
        repetitions.append(_repetition(container, customers, effort.quota_calls))
    figures, notes = crowds.run(container, effort, say)
    return Outcome(
        [
            compare(
                NAME,
                f"{verb} p{percent}",
                "ms",
                f"PING p{percent}",
                [
                    (percentile(times[verb], percent), percentile(times["PING"], percent))
                    for times in repetitions
                ],
                _GOALS.get((verb, percent)),
            )
            for verb in ("reserve", "settle")
            for percent in _PERCENTILES
        ]
        + figures,
        notes,
    )


def _repetition(container: Container, customers: list[str], calls: int) -> Times:
    """PING, reserve, PING, settle, and again: so each is measured in the same minute."""
    times: Times = {"PING": [], "reserve": [], "settle": []}
    for number in range(calls):
        customer = customers[number % len(customers)]
        task_id = str(uuid.uuid4())
        request = HoldRequest(
            task_id=task_id,
            customer=customer,
            sku=SKU,
            amount_microcredits=PRICE_MICROCREDITS,
            ttl_seconds=_TTL_SECONDS,
        )
        event = make_event(customer, container.clock.now(), task_id)
        _timed(times["PING"], container.redis.ping)
        held = _timed(times["reserve"], partial(container.quota.reserve, request))
        _timed(times["PING"], container.redis.ping)
        done = _timed(
            times["settle"],
            partial(container.quota.settle, customer, task_id, [event]),
        )
        if held.outcome is not ReserveOutcome.HELD or done.outcome is not SettleOutcome.SETTLED:
            raise BenchError(f"{held.outcome} and {done.outcome} where held and settled are due")
    return times


def _timed(into: list[float], call: Callable[[], T]) -> T:
    began = perf_counter()
    answer = call()
    into.append((perf_counter() - began) * 1000)
    return answer
