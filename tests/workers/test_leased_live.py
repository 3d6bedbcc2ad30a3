"""Leased SKUs with real workers, which are killed at the worst moments."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from live import Live
from support import add_customer, eventually

pytestmark = [pytest.mark.worker, pytest.mark.rabbitmq]

CREDIT = 1_000_000
TASKS = 60


def submit(live: Live, count: int = TASKS, customer: str = "acme") -> list[Any]:
    task = live.task("leased").bill_to(customer)
    return [task.delay(str(number)) for number in range(count)]


def leases_of(live: Live) -> list[str]:
    return [
        hold.task_id
        for hold in live.container.quota.open_holds("acme")
        if hold.task_id.startswith("lease:")
    ]


def await_settled(live: Live, count: int) -> None:
    eventually(
        lambda: live.settled_and_held()[0] == count * CREDIT,
        timeout=30,
        message=f"{count} runs are settled",
    )


def assert_every_task_is_billed_once(live: Live, results: list[Any]) -> None:
    live.drain()
    charged = Counter(row.task_id for row in live.events() if row.amount_microcredits)
    assert charged == Counter(result.id for result in results)
    assert live.settled_and_held() == (len(results) * CREDIT, 0)
    assert live.container.quota.open_holds() == []
    assert live.discrepancies() == []
    assert list((live.settings.spool_dir / "slips").glob("*.slips")) == []


def test_leased_tasks_are_billed_once_and_hardly_any_asks_redis(live: Live):
    with live.worker():
        results = submit(live)
        live.await_done(results)
        await_settled(live, TASKS)
        by_themselves = [
            result for result in results if live.container.quota.hold("acme", result.id) is not None
        ]
        assert len(by_themselves) < TASKS // 4, "the others were admitted from leases"
    # A warm shutdown gives everything back, before any lease expires.
    assert_every_task_is_billed_once(live, results)


@pytest.mark.parametrize(
    "point",
    [
        "lease.before=1",
        "lease.after=1",
        "lease.admitted=9",
        "body.after=9",
        "slip.before=9",
        "flush.before=9",
        "settle.after=9",
        "flush.after=1",
    ],
)
def test_a_child_killed_anywhere_leaves_no_task_unbilled_nor_billed_twice(live: Live, point: str):
    with live.worker(WEIGHBRIDGE_FAILPOINTS=point):
        results = submit(live)
        live.await_done(results)
        # A flush follows the results it tells of: the last task may be done before it.
        eventually(
            lambda: live.reached() == [point.partition("=")[0]], message="a child is killed there"
        )
        await_settled(live, TASKS)
    assert_every_task_is_billed_once(live, results)


@pytest.mark.parametrize("point", ["flush.before=9!", "flush.after=1!"])
def test_a_worker_killed_with_its_children_leaves_it_to_the_next_one(live: Live, point: str):
    worker = live.start_worker(WEIGHBRIDGE_FAILPOINTS=point)
    results = submit(live)
    eventually(live.reached, timeout=60, message="the worker is killed")
    worker.process.wait(60)
    # Of what was told just now the slips are still there: the next one must not charge it again.
    assert list((live.settings.spool_dir / "slips").glob("*.slips"))
    if point.startswith("flush.before"):
        assert live.settled_and_held()[0] < TASKS * CREDIT
    with live.worker():
        live.await_done(results)
        await_settled(live, TASKS)
    assert_every_task_is_billed_once(live, results)


def test_what_a_killed_worker_left_is_settled_by_a_relay_alone(live: Live):
    worker = live.start_worker(WEIGHBRIDGE_FAILPOINTS="flush.before=9!")
    submit(live)
    eventually(live.reached, timeout=60, message="the worker is killed")
    worker.process.wait(60)
    slips = live.settings.spool_dir / "slips"
    assert list(slips.glob("*.slips"))
    before = live.settled_and_held()[0]
    relay = live.container.relay()

    def found() -> bool:
        relay.run_once()
        return not list(slips.glob("*.slips"))

    eventually(found, timeout=60, message="the slips are settled")
    assert live.settled_and_held()[0] > before
    assert leases_of(live) == []


def test_a_child_killed_when_it_has_given_back_leaves_no_lease(live: Live):
    with live.worker(WEIGHBRIDGE_FAILPOINTS="lease.returned=1"):
        results = submit(live)
        live.await_done(results)
        eventually(live.reached, timeout=30, message="a child is killed")
        await_settled(live, TASKS)
        # The answer was lost with the child; the relay of the node gives back what it had.
        eventually(lambda: not leases_of(live), timeout=60, message="no lease is left")
    assert_every_task_is_billed_once(live, results)


@pytest.mark.parametrize("point", ["left.before_settle", "left.after_settle", "left.after_release"])
def test_a_relay_killed_settling_what_was_left_leaves_it_to_the_next_one(live: Live, point: str):
    worker = live.start_worker(WEIGHBRIDGE_FAILPOINTS="flush.before=9!")
    results = submit(live)
    eventually(live.reached, timeout=60, message="the worker is killed")
    worker.process.wait(60)
    relay = ("-m", "billing.cli", "relay")
    with live.process(*relay, WEIGHBRIDGE_FAILPOINTS=f"{point}=1") as process:
        process.wait(30)
    assert live.reached() == ["flush.before", point]
    assert list((live.settings.spool_dir / "slips").glob("*.slips"))
    with live.worker():
        live.await_done(results)
        await_settled(live, TASKS)
    assert_every_task_is_billed_once(live, results)


@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_leases_work_in_every_pool(live: Live, pool: str):
    with live.worker(pool=pool, concurrency=4):
        results = submit(live)
        live.await_done(results)
        await_settled(live, TASKS)
    assert_every_task_is_billed_once(live, results)


def test_credits_run_out_exactly_whoever_holds_leases(live: Live):
    add_customer(live.engine, "tight", credits=200)
    with live.worker(concurrency=3):
        # The last ones are admitted one by one; what others have leased and not used comes back.
        results = submit(live, 230, customer="tight")
        live.await_done(results, timeout=150)
    live.drain()
    outcomes = Counter(row.outcome for row in live.events())
    assert outcomes == {"succeeded": 200, "denied": 30}
    assert live.settled_and_held("tight") == (200 * CREDIT, 0)
    assert live.discrepancies() == []
