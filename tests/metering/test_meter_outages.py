"""Redis away, RabbitMQ away, the disk full: nothing is admitted unheld, and no usage is lost."""

from __future__ import annotations

import pytest
from meter_fakes import CREDIT, World, make_facts, make_measured, make_sku

from billing.core.admission import Admission
from billing.core.errors import DenialReason, QuotaUnavailable
from billing.core.reservation import LineFigures, ReleaseCause, SettleOutcome
from billing.core.sku import FailurePolicy, Sku, UnavailablePolicy
from billing.core.usage_event import Outcome
from billing.core.usage_event_json import from_wire
from billing.metering.usage_recorder import UsageRecorder

ALLOWED = 3


def make_allowing(name: str = "page-capture", limit: int = ALLOWED) -> Sku:
    return make_sku(name, unavailable_policy=UnavailablePolicy.ALLOW, allow_limit=limit)


def admit(world: World, task_id: str = "task-1") -> tuple[Admission, UsageRecorder]:
    admission = world.meter.admit(make_facts(task_id), next(iter(world.skus)), None)
    assert admission.admitted
    return admission, world.meter.recorder(admission.sku)


@pytest.mark.parametrize("policy", [UnavailablePolicy.RETRY, UnavailablePolicy.DENY])
def test_nothing_runs_unheld_unless_its_sku_allows_it(policy: UnavailablePolicy):
    world = World(make_sku(unavailable_policy=policy))
    world.quota.faults.down = True

    admission = world.meter.admit(make_facts(), "page-capture", None)

    assert admission.reason is DenialReason.QUOTA_UNAVAILABLE
    assert not admission.admitted
    assert not admission.degraded


def test_postgresql_away_behind_a_missing_balance_is_unavailable_too():
    world = World()
    world.books.faults.down = True

    assert not world.meter.admit(make_facts(), "page-capture", None).admitted


def test_a_denial_while_redis_is_away_is_published_directly():
    world = World(make_sku(unavailable_policy=UnavailablePolicy.DENY))
    world.quota.faults.down = True

    world.meter.record_denial(world.meter.admit(make_facts(), "page-capture", None))

    (event,) = world.publisher.events
    assert (event.outcome, event.reason) == (Outcome.DENIED, "quota_unavailable")
    assert (event.amount_microcredits, event.quota_epoch) == (0, 0)
    assert world.outbox == world.journal.events == []


def test_allow_runs_up_to_its_bound_and_refuses_the_next():
    world = World(make_allowing())
    world.quota.faults.down = True

    answers = [world.meter.admit(make_facts(f"t{n}"), "page-capture", None) for n in range(5)]

    assert [answer.degraded for answer in answers] == [True, True, True, False, False]
    assert [answer.admitted for answer in answers] == [True, True, True, False, False]
    assert {answer.held_microcredits for answer in answers} == {0}


def test_each_sku_and_each_process_has_a_bound_of_its_own():
    world = World(make_allowing(limit=1), make_allowing("other", limit=1))
    world.quota.faults.down = True

    answers = [
        meter.admit(make_facts(), sku, None).admitted
        for meter in (world.meter, world.another_process())
        for sku in ("page-capture", "other", "page-capture", "other")
    ]

    assert answers == [True, True, False, False] * 2


def test_the_end_of_an_outage_resets_the_bound():
    world = World(make_allowing(limit=1))
    world.quota.faults.down = True
    world.meter.admit(make_facts("a"), "page-capture", None)
    assert not world.meter.admit(make_facts("b"), "page-capture", None).admitted

    world.quota.faults.down = False
    held = world.meter.admit(make_facts("c"), "page-capture", None)
    world.quota.faults.down = True

    assert held.held_microcredits == CREDIT
    assert world.meter.admit(make_facts("d"), "page-capture", None).degraded


def test_a_refusal_by_an_answering_redis_ends_the_outage_as_well():
    world = World(make_allowing(limit=1), credits=0)
    world.quota.faults.down = True
    world.meter.admit(make_facts("a"), "page-capture", None)
    world.quota.faults.down = False
    refused = world.meter.admit(make_facts("b"), "page-capture", None)
    world.quota.faults.down = True

    assert refused.reason is DenialReason.INSUFFICIENT_CREDITS
    assert world.meter.admit(make_facts("c"), "page-capture", None).degraded


