"""On the way out: what a run costs, by how it ended and by its SKU's policy."""

from __future__ import annotations

from datetime import timedelta

import pytest
from meter_fakes import CREDIT, HOLD_TTL_SECONDS, World, make_facts, make_measured, make_sku

from billing.core.admission import Admission
from billing.core.reservation import HoldState, ReleaseCause, ReleaseOutcome, SettleOutcome
from billing.core.sku import FailurePolicy
from billing.core.usage_event import Outcome
from billing.metering.usage_recorder import UsageRecorder

CHARGED_WHEN_FAILED = {
    ReleaseCause.EXCEPTION,
    ReleaseCause.SOFT_TIME_LIMIT,
    ReleaseCause.HARD_TIME_LIMIT,
    ReleaseCause.EXITED,
}
CHARGE = FailurePolicy.CHARGE


def admit(world: World, task_id: str = "task-1") -> tuple[Admission, UsageRecorder]:
    admission = world.meter.admit(make_facts(task_id), next(iter(world.skus)), None)
    assert admission.admitted
    return admission, world.meter.recorder(admission.sku)


def test_a_success_costs_what_was_measured_and_gives_the_rest_back():
    world = World(make_measured(hold=5))
    admission, recorder = admit(world)
    recorder.record(quantity=3, cost_micros=42, subject="https://a.example/")

    settlement = world.meter.settle(admission, recorder)

    assert settlement.outcome is SettleOutcome.SETTLED
    assert world.figures() == (7, 0, 3)
    (event,) = world.outbox
    assert (event.amount_microcredits, event.shortfall_microcredits) == (3 * CREDIT, 0)
    assert (event.quantity, event.held_microcredits, event.cost_micros) == (3, 5 * CREDIT, 42)
    assert (event.outcome, event.quota_epoch, event.degraded) == (Outcome.SUCCEEDED, 1, False)


def test_a_settlement_is_told_to_the_journal_as_it_is_in_the_outbox():
    world = World(make_measured(hold=5), credits=5)
    admission, recorder = admit(world)
    recorder.record(quantity=8)

    world.meter.settle(admission, recorder)

    assert world.journal.events == world.outbox
    assert world.journal.events[0].shortfall_microcredits == 3 * CREDIT


def test_what_neither_hold_nor_balance_covers_is_a_shortfall():
    world = World(make_measured(hold=2), credits=3)
    admission, recorder = admit(world)
    recorder.record(quantity=10)

    settlement = world.meter.settle(admission, recorder)

    (line,) = settlement.lines
    assert (line.amount_microcredits, line.shortfall_microcredits) == (3 * CREDIT, 7 * CREDIT)
    assert world.figures() == (0, 0, 3)
    assert world.outbox[0].amount_microcredits == 3 * CREDIT


def test_each_sku_of_a_run_is_a_line_and_all_are_charged():
    world = World(make_measured(hold=4), make_measured("proxy-mb", price=2 * CREDIT))
    admission, recorder = admit(world)
    recorder.record(quantity=1)
    recorder.record(quantity=2, sku="proxy-mb")

    settlement = world.meter.settle(admission, recorder)

    assert [line.line for line in settlement.lines] == ["crawl", "proxy-mb"]
    assert [event.amount_microcredits for event in world.outbox] == [CREDIT, 4 * CREDIT]
    assert world.figures() == (5, 0, 5)


def test_a_second_settle_returns_the_first_ones_figures_and_tells_nothing_more():
    world = World(make_measured())
    admission, recorder = admit(world)
    recorder.record(quantity=2)
    first = world.meter.settle(admission, recorder)
    told = list(world.outbox)

    recorder.record(quantity=5)
    second = world.meter.settle(admission, recorder)

    assert second.outcome is SettleOutcome.EXISTS
    assert second.lines == first.lines
    assert world.outbox == told
    assert world.journal.events == told
    assert world.publisher.events == []
    assert world.figures() == (8, 0, 2)


