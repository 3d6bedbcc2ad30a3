"""The leaseholder: when it asks, what it admits, and that nothing it acknowledged is lost."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from leased_world import WINDOW_SECONDS, LeasedWorld, leased
from meter_fakes import CREDIT, HOLD_TTL_SECONDS, Died, make_facts, make_measured
from support import eventually

from billing.core.credit_lease import FIRST_TASKS
from billing.core.errors import DenialReason, QuotaUnavailable
from billing.core.reservation import ReleaseCause, SettleOutcome
from billing.core.sku import AdmissionPolicy, FailurePolicy, UnavailablePolicy
from billing.core.usage_event import Outcome
from billing.metering.lease_manager import LeaseManager


@pytest.fixture
def world(tmp_path: Path) -> LeasedWorld:
    return LeasedWorld(tmp_path)


@pytest.fixture
def warm(world: LeasedWorld) -> LeasedWorld:
    """One task was billed by itself a moment ago."""
    world.warm_up()
    return world


# -- when a lease is asked for ---------------------------------------------------------------------


def test_the_first_task_in_a_while_is_admitted_by_itself(world: LeasedWorld):
    assert world.bill("t1").from_lease is None
    world.pass_seconds(WINDOW_SECONDS)
    assert world.bill("t2").from_lease is None
    assert world.store.calls == []


def test_the_next_ones_are_admitted_from_one_lease(warm: LeasedWorld):
    admissions = [warm.bill(f"t{n}") for n in range(FIRST_TASKS)]

    assert all(admission.from_lease for admission in admissions)
    assert warm.store.calls == ["lease"]
    assert warm.figures() == (10_000 - 1 - FIRST_TASKS, FIRST_TASKS, 1)
    assert all(admission.held_microcredits == CREDIT for admission in admissions)
    assert {admission.number for admission in admissions} == {1}


def test_a_lease_that_is_used_up_is_asked_for_twice_as_much(warm: LeasedWorld):
    for n in range(3 * FIRST_TASKS):
        warm.bill(f"t{n}")
    assert warm.store.calls == ["lease", "lease"]
    assert warm.account.held_microcredits == 3 * FIRST_TASKS * CREDIT


def test_a_lease_is_asked_for_anew_when_its_time_is_over(warm: LeasedWorld):
    warm.bill("t1")
    warm.pass_seconds(WINDOW_SECONDS)
    warm.bill("t2")
    assert warm.store.calls == ["lease", "lease"]


def test_what_is_scarce_is_admitted_task_by_task(tmp_path: Path):
    world = LeasedWorld(tmp_path, credits=9)
    world.warm_up()
    for n in range(8):
        world.bill(f"t{n}")
    denied = world.admit("one too many")
    assert denied.reason is DenialReason.INSUFFICIENT_CREDITS
    world.leases.flush()
    assert world.figures() == (0, 0, 9)
    # Eight credits are one task's share; what is less is not asked for again at every task.
    assert world.store.calls.count("lease") == 2


def test_a_refusal_says_whether_others_have_leases(warm: LeasedWorld):
    warm.admit("t1")
    warm.memory.reserve(warm.hold_all())
    assert warm.account.leases == 1
    assert warm.admit("t2", may_repeat=True).contended
    warm.books.suspended.add("acme")
    warm.books.grant("acme", 0)
    assert not warm.admit("t3", may_repeat=True).contended, "waiting alone does not help"


def test_a_refusal_without_leases_is_for_good(tmp_path: Path):
    world = LeasedWorld(tmp_path, credits=0)
    assert not world.admit("t1").contended


def test_a_task_that_may_be_a_repeat_is_never_admitted_from_a_lease(warm: LeasedWorld):
    assert warm.admit("t1").from_lease is not None
    assert warm.admit("t2", may_repeat=True).from_lease is None
    assert warm.admit("t3", time_limit_seconds=HOLD_TTL_SECONDS + 1).from_lease is None


def test_other_skus_are_never_admitted_from_a_lease(tmp_path: Path):
    exact = replace(leased("exact"), admission=AdmissionPolicy.EXACT)
    world = LeasedWorld(tmp_path, exact)
    assert all(world.bill(f"t{n}", "exact").from_lease is None for n in range(5))
    assert world.store.calls == []


def test_customers_and_skus_have_leases_of_their_own(tmp_path: Path):
    world = LeasedWorld(tmp_path, leased("a"), leased("b"))
    for number, sku in enumerate("abab"):
        world.bill(f"t{number}", sku)
    assert sorted(hold.sku for hold in world.memory.open_holds()) == ["a", "b"]


# -- what bounds it --------------------------------------------------------------------------------


def test_a_suspension_is_noticed_within_the_window(warm: LeasedWorld):
    warm.bill("t1")
    warm.books.suspended.add("acme")
    warm.books.grant("acme", 0)
    assert warm.bill("t2").from_lease is not None
    warm.pass_seconds(WINDOW_SECONDS)
    assert warm.admit("t3").reason is DenialReason.CUSTOMER_SUSPENDED


def test_a_budget_is_a_ceiling_for_leases_too(tmp_path: Path):
    world = LeasedWorld(tmp_path)
    world.books.budgets["acme"] = {"*": 20 * CREDIT}
    admitted = 0
    for n in range(30):
        admission = world.admit(f"t{n}")
        if admission.admitted:
            world.meter.settle(admission, world.meter.recorder(admission.sku))
            admitted += 1
        else:
            assert admission.reason is DenialReason.BUDGET_EXCEEDED
    assert admitted == 20


def test_an_idle_lease_is_given_back(warm: LeasedWorld):
    warm.bill("t1")
    warm.leases.flush()
    warm.leases.give_back()
    assert warm.account.held_microcredits == (FIRST_TASKS - 1) * CREDIT
    warm.pass_seconds(WINDOW_SECONDS)
    warm.leases.give_back()
    assert warm.figures() == (9_998, 0, 2)
    assert warm.memory.open_holds() == []


def test_an_idle_lease_keeps_what_its_runs_may_cost(warm: LeasedWorld):
    running = warm.admit("slow")
    warm.bill("quick")
    warm.pass_seconds(WINDOW_SECONDS)
    warm.leases.give_back()
    assert warm.account.held_microcredits == 2 * CREDIT
    calls = len(warm.store.calls)
    warm.leases.give_back()
    assert len(warm.store.calls) == calls, "there is nothing new to say"
    warm.meter.settle(running, warm.meter.recorder(running.sku))
    warm.leases.flush()
    warm.leases.give_back()
    assert warm.figures() == (9_997, 0, 3)
    assert warm.memory.open_holds() == []


def test_what_was_admitted_and_never_ran_comes_back(warm: LeasedWorld):
    warm.admit("dropped by Celery")
    gc.collect()
    warm.pass_seconds(WINDOW_SECONDS)
    warm.leases.give_back()
    assert warm.figures() == (9_999, 0, 1)


def test_a_lease_that_expired_under_a_sleeping_process_admits_nothing(warm: LeasedWorld):
    slow = warm.admit("slow")
    warm.pass_seconds(2 * HOLD_TTL_SECONDS)
    warm.memory.expire(100)
    again = warm.bill("t2").from_lease
    assert again is not None
    assert slow.from_lease is not None
    assert again.lease is not slow.from_lease.lease
    warm.meter.settle(slow, warm.meter.recorder(slow.sku))
    warm.leases.flush()
    warm.pass_seconds(WINDOW_SECONDS)
    warm.leases.give_back()
    assert warm.figures() == (9_997, 0, 3)


def test_after_a_loss_of_all_data_another_lease_is_opened(warm: LeasedWorld):
    running = warm.admit("running")
    warm.memory._accounts.clear()
    warm.memory._holds.clear()
    warm.memory._open.clear()
    warm.pass_seconds(WINDOW_SECONDS)
    warm.admit("rebuilds the account")
    warm.pass_seconds(WINDOW_SECONDS - 1)
    warm.pass_seconds(1)
    warm.bill("by itself, as it was scarce a moment ago")
    warm.bill("t2")
    warm.meter.settle(running, warm.meter.recorder(running.sku))
    warm.leases.flush()
    assert warm.billed()["running"] == 1
    assert len({hold.task_id for hold in warm.memory.open_holds()}) <= 2


# -- settling --------------------------------------------------------------------------------------


def test_a_run_is_on_the_disk_before_it_is_acknowledged_and_told_later(warm: LeasedWorld):
    admission = warm.admit("t1")
    settlement = warm.meter.settle(admission, warm.meter.recorder(admission.sku))

    assert settlement.outcome is SettleOutcome.LEASED
    assert "t1" not in warm.billed()
    assert warm.leases.waiting == 1
    warm.kill()
    assert warm.find_left() == 1
    assert warm.billed()["t1"] == 1


def test_a_flush_settles_what_has_gathered_and_writes_the_second_copies(warm: LeasedWorld):
    for n in range(5):
        warm.bill(f"t{n}")
    assert warm.leases.flush() == 5
    assert warm.leases.flush() == 0
    assert warm.billed() == {"warm-up": 1, **{f"t{n}": 1 for n in range(5)}}
    assert warm.journal.events == warm.outbox
    assert warm.figures() == (10_000 - 1 - FIRST_TASKS, FIRST_TASKS - 5, 6)


def test_a_measured_run_is_promised_more_of_the_lease_where_it_needs_more(tmp_path: Path):
    sku = replace(make_measured("crawl", hold=2), admission=AdmissionPolicy.LEASED)
    world = LeasedWorld(tmp_path, sku)
    world.bill("warm-up", "crawl", quantity=1)
    world.bill("t1", "crawl", quantity=9)
    world.bill("t2", "crawl", quantity=0)
    assert world.account.held_microcredits == 2 * FIRST_TASKS * CREDIT
    world.leases.flush()
    assert world.billed() == {"warm-up": 1, "t1": 9, "t2": 0}
    assert world.account.held_microcredits == (2 * FIRST_TASKS - 9) * CREDIT
    assert [event.shortfall_microcredits for event in world.outbox] == [0, 0, 0]


def test_a_run_of_several_skus_is_several_lines(tmp_path: Path):
    world = LeasedWorld(tmp_path, leased("page-capture"), leased("extra", price=2 * CREDIT))
    world.warm_up()
    admission = world.admit("t1")
    recorder = world.meter.recorder(admission.sku)
    recorder.record(sku="extra")
    world.meter.settle(admission, recorder)
    world.leases.flush()
    lines = [(event.line, event.amount_microcredits) for event in world.outbox[1:]]
    assert lines == [("page-capture", CREDIT), ("extra", 2 * CREDIT)]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_settlement_without_an_answer_is_told_again_and_counted_once(
    warm: LeasedWorld, when: str
):
    warm.bill("t1")
    warm.store.fails["settle"] = when
    with pytest.raises(QuotaUnavailable):
        warm.leases.flush()
    assert warm.leases.waiting == 1
    assert warm.leases.flush() == 1
    assert warm.billed()["t1"] == 1
    assert warm.account.settled_microcredits == 2 * CREDIT
    assert [event.task_id for event in warm.journal.events] == ["warm-up", "t1"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lease_without_an_answer_admits_nothing_and_is_asked_for_again(
    warm: LeasedWorld, when: str
):
    warm.store.fails["lease"] = when
    assert warm.admit("t1").reason is DenialReason.QUOTA_UNAVAILABLE
    assert warm.bill("t2").from_lease is not None
    warm.leases.flush()
    warm.pass_seconds(WINDOW_SECONDS)
    warm.leases.give_back()
    assert warm.figures() == (9_998, 0, 2)
    assert warm.memory.open_holds() == []


def test_while_redis_is_away_a_lease_admits_until_its_time_is_over(warm: LeasedWorld):
    warm.bill("t1")
    warm.store.is_down = True
    assert warm.bill("t2").from_lease is not None
    warm.pass_seconds(WINDOW_SECONDS)
    assert warm.admit("t3").reason is DenialReason.QUOTA_UNAVAILABLE
    assert warm.leases.waiting == 2
    warm.store.is_down = False
    assert warm.leases.flush() == 2
    assert warm.billed() == {"warm-up": 1, "t1": 1, "t2": 1}


def test_runs_allowed_without_a_hold_are_told_directly_as_ever(tmp_path: Path):
    sku = leased(unavailable_policy=UnavailablePolicy.ALLOW, allow_limit=1)
    world = LeasedWorld(tmp_path, sku)
    world.warm_up()
    world.store.is_down = True
    allowed = world.bill("t1")
    assert (allowed.degraded, allowed.from_lease) == (True, None)
    world.pass_seconds(WINDOW_SECONDS)


def test_a_full_disk_keeps_the_task_from_being_acknowledged(warm: LeasedWorld, tmp_path: Path):
    warm.bill("t1")
    admission = warm.admit("t2")
    warm.book.directory = tmp_path / "slips" / "nowhere"
    warm.book._processes.get().segment.file.descriptor = -1  # type: ignore[union-attr]  # it has one
    with pytest.raises(OSError, match="slips"):
        warm.meter.settle(admission, warm.meter.recorder(admission.sku))
    assert warm.leases.waiting == 1
    lease = admission.from_lease
    assert lease is not None
    assert (lease.lease.out, lease.lease.pending) == (0, CREDIT), "t1's is pending, t2's is free"


def test_a_lease_that_cannot_be_written_down_is_not_asked_for(world: LeasedWorld, tmp_path: Path):
    world.warm_up()
    (tmp_path / "slips").write_text("a file where the folder should be")
    assert world.bill("t1").from_lease is None
    assert world.store.calls == []


# -- other ends ------------------------------------------------------------------------------------


def test_a_failure_that_costs_nothing_is_told_and_its_credits_are_free(warm: LeasedWorld):
    admission = warm.admit("t1")
    recorder = warm.meter.recorder(admission.sku)
    recorder.record(cost_micros=700)
    warm.meter.fail(admission, recorder, ReleaseCause.EXCEPTION)
    warm.leases.flush()
    event = warm.outbox[-1]
    assert (event.line, event.outcome) == ("failed:page-capture:1", Outcome.FAILED)
    assert (event.amount_microcredits, event.cost_micros) == (0, 700)
    assert warm.account.held_microcredits == FIRST_TASKS * CREDIT


def test_a_failure_that_is_charged_is_settled_as_a_success(tmp_path: Path):
    world = LeasedWorld(tmp_path, leased(failure_policy=FailurePolicy.CHARGE))
    world.warm_up()
    admission = world.admit("t1")
    world.meter.fail(admission, world.meter.recorder(admission.sku), ReleaseCause.EXCEPTION)
    world.leases.flush()
    event = world.outbox[-1]
    assert (event.line, event.outcome) == ("page-capture", Outcome.FAILED)
    assert event.amount_microcredits == CREDIT


@pytest.mark.parametrize("cost", [0, 500])
def test_an_attempt_that_is_retried_gives_back_what_it_held(warm: LeasedWorld, cost: int):
    admission = warm.admit("t1")
    recorder = warm.meter.recorder(admission.sku)
    recorder.record(cost_micros=cost)
    warm.meter.record_attempt(admission, recorder)
    warm.leases.flush()
    lines = [event.line for event in warm.outbox[1:]]
    assert lines == (["retried:page-capture:0"] if cost else [])
    assert admission.from_lease is not None
    assert admission.from_lease.lease.free == FIRST_TASKS * CREDIT


def test_a_task_that_is_replaced_gives_back_what_it_held(warm: LeasedWorld):
    admission = warm.admit("t1")
    warm.meter.hand_over(admission)
    assert admission.from_lease is not None
    assert admission.from_lease.lease.free == FIRST_TASKS * CREDIT
    assert warm.leases.flush() == 0


def test_a_settlement_that_was_interrupted_stands(warm: LeasedWorld):
    class SoftTimeLimit(Exception):  # noqa: N818 - as Celery's
        pass

    admission = warm.admit("t1")
    recorder = warm.meter.recorder(admission.sku)
    append = warm.book.append

    def interrupted(line: bytes) -> object:
        append(line)
        warm.book.append = append  # type: ignore[method-assign]  # once
        raise SoftTimeLimit

    warm.book.append = interrupted  # type: ignore[method-assign,assignment]  # at the worst instant
    with pytest.raises(SoftTimeLimit):
        warm.meter.settle(admission, recorder)
    warm.meter.fail(admission, recorder, ReleaseCause.SOFT_TIME_LIMIT)
    warm.leases.flush()
    assert [event.line for event in warm.outbox[1:]] == ["page-capture"]
    assert warm.account.settled_microcredits == 2 * CREDIT
    assert admission.from_lease is not None
    assert admission.from_lease.lease.kept == 0


# -- the same task again ---------------------------------------------------------------------------


def test_a_redelivery_of_what_a_lease_settled_runs_and_costs_nothing_more(tmp_path: Path):
    world = LeasedWorld(tmp_path, credits=32)
    world.warm_up()
    world.bill("t1")
    world.leases.flush()
    for n in range(30):
        world.admit(f"all the rest {n}")
    again = world.admit("t1", may_repeat=True)
    assert again.admitted
    assert again.repeat
    world.meter.settle(again, world.meter.recorder(again.sku))
    assert world.account.settled_microcredits == 2 * CREDIT
    assert [event.task_id for event in world.outbox] == ["warm-up", "t1"]


def test_a_repeat_that_nobody_knew_as_one_is_counted_once(warm: LeasedWorld):
    warm.bill("t1")
    warm.bill("t1")
    warm.leases.flush()
    warm.bill("t1")
    warm.leases.flush()
    assert warm.account.settled_microcredits == 2 * CREDIT
    assert len(warm.outbox) == 2
    warm.pass_seconds(WINDOW_SECONDS)
    warm.leases.give_back()
    assert warm.figures() == (9_998, 0, 2)


# -- a process that dies ---------------------------------------------------------------------------


def test_what_a_killed_process_left_is_settled_and_its_leases_given_back(warm: LeasedWorld):
    warm.bill("told")
    warm.leases.flush()
    warm.bill("untold")
    warm.admit("running")
    warm.kill()

    assert warm.find_left() == 2
    assert warm.billed() == {"warm-up": 1, "told": 1, "untold": 1}
    assert warm.figures() == (9_997, 0, 3)
    assert warm.find_left() == 0


@pytest.mark.parametrize("when", ["die before", "die after"])
def test_a_process_killed_while_it_settles_is_charged_once(warm: LeasedWorld, when: str):
    warm.bill("t1")
    warm.store.fails["settle"] = when
    with pytest.raises(Died):
        warm.leases.flush()
    warm.kill()
    warm.find_left()
    assert warm.billed() == {"warm-up": 1, "t1": 1}
    assert warm.figures() == (9_998, 0, 2)
    assert {event.task_id for event in warm.journal.events} == {"warm-up", "t1"}


@pytest.mark.parametrize("when", ["die before", "die after"])
def test_a_process_killed_while_it_asks_leaves_no_lease(warm: LeasedWorld, when: str):
    warm.store.fails["lease"] = when
    with pytest.raises(Died):
        warm.admit("t1")
    warm.kill()
    warm.find_left()
    assert warm.figures() == (9_999, 0, 1)


def test_what_is_found_after_the_lease_expired_is_charged_from_what_is_available(
    warm: LeasedWorld,
):
    warm.bill("t1")
    warm.kill()
    warm.pass_seconds(2 * HOLD_TTL_SECONDS)
    warm.memory.expire(100)
    assert warm.find_left() == 1
    assert warm.billed()["t1"] == 1
    assert warm.figures() == (9_998, 0, 2)


def test_a_process_that_ends_tells_everything_and_gives_everything_back(warm: LeasedWorld):
    warm.bill("t1")
    warm.leases.close()
    assert warm.billed()["t1"] == 1
    assert warm.figures() == (9_998, 0, 2)
    assert list(warm.book.directory.glob("*.slips")) == []


def test_a_process_that_ends_while_redis_is_away_leaves_it_to_the_relay(warm: LeasedWorld):
    warm.bill("t1")
    warm.store.is_down = True
    warm.leases.close()
    assert warm.find_left() == 1
    assert warm.figures() == (9_998, 0, 2)


# -- threads ---------------------------------------------------------------------------------------


def test_threads_never_admit_more_than_is_leased_and_every_run_is_settled(tmp_path: Path):
    world = LeasedWorld(tmp_path, credits=100_000)
    world.warm_up()
    leases = LeaseManager(
        world.store, world.book, world.journal, name="node", window_seconds=WINDOW_SECONDS,
        ttl_seconds=HOLD_TTL_SECONDS,
    )  # fmt: skip
    world.meter._leases = leases
    from_leases: list[str] = []

    def work(number: int) -> None:
        names = [f"{number}-{count}" for count in range(100)]
        from_leases.extend(name for name in names if world.bill(name).from_lease is not None)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    eventually(lambda: leases.waiting == 0, message="the thread has told everything")
    leases.close()
    assert len(from_leases) > 500
    assert world.account.settled_microcredits == 601 * CREDIT
    assert world.account.held_microcredits == 0
    assert world.store.calls.count("settle") < 300, "in batches"
    assert {event.shortfall_microcredits for event in world.outbox} == {0}


def test_facts_of_the_same_task_have_one_mark_in_both_ways(warm: LeasedWorld):
    facts = make_facts("t1")
    mark = warm.meter._mark(facts, warm.skus["page-capture"])
    warm.bill("t1")
    warm.leases.flush()
    assert warm.outbox[-1].id == mark