def test_an_unheld_run_is_charged_directly_under_epoch_0_while_redis_is_away():
    world = World(make_allowing())
    world.quota.faults.down = True
    admission, recorder = admit(world)

    settlement = world.meter.settle(admission, recorder)

    assert settlement.outcome is SettleOutcome.UNCOUNTED
    (event,) = world.publisher.events
    assert (event.amount_microcredits, event.quota_epoch, event.degraded) == (CREDIT, 0, True)
    assert event.held_microcredits == 0


def test_an_unheld_run_is_counted_when_redis_is_back_before_it_ends():
    world = World(make_allowing())
    world.books.refresh("acme")
    world.quota.faults.down = True
    admission, recorder = admit(world)
    world.quota.faults.down = False

    settlement = world.meter.settle(admission, recorder)

    assert settlement.outcome is SettleOutcome.WITHOUT_HOLD
    assert world.publisher.events == []
    assert world.outbox[0].degraded
    assert world.figures() == (9, 0, 1)


@pytest.mark.parametrize("cause", list(ReleaseCause))
def test_an_unheld_run_that_fails_is_told_directly_and_costs_nothing(cause: ReleaseCause):
    world = World(make_allowing())
    world.quota.faults.down = True
    admission, recorder = admit(world)
    recorder.record(cost_micros=8)

    world.meter.fail(admission, recorder, cause)

    (event,) = world.publisher.events
    assert (event.amount_microcredits, event.cost_micros, event.degraded) == (0, 8, True)


def test_redis_lost_during_the_run_publishes_what_it_used_degraded_under_epoch_0():
    world = World(make_measured())
    admission, recorder = admit(world)
    recorder.record(quantity=4)
    world.quota.faults.down = True

    settlement = world.meter.settle(admission, recorder)

    assert settlement.lines == (
        LineFigures(line="crawl", amount_microcredits=4 * CREDIT, shortfall_microcredits=0),
    )
    (event,) = world.publisher.events
    assert (event.amount_microcredits, event.quota_epoch) == (4 * CREDIT, 0)
    assert event.degraded
    assert event.held_microcredits == 5 * CREDIT
    assert from_wire(event.to_wire()) == event
    assert world.outbox == world.journal.events == world.spool.events == []


def test_rabbitmq_away_too_spools_what_was_used():
    world = World()
    admission, recorder = admit(world)
    world.quota.faults.down = world.publisher.faults.down = True

    settlement = world.meter.settle(admission, recorder)

    assert settlement.outcome is SettleOutcome.UNCOUNTED
    (event,) = world.spool.events
    assert (event.amount_microcredits, event.quota_epoch, event.degraded) == (CREDIT, 0, True)


def test_a_publish_that_was_taken_but_not_confirmed_is_spooled_as_the_same_event():
    world = World()
    admission, recorder = admit(world)
    world.quota.faults.down = True
    world.publisher.faults.plan("publish", "after")

    world.meter.settle(admission, recorder)

    assert world.spool.events == world.publisher.events


def test_a_publisher_that_breaks_in_a_way_of_its_own_costs_no_usage(
    monkeypatch: pytest.MonkeyPatch,
):
    # py-amqp has raised AttributeError where a connection went in the middle of a frame.
    def publish(_: object) -> None:
        raise AttributeError("'NoneType' object has no attribute 'recv'")

    world = World()
    admission, recorder = admit(world)
    world.quota.faults.down = True
    monkeypatch.setattr(world.publisher, "publish", publish)

    world.meter.settle(admission, recorder)

    assert [event.amount_microcredits for event in world.spool.events] == [CREDIT]


def test_usage_that_can_be_kept_nowhere_is_an_error_the_caller_sees():
    world = World()
    admission, recorder = admit(world)
    world.quota.faults.down = world.publisher.faults.down = world.spool.faults.down = True

    with pytest.raises(OSError, match="No space left"):
        world.meter.settle(admission, recorder)