def test_a_redelivered_task_that_was_billed_runs_again_for_nothing():
    world = World(make_measured(failure_policy=CHARGE))
    admission, recorder = admit(world)
    recorder.record(quantity=2)
    world.meter.settle(admission, recorder)
    told = list(world.outbox)

    for cause in (None, ReleaseCause.EXCEPTION, ReleaseCause.WORKER_LOST):
        process = world.another_process()
        again = process.admit(make_facts(), "crawl", None)
        more = process.recorder(again.sku)
        more.record(quantity=3)
        if cause is None:
            process.settle(again, more)
        else:
            process.fail(again, more, cause)

    assert world.outbox == told
    assert world.figures() == (8, 0, 2)


@pytest.mark.parametrize("cause", list(ReleaseCause))
@pytest.mark.parametrize("policy", list(FailurePolicy))
def test_a_failed_run_is_charged_only_by_policy_and_only_if_its_body_failed(
    policy: FailurePolicy, cause: ReleaseCause
):
    world = World(make_measured(hold=5, failure_policy=policy))
    admission, recorder = admit(world)
    recorder.record(quantity=2, cost_micros=9, subject="s")

    world.meter.fail(admission, recorder, cause)

    (event,) = world.outbox
    charged = policy is CHARGE and cause in CHARGED_WHEN_FAILED
    assert event.amount_microcredits == (2 * CREDIT if charged else 0)
    assert event.line == ("crawl" if charged else "failed:crawl:1")
    assert (event.outcome, event.reason) == (Outcome.FAILED, cause.value)
    assert (event.cost_micros, event.subject) == (9, "s")
    assert world.figures() == ((8, 0, 2) if charged else (10, 0, 0))
    assert world.journal.events[0].id == event.id


@pytest.mark.parametrize("cause", sorted(CHARGED_WHEN_FAILED))
def test_a_fixed_sku_that_charges_failures_charges_its_one_unit(cause: ReleaseCause):
    world = World(make_sku(failure_policy=CHARGE))
    admission, recorder = admit(world)

    world.meter.fail(admission, recorder, cause)

    assert world.figures() == (9, 0, 1)
    assert world.outbox[0].quantity == 1


def test_a_failure_that_used_nothing_is_released_whatever_the_policy():
    world = World(make_measured(failure_policy=CHARGE))
    admission, recorder = admit(world)
    recorder.record(cost_micros=5)

    world.meter.fail(admission, recorder, ReleaseCause.EXCEPTION)

    (event,) = world.outbox
    assert (event.line, event.amount_microcredits, event.cost_micros) == ("failed:crawl:1", 0, 5)
    assert world.figures() == (10, 0, 0)


def test_a_failed_task_may_come_back_and_each_failure_is_a_line_of_its_own():
    world = World()
    for _ in range(2):
        admission, recorder = admit(world)
        world.meter.fail(admission, recorder, ReleaseCause.EXCEPTION)
    admission, recorder = admit(world)

    world.meter.settle(admission, recorder)

    assert [event.line for event in world.outbox] == [
        "failed:page-capture:1",
        "failed:page-capture:2",
        "page-capture",
    ]
    assert world.figures() == (9, 0, 1)


def test_a_failure_told_twice_is_one_line():
    world = World()
    admission, recorder = admit(world)

    for _ in range(2):
        world.meter.fail(admission, recorder, ReleaseCause.EXCEPTION)

    assert len(world.outbox) == 1
    assert world.figures() == (10, 0, 0)


def test_a_run_that_outlived_its_hold_is_still_charged():
    world = World()
    admission, recorder = admit(world)
    world.clock.advance(timedelta(seconds=HOLD_TTL_SECONDS))
    assert len(world.memory.expire(10)) == 1

    settlement = world.meter.settle(admission, recorder)

    assert settlement.outcome is SettleOutcome.WITHOUT_HOLD
    assert world.figures() == (9, 0, 1)


