from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from billing.core.clock import ManualClock
from lab.demo import work
from lab.demo.errors import DemoError
from lab.demo.interrupts import Interrupts
from lab.demo.scenario import Batch, Way, capture
from lab.demo.submission import Submitted, Ticket
from lab.demo.work import Work


class Workshop:
    """Stands for servers and processes: every submitted task has a result and a line at once."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.submitted: list[Batch] = []
        self.stored: dict[str, dict[str, Any]] = {}
        self.logged = 0
        self.waiting = 0
        self.holds: list[str] = []
        self.shown: list[dict[str, Any]] = []
        self.checks = 0
        self.finishes: Callable[[str], bool] = lambda _task: True
        self.outbox = SimpleNamespace(length=lambda: self.waiting)
        self.quota = SimpleNamespace(open_holds=lambda: self.holds)

    # -- the result backend

    def get_key_for_task(self, task_id: str) -> str:
        return task_id

    def mget(self, keys: list[str]) -> list[Any]:
        return [self.stored.get(key) for key in keys]

    def decode_result(self, payload: dict[str, Any]) -> dict[str, Any]:
        return payload

    # -- the processes and the bars

    def check(self) -> None:
        self.checks += 1

    def tail(self, name: str) -> str:
        return f"{name}.log ends with: nothing"

    def show(self, **figures: Any) -> None:
        self.shown.append(figures)

    # -- submission

    def submit(self, _app: object, batch: Batch, _clock: object) -> Submitted:
        self.submitted.append(batch)
        tickets = [Ticket(call.urls[0], batch.customer, call) for call in batch.calls]
        for ticket in tickets:
            if self.finishes(ticket.task_id):
                self.stored[ticket.task_id] = {"status": "SUCCESS", "result": None}
                self.logged += 1
        return Submitted(tickets)


@pytest.fixture
def workshop(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    shop = Workshop(clock)
    monkeypatch.setattr(work, "submit", shop.submit)
    monkeypatch.setattr(work, "events_logged", lambda _system: shop.logged)
    monkeypatch.setattr(work, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(work, "_STALL_SECONDS", 0.2)
    monkeypatch.setattr(work, "_DRAIN_SECONDS", 0.1)
    return shop


def work_in(shop: Workshop) -> Work:
    app: Any = SimpleNamespace(backend=shop)
    anything: Any = shop
    return Work(app, anything, anything, anything)


def batch(name: str, count: int, wave: int = 1) -> Batch:
    calls = tuple(capture(f"http://site/{name}-{wave}-{number}") for number in range(count))
    return Batch(customer=name, way=Way.BILL_TO, calls=calls, wave=wave)


def test_everything_is_submitted_and_its_results_collected(workshop: Workshop):
    job = work_in(workshop)
    job.run([batch("atlas", 30), batch("corvus", 5)])
    assert job.results.pending == 0
    assert {name: ends.total() for name, ends in job.results.by_customer().items()} == {
        "atlas": 30,
        "corvus": 5,
    }


def test_a_wave_is_submitted_when_the_one_before_it_is_done(workshop: Workshop):
    job = work_in(workshop)
    done_before: list[int] = []
    plain = workshop.submit

    def noting(app: object, submitted: Batch, clock: object) -> Submitted:
        if submitted.wave == 2:
            done_before.append(len(job.results.ends))
        return plain(app, submitted, clock)

    work.submit = noting  # type: ignore[assignment]  # the fixture puts the real one back
    job.run([batch("corvus", 1, wave=2), batch("corvus", 7)])
    assert done_before == [7]
    assert Counter(each.wave for each in workshop.submitted) == {1: 7, 2: 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_batch_goes_out_whole_before_an_interrupt_is_heard(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    plain = workshop.submit

    def interrupted(app: object, submitted: Batch, clock: object) -> Submitted:
        signal.raise_signal(number)
        return plain(app, submitted, clock)

    monkeypatch.setattr(work, "submit", interrupted)
    job = work_in(workshop)
    with Interrupts().handled(), pytest.raises(KeyboardInterrupt):
        job.run([batch("atlas", 3)])
    assert len(workshop.submitted) == 1
    assert len(job.results.tickets) == len(workshop.submitted[0].calls)


def test_the_processes_are_watched_meanwhile(workshop: Workshop):
    def dead() -> None:
        raise DemoError("the worker has ended")

    workshop.check = dead  # type: ignore[method-assign]  # a process that dies
    with pytest.raises(DemoError, match="the worker has ended"):
        work_in(workshop).run([batch("atlas", 3)])


def test_a_run_in_which_nothing_happens_any_more_is_given_up(workshop: Workshop):
    workshop.finishes = lambda task: not task.endswith("-2")
    with pytest.raises(DemoError) as error:
        work_in(workshop).run([batch("atlas", 3)])
    told = str(error.value)
    assert "1 tasks have no result, 2 events are in the log" in told
    assert "worker.log ends with" in told
    assert "consumer.log ends with" in told


@pytest.mark.parametrize("left", ["outbox", "hold", "log"])
def test_what_never_drains_is_left_to_the_checks_after_a_while(workshop: Workshop, left: str):
    if left == "outbox":
        workshop.waiting = 1
    elif left == "hold":
        workshop.holds = ["t1"]
    else:
        workshop.logged = -1
    job = work_in(workshop)
    job.run([batch("atlas", 2)])
    assert job.results.pending == 0


def test_the_bars_are_shown_the_newest_figures(workshop: Workshop):
    work_in(workshop).run([batch("atlas", 4)])
    last = workshop.shown[-1]
    assert (last["submitted"], last["logged"]) == (4, 4)
    assert last["by_customer"]["atlas"].total() == 4
    assert workshop.checks >= len(workshop.shown)