def test_denials_and_failures_are_spooled_too():
    world = World()
    admission, recorder = admit(world)
    refused = world.meter.admit(make_facts("b", customer="nobody"), "page-capture", None)
    world.quota.faults.down = world.publisher.faults.down = True

    world.meter.record_denial(refused)
    world.meter.fail(admission, recorder, ReleaseCause.EXCEPTION)

    assert [event.outcome for event in world.spool.events] == [Outcome.DENIED, Outcome.FAILED]


@pytest.mark.parametrize("first", ["before", "after"])
def test_a_settle_that_timed_out_once_is_told_once(first: str):
    world = World(make_measured(hold=5), credits=5)
    admission, recorder = admit(world)
    recorder.record(quantity=7)
    world.quota.faults.plan("settle", first)

    settlement = world.meter.settle(admission, recorder)

    (line,) = settlement.lines
    assert (line.amount_microcredits, line.shortfall_microcredits) == (5 * CREDIT, 2 * CREDIT)
    assert len(world.outbox) == 1
    assert world.publisher.events == world.spool.events == []
    assert world.journal.events == world.outbox
    assert world.figures() == (0, 0, 5)


def test_a_timed_out_settle_of_a_billed_task_journals_no_other_figures():
    world = World(make_measured())
    admission, recorder = admit(world)
    recorder.record(quantity=2)
    world.meter.settle(admission, recorder)
    again, more = admit(world)
    more.record(quantity=3)
    world.quota.faults.plan("settle", "after")

    settlement = world.meter.settle(again, more)

    assert settlement.lines[0].amount_microcredits == 2 * CREDIT
    assert [event.quantity for event in world.journal.events] == [2]
    assert len(world.outbox) == 1


def test_a_timed_out_settle_of_a_task_running_twice_journals_no_other_figures():
    world = World(make_measured())
    (admission, recorder), (other, more) = admit(world), admit(world)
    recorder.record(quantity=2)
    more.record(quantity=3)
    world.meter.settle(admission, recorder)
    world.quota.faults.plan("settle", "before")

    settlement = world.meter.settle(other, more)

    assert settlement.lines[0].amount_microcredits == 2 * CREDIT
    assert [event.quantity for event in world.journal.events] == [2]
    assert world.figures() == (8, 0, 2)


def test_a_settle_whose_answers_are_all_lost_is_told_again_as_the_same_fact():
    world = World(make_measured())
    admission, recorder = admit(world)
    recorder.record(quantity=2, cost_micros=3, subject="s")
    world.quota.faults.plan("settle", "after", "after")

    world.meter.settle(admission, recorder)

    (counted,), (told,) = world.outbox, world.publisher.events
    assert told.id == counted.id
    assert told.fingerprint() == counted.fingerprint()
    assert world.figures() == (8, 0, 2)


def test_a_settle_is_tried_no_more_than_twice():
    world = World()
    admission, recorder = admit(world)
    world.quota.faults.down = True

    world.meter.settle(admission, recorder)

    assert world.quota.faults.calls["settle"] == 2


def test_a_release_whose_answer_was_lost_is_told_again_as_the_same_fact():
    world = World()
    admission, recorder = admit(world)
    world.quota.faults.plan("release", "after")

    world.meter.fail(admission, recorder, ReleaseCause.EXCEPTION)

    (released,), (told,) = world.outbox, world.publisher.events
    assert (told.id, told.fingerprint()) == (released.id, released.fingerprint())
    assert world.figures() == (10, 0, 0)


def test_a_charged_failure_while_redis_is_away_is_charged_directly():
    world = World(make_sku(failure_policy=FailurePolicy.CHARGE))
    admission, recorder = admit(world)
    world.quota.faults.down = True

    world.meter.fail(admission, recorder, ReleaseCause.EXCEPTION)

    (event,) = world.publisher.events
    assert (event.outcome, event.amount_microcredits) == (Outcome.FAILED, CREDIT)
    assert event.reason == "exception"


@pytest.mark.parametrize("verb", ["hold", "release"])
def test_losing_a_run_while_redis_is_away_says_so_and_leaves_the_hold_to_expire(verb: str):
    world = World()
    admit(world)
    world.quota.faults.plan(verb, "before")

    with pytest.raises(QuotaUnavailable):
        world.meter.lost(make_facts(), "page-capture", ReleaseCause.WORKER_LOST)

    assert world.publisher.events == world.outbox == []
    assert len(world.memory.open_holds("acme")) == 1
