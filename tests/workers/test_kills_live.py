"""SIGKILL at each step of a task's way, in real processes; afterwards every task is billed once.

What may die: the child that runs the task, the worker with all its children, the relay (the
worker's main process), the consumer. Where: at the fail points of ``billing.core.failpoints``,
armed in the environment of the process that is to die.
"""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from typing import Any

import pytest
from live import Live
from support import eventually

pytestmark = [pytest.mark.worker, pytest.mark.rabbitmq]

CREDIT = 1_000_000
PAGES = 24
MEASURED = 6
ON_THE_WAY_OF_A_TASK = ["hold.before", "hold.after", "body.after", "settle.after"]
AFTER_THE_BODY = {"body.after", "settle.after"}


def submit(live: Live) -> list[Any]:
    """Thirty tasks of two customers: pages at one credit, and some that measure four."""
    payers = ("acme", "globex")
    tasks = [live.task("page").apply_async((str(n),), customer=payers[n % 2]) for n in range(PAGES)]
    tasks += [live.task("pages").apply_async((4,), customer=payers[n % 2]) for n in range(MEASURED)]
    return tasks


def assert_every_task_is_billed_once(live: Live, tasks: list[Any]) -> None:
    for customer in ("acme", "globex"):
        live.await_idle(customer)
    live.drain()
    assert [task.state for task in tasks] == ["SUCCESS"] * len(tasks)
    billed = Counter(row.task_id for row in live.events() if row.outcome == "succeeded")
    assert billed == Counter(task.id for task in tasks)
    spent = (PAGES + 4 * MEASURED) // 2 * CREDIT
    assert live.settled_and_held("acme") == (spent, 0)
    assert live.settled_and_held("globex") == (spent, 0)
    assert live.container.quota.open_holds() == []
    assert live.discrepancies() == []


def runs_beyond_the_first(live: Live) -> int:
    """How many bodies ran that had run before."""
    ran = Counter(line.split()[1] for line in live.trace())
    return ran.total() - len(ran)


def await_death(process: subprocess.Popen[bytes]) -> None:
    eventually(lambda: process.poll() is not None, timeout=40, message="the process died")
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("point", ON_THE_WAY_OF_A_TASK)
def test_a_child_killed_on_the_way_of_a_task_costs_nothing_twice(live: Live, point: str):
    with live.worker(WEIGHBRIDGE_FAILPOINTS=f"{point}=4") as worker:
        tasks = submit(live)
        live.await_done(tasks)
    assert live.reached() == [point], worker.text[-3000:]
    assert "WorkerLostError" in worker.text
    # The task whose child died came back; its body ran again where it had run already.
    assert runs_beyond_the_first(live) == (point in AFTER_THE_BODY)
    assert_every_task_is_billed_once(live, tasks)


@pytest.mark.parametrize("point", ON_THE_WAY_OF_A_TASK)
def test_a_whole_worker_killed_on_the_way_of_a_task_costs_nothing_twice(live: Live, point: str):
    with live.worker(WEIGHBRIDGE_FAILPOINTS=f"{point}=4!") as worker:
        tasks = submit(live)
        await_death(worker.process)
    assert live.reached() == [point]
    assert not all(task.ready() for task in tasks)
    with live.worker():
        live.await_done(tasks)
    assert runs_beyond_the_first(live) >= (point in AFTER_THE_BODY)
    assert_every_task_is_billed_once(live, tasks)


@pytest.mark.parametrize(
    "point", ["relay.before_publish", "relay.after_publish", "relay.after_confirm"]
)
def test_a_relay_killed_within_a_batch_loses_and_doubles_nothing(live: Live, point: str):
    # The relay is a thread of the worker's main process, which dies with it; its children go on
    # with the tasks they have, while the broker gives the same tasks to the next worker.
    with live.worker(WEIGHBRIDGE_FAILPOINTS=f"{point}=1") as worker:
        tasks = submit(live)
        await_death(worker.process)
        assert live.reached() == [point]
        with live.worker():
            live.await_done(tasks)
    assert_every_task_is_billed_once(live, tasks)


@pytest.mark.parametrize(
    "point", ["consumer.before_insert", "consumer.before_commit", "consumer.after_commit"]
)
def test_a_consumer_killed_within_a_batch_logs_every_event_once(live: Live, point: str):
    consumer = ("-m", "billing.cli", "consumer")
    with live.worker():
        with live.process(
            *consumer, WEIGHBRIDGE_FAILPOINTS=f"{point}=2", WEIGHBRIDGE_CONSUMER_BATCH="5"
        ) as first:
            tasks = submit(live)
            await_death(first)
        logged = len(live.events())
        assert live.reached() == [point]
        assert 0 < logged < len(tasks)
        with live.process(*consumer):
            live.await_done(tasks)
            eventually(lambda: len(live.events()) == len(tasks), timeout=30)
    assert_every_task_is_billed_once(live, tasks)