def test_a_run_that_fails_after_its_hold_expired_still_has_a_line_with_its_cost():
    world = World()
    admission, recorder = admit(world)
    recorder.record(cost_micros=500)
    world.clock.advance(timedelta(seconds=HOLD_TTL_SECONDS))
    world.memory.expire(10)

    for _ in range(2):
        world.meter.fail(admission, recorder, ReleaseCause.EXCEPTION)

    assert {(event.id, event.line, event.cost_micros) for event in world.outbox} == {
        (world.outbox[0].id, "failed:page-capture:1", 500)
    }
    assert world.figures() == (10, 0, 0)


def test_a_failure_is_told_although_redis_lost_the_hold():
    world = World()
    admission, recorder = admit(world)
    recorder.record(cost_micros=500)
    world.memory._holds.clear()
    world.memory._open.clear()

    world.meter.fail(admission, recorder, ReleaseCause.EXCEPTION)

    (event,) = world.outbox
    assert (event.cost_micros, event.amount_microcredits) == (500, 0)


@pytest.mark.parametrize("cause", list(ReleaseCause))
@pytest.mark.parametrize("policy", list(FailurePolicy))
def test_what_only_the_main_process_saw_is_never_charged(
    policy: FailurePolicy, cause: ReleaseCause
):
    world = World(make_sku(failure_policy=policy))
    admit(world)

    outcome = world.another_process().lost(make_facts(), "page-capture", cause)

    (event,) = world.outbox
    assert outcome is ReleaseOutcome.RELEASED
    assert (event.amount_microcredits, event.reason) == (0, cause.value)
    assert event.held_microcredits == CREDIT
    assert event.started_at is None
    assert world.figures() == (10, 0, 0)


def test_the_child_and_the_main_process_ending_one_run_is_one_line_in_either_order():
    for child_first in (True, False):
        world = World()
        admission, recorder = admit(world)
        parent = world.another_process()

        if child_first:
            world.meter.fail(admission, recorder, ReleaseCause.EXCEPTION)
        outcome = parent.lost(make_facts(), "page-capture", ReleaseCause.WORKER_LOST)
        if not child_first:
            world.meter.fail(admission, recorder, ReleaseCause.EXCEPTION)

        expected = ReleaseOutcome.ENDED_BEFORE if child_first else ReleaseOutcome.RELEASED
        assert outcome is expected
        assert [event.line for event in world.outbox] == ["failed:page-capture:1"]
        assert world.figures() == (10, 0, 0)


def test_losing_a_run_that_was_settled_changes_nothing():
    world = World()
    admission, recorder = admit(world)
    world.meter.settle(admission, recorder)

    outcome = world.meter.lost(make_facts(), "page-capture", ReleaseCause.WORKER_LOST)

    assert outcome is ReleaseOutcome.ENDED_BEFORE
    assert len(world.outbox) == 1
    assert world.figures() == (9, 0, 1)


def test_losing_a_task_that_never_held_anything_leaves_no_line():
    world = World()
    world.books.refresh("acme")

    lost = world.meter.lost(make_facts("a"), "page-capture", ReleaseCause.WORKER_LOST)
    revoked = world.meter.lost(make_facts("b"), "page-capture", ReleaseCause.REVOKED)

    assert (lost, revoked) == (ReleaseOutcome.NOTHING, ReleaseOutcome.TOMBSTONE)
    assert world.outbox == []
    hold = world.memory.hold("acme", "b")
    assert hold is not None
    assert hold.state is HoldState.RELEASED


def test_a_full_disk_under_the_journal_does_not_undo_a_settlement():
    world = World()
    world.journal.faults.down = True
    admission, recorder = admit(world)

    settlement = world.meter.settle(admission, recorder)

    assert settlement.outcome is SettleOutcome.SETTLED
    assert len(world.outbox) == 1
    assert world.spool.events == []
    assert world.figures() == (9, 0, 1)


def test_a_full_disk_under_the_journal_hides_neither_failure_nor_denial():
    world = World(credits=1)
    world.journal.faults.down = True
    admission, recorder = admit(world)

    world.meter.record_denial(world.meter.admit(make_facts("other"), "page-capture", None))
    world.meter.fail(admission, recorder, ReleaseCause.EXCEPTION)

    assert [event.outcome for event in world.outbox] == [Outcome.DENIED, Outcome.FAILED]
