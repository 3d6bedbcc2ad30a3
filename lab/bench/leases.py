"""Suite leases: what a task of a leased SKU costs, beside one of an exact SKU.

One process, one customer. First the decision alone: a lease's credits are taken and given back, the
store is asked again whenever a lease is used up or over. Then a task's whole way but its body: it
is admitted, its event is fsynced to the disk, and a thread settles batches of them in Redis, which
puts the events into the outbox. What is left to settle when the last task ended is counted in.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import Final

from billing.container import Container
from billing.core.admission import TaskFacts
from lab.bench.effort import Effort, Outcome
from lab.bench.errors import BenchError
from lab.bench.events import LEASED_SKU, PRICE_MICROCREDITS, SKU, add_customers
from lab.bench.ground import Ground, Say
from lab.bench.report import Goal, compare

NAME: Final = "leases"
_DECISIONS_PER_CALL: Final = 100
"""Decisions from a lease for each call to Redis that the baseline makes."""
_THREADS: Final = 8
_TASKS_PER_CALL: Final = 2
_GOAL: Final = Goal(value_at_least=200_000)


def run(ground: Ground, effort: Effort, say: Say) -> Outcome:
    """Measure.

    Raises:
        BenchError: A task was refused, or the books do not agree.
    """
    container = ground.container(ground.settings(NAME))
    (customer,) = add_customers(container, NAME, 1)
    bench = _Bench(container, customer)
    bench.tasks(SKU, 50, 1)
    bench.tasks(LEASED_SKU, 50, 1)
    decisions, alone, together = [], [], []
    calls = effort.quota_calls
    for number in range(effort.repetitions):
        say(f"repetition {number + 1} of {effort.repetitions}")
        exact = bench.exact_decisions(calls)
        decisions.append((bench.leased_decisions(calls * _DECISIONS_PER_CALL), exact))
        count = calls // _TASKS_PER_CALL
        exact = bench.tasks(SKU, count, 1)
        alone.append((bench.tasks(LEASED_SKU, count, 1), exact))
        exact = bench.tasks(SKU, count, _THREADS)
        together.append((bench.tasks(LEASED_SKU, count, _THREADS), exact))
    bench.check_books()
    return Outcome(
        [
            compare(NAME, "admissions", "tasks/s", "reserve in Redis", decisions, _GOAL),
            compare(NAME, "whole tasks, one thread", "tasks/s", "the same, exact", alone),
            compare(
                NAME, f"whole tasks, {_THREADS} threads", "tasks/s", "the same, exact", together
            ),
        ]
    )


class _Bench:
    """One process's meter, and what it was given to do."""

    def __init__(self, container: Container, customer: str) -> None:
        self._system = container
        self._customer = customer
        self._done = 0

    def leased_decisions(self, count: int) -> float:
        """Decisions a second; each run ends without a word, so its credits can be taken again."""
        leases, customer = self._system.leases, self._customer
        # The first task in a while is left to Redis.
        leases.admit(customer, LEASED_SKU, PRICE_MICROCREDITS)
        began = time.perf_counter()
        for _ in range(count):
            ticket = leases.admit(customer, LEASED_SKU, PRICE_MICROCREDITS)
            if ticket is None:
                raise BenchError("a decision was left to Redis, although credits abound")
            leases.end(ticket, ())
        return count / (time.perf_counter() - began)

    def exact_decisions(self, count: int) -> float:
        """Reserves a second, of tasks that are settled afterwards, untimed."""
        meter, clock = self._system.meter, self._system.clock
        admissions = []
        began = time.perf_counter()
        for _ in range(count):
            facts = TaskFacts(
                task_id=str(uuid.uuid4()), customer=self._customer, metered_at=clock.now()
            )
            admissions.append(meter.admit(facts, SKU, None))
        rate = count / (time.perf_counter() - began)
        for admission in admissions:
            meter.settle(admission, meter.recorder(admission.sku))
        self._done += count
        return rate

    def tasks(self, sku: str, count: int, threads: int) -> float:
        """Tasks a second, all the way into the outbox."""
        failures: list[BaseException] = []
        work = [
            threading.Thread(target=self._some, args=(sku, count // threads, failures))
            for _ in range(threads)
        ]
        began = time.perf_counter()
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        while self._system.leases.flush():
            pass
        rate = count // threads * threads / (time.perf_counter() - began)
        if failures:
            raise BenchError(f"a task failed: {failures[0]!r}")
        self._done += count // threads * threads
        return rate

    def _some(self, sku: str, count: int, failures: list[BaseException]) -> None:
        meter, clock = self._system.meter, self._system.clock
        try:
            for _ in range(count):
                task_id = str(uuid.uuid4())
                facts = TaskFacts(
                    task_id=task_id,
                    customer=self._customer,
                    metered_at=clock.now(),
                    task_name="benchmarks.capture",
                    root_id=task_id,
                    worker="bench@localhost",
                )
                admission = meter.admit(facts, sku, None)
                if not admission.admitted:
                    raise BenchError(f"refused: {admission.reason}")  # noqa: TRY301 - told by tasks
                meter.settle(admission, meter.recorder(admission.sku))
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            failures.append(error)

    def check_books(self) -> None:
        """See that every task was settled, and that nothing stays held.

        Raises:
            BenchError: The figures would be of something else.
        """
        self._system.end_leases()
        account = self._system.quota.account(self._customer)
        expected = (self._done * PRICE_MICROCREDITS, 0)
        found = account and (account.settled_microcredits, account.held_microcredits)
        if found != expected:
            raise BenchError(f"settled and held are {found}, not {expected}")
