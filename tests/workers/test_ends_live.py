"""How a metered task ends, in real workers: every end of a task ends its hold in the right way."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import TimeLimitExceeded, WorkerLostError
from live import Live
from support import eventually

from workers.errors import QuotaExceeded

pytestmark = [pytest.mark.worker, pytest.mark.rabbitmq]

CREDIT = 1_000_000


def bill(live: Live, name: str, *args: Any, customer: str = "acme", **options: Any) -> Any:
    return live.task(name).apply_async(args, customer=customer, **options)


def test_every_ordinary_end_in_prefork(live: Live):
    with live.worker() as worker:
        assert bill(live, "page", "x").get(timeout=20) == "x"
        assert bill(live, "pages", 4).get(timeout=20) == 4
        assert bill(live, "retry").get(timeout=20) == 1
        with pytest.raises(ValueError, match="no"):
            bill(live, "fail").get(timeout=20)
        bill(live, "ignore")
        bill(live, "reject")
        assert bill(live, "replace").get(timeout=20) == 4
        live.await_idle()
        live.drain()
    charged = [line for line in live.lines() if line[1] == "succeeded"]
    assert sorted(charged) == sorted(
        [("page", "succeeded", CREDIT), ("pages", "succeeded", 4 * CREDIT)] * 2
    )
    failed = sorted(row.reason for row in live.events() if row.outcome == "failed")
    assert failed == ["exception", "ignored", "rejected"], worker.text[-2000:]
    assert live.settled_and_held() == (10 * CREDIT, 0)
    assert live.discrepancies() == []


def test_exits_and_lost_children_give_their_holds_back(live: Live):
    with live.worker() as worker:
        exited, lost, again = (bill(live, name) for name in ("exit", "lost", "lost_once"))
        with pytest.raises(WorkerLostError):
            lost.get(timeout=40)
        assert again.get(timeout=40) == "back", worker.text[-3000:]
        eventually(lambda: exited.state in {"FAILURE", "RETRY"}, timeout=30)
        # sys.exit looks like a lost child to the main process, which retries it; each attempt ends.
        eventually(lambda: exited.state == "FAILURE", timeout=60)
        live.await_idle(timeout=40)
        live.drain()
    assert [line for line in live.lines() if line[2]] == [("page", "succeeded", CREDIT)]
    reasons = [row.reason for row in live.events() if row.outcome == "failed"]
    assert "worker_lost" in reasons
    assert "exited" in reasons
    assert live.settled_and_held() == (CREDIT, 0)
    assert live.discrepancies() == []


def test_time_limits_soft_hard_and_in_c_code(live: Live):
    with live.worker(concurrency=3) as worker:
        # Long enough for a child that is slow to begin: a run that never began has no event.
        soft = bill(live, "sleep", 60.0, soft_time_limit=4, time_limit=20)
        hard = bill(live, "sleep", 60.0, time_limit=4)
        in_c = bill(live, "burn", 40_000_000, time_limit=4)
        with pytest.raises(Exception, match="SoftTimeLimitExceeded"):
            soft.get(timeout=30)
        with pytest.raises(TimeLimitExceeded):
            hard.get(timeout=30)
        with pytest.raises(TimeLimitExceeded):
            in_c.get(timeout=30)
        live.await_idle()
        live.drain()
    reasons = sorted(row.reason for row in live.events())
    assert reasons[-1] == "soft_time_limit", worker.text[-3000:]
    assert set(reasons[:2]) <= {"hard_time_limit", "exited"}
    assert "hard_time_limit" in reasons
    assert [row.amount_microcredits for row in live.events()] == [0, 0, 0]
    assert not live.trace("ended")
    assert live.discrepancies() == []


def test_revoked_while_running_and_before(live: Live):
    with live.worker(concurrency=1) as worker:
        running = bill(live, "sleep", 30.0)
        eventually(lambda: live.trace(running.id), timeout=60)
        waiting = bill(live, "page", "never")
        live.app.control.revoke(waiting.id)
        live.app.control.revoke(running.id, terminate=True, signal="SIGKILL")
        eventually(lambda: running.state == "REVOKED", timeout=60)
        eventually(lambda: waiting.state == "REVOKED", timeout=60)
        live.await_idle()
        assert bill(live, "page", "after").get(timeout=30) == "after", worker.text[-2000:]
        live.drain()
    assert not live.trace("never")
    assert [row.reason for row in live.events() if row.outcome == "failed"] == ["revoked"]
    assert live.settled_and_held() == (CREDIT, 0)
    assert live.discrepancies() == []


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent"])
def test_other_pools_hold_settle_and_deny(live: Live, pool: str):
    live.container.customers.set_budget("globex", "*", 2 * CREDIT)
    with live.worker(pool=pool):
        done = [bill(live, "page", str(n)) for n in range(5)]
        assert [result.get(timeout=30) for result in done] == ["0", "1", "2", "3", "4"]
        with pytest.raises(ValueError, match="no"):
            bill(live, "fail").get(timeout=30)
        tight = [bill(live, "page", "t", customer="globex") for _ in range(4)]
        outcomes = []
        for result in tight:
            try:
                outcomes.append(result.get(timeout=30))
            except QuotaExceeded as denied:
                outcomes.append(denied.reason)
        assert sorted(outcomes) == ["budget_exceeded", "budget_exceeded", "t", "t"]
        live.await_idle()
        live.drain()
    assert live.settled_and_held() == (5 * CREDIT, 0)
    assert live.settled_and_held("globex") == (2 * CREDIT, 0)
    assert live.discrepancies() == []


def test_a_deferred_task_comes_back_and_runs_when_credits_arrive(live: Live):
    live.container.customers.add("poor", "Poor")
    with live.worker() as worker:
        result = bill(live, "deferred", customer="poor")
        eventually(lambda: "Retry in" in worker.text, timeout=60, message="deferred once")
        assert not live.trace()
        live.container.grants.grant("poor", 5 * CREDIT, "top-up")
        live.container.sync("poor")
        assert result.get(timeout=30) == "ran"
        live.await_idle("poor")
        live.drain()
    assert sorted(live.lines()) == [
        ("deferred", "succeeded", CREDIT),
        ("denied:deferred:insufficient_credits", "denied", 0),
    ]
    assert len({row.task_id for row in live.events()}) == 1
    assert live.discrepancies() == []
