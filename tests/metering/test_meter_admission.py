"""On the way in: who is admitted, who is refused, and what a refusal leaves behind."""

from __future__ import annotations

from datetime import timedelta

import pytest
from meter_fakes import CREDIT, HOLD_TTL_SECONDS, World, make_facts, make_measured, make_sku

from billing.core.clock import to_ms
from billing.core.credits import MAX_MICROCREDITS
from billing.core.errors import DenialReason, InvalidValue, NotFound
from billing.core.reservation import ReleaseCause
from billing.core.usage_event import Outcome


def test_an_admission_holds_what_the_task_may_cost():
    world = World(make_measured(hold=4))

    admission = world.meter.admit(make_facts(), "crawl", None)

    assert admission.admitted
    assert (admission.number, admission.degraded, admission.repeat) == (1, False, False)
    assert admission.needed_microcredits == admission.held_microcredits == 4 * CREDIT
    assert admission.left_microcredits == 6 * CREDIT
    assert world.figures() == (6, 4, 0)


def test_a_task_may_say_how_many_units_to_hold():
    world = World(make_measured(hold=4))

    world.meter.admit(make_facts(), "crawl", 9)

    assert world.figures() == (1, 9, 0)


@pytest.mark.parametrize("quantity", [-1, MAX_MICROCREDITS, 2.5, True])
def test_a_quantity_that_cannot_be_is_refused_before_anything_is_held(quantity: int):
    world = World(make_measured())

    with pytest.raises(InvalidValue, match="quantity"):
        world.meter.admit(make_facts(), "crawl", quantity)

    assert world.memory.open_holds() == []


def test_a_sku_that_is_not_there_is_an_error_and_no_denial():
    world = World()

    with pytest.raises(NotFound, match="no sku 'nothing'"):
        world.meter.admit(make_facts(), "nothing", None)

    assert world.outbox == []


def test_a_sku_without_a_price_admits_nobody():
    world = World(make_sku(prices=()))

    with pytest.raises(NotFound, match="no price 'page-capture'"):
        world.meter.admit(make_facts(), "page-capture", None)


def test_a_hold_lives_as_long_as_the_meter_was_told():
    world = World()

    world.meter.admit(make_facts(), "page-capture", None)

    (hold,) = world.memory.open_holds()
    assert hold.expires_at_ms == to_ms(world.clock.now()) + HOLD_TTL_SECONDS * 1000


def test_an_unknown_balance_is_loaded_once_and_the_task_admitted():
    world = World()

    first = world.meter.admit(make_facts("a"), "page-capture", None)
    second = world.meter.admit(make_facts("b"), "page-capture", None)

    assert first.admitted
    assert second.admitted
    assert world.books.faults.calls["refresh"] == 1


def test_a_balance_that_stays_unknown_admits_nobody_after_three_tries():
    world = World()
    # The account is loaded, and is already over: its month ended.
    world.clock.advance(timedelta(days=40))

    admission = world.meter.admit(make_facts(), "page-capture", None)

    assert admission.reason is DenialReason.QUOTA_UNAVAILABLE
    assert world.books.faults.calls["refresh"] == 3


def test_a_quarantined_balance_counts_as_unavailable_until_it_is_over():
    world = World(quarantine_seconds=5)
    world.books.had_usage = True

    refused = world.meter.admit(make_facts(), "page-capture", None)
    world.clock.advance(timedelta(seconds=5))
    admitted = world.meter.admit(make_facts(), "page-capture", None)

    assert refused.reason is DenialReason.QUOTA_UNAVAILABLE
    assert world.books.faults.calls["refresh"] == 2
    assert admitted.admitted


def test_a_customer_nobody_knows_is_refused():
    world = World()

    admission = world.meter.admit(make_facts(customer="nobody"), "page-capture", None)

    assert admission.reason is DenialReason.UNKNOWN_CUSTOMER
    assert not admission.admitted


def test_a_suspended_customer_is_refused():
    world = World()
    world.books.suspended.add("acme")

    admission = world.meter.admit(make_facts(), "page-capture", None)

    assert admission.reason is DenialReason.CUSTOMER_SUSPENDED
    assert world.figures() == (10, 0, 0)


@pytest.mark.parametrize(
    ("budgets", "reason"),
    [
        ({"*": 2 * CREDIT}, DenialReason.BUDGET_EXCEEDED),
        ({"page-capture": 2 * CREDIT}, DenialReason.SKU_BUDGET_EXCEEDED),
    ],
)
def test_a_budget_is_a_ceiling_beside_the_balance(budgets: dict[str, int], reason: DenialReason):
    world = World()
    world.books.budgets["acme"] = budgets

    answers = [world.meter.admit(make_facts(f"t{n}"), "page-capture", None) for n in range(3)]

    assert [answer.reason for answer in answers] == [None, None, reason]
    assert answers[2].left_microcredits == 0


def test_not_enough_credits_says_what_was_needed_and_what_is_left():
    world = World(make_measured(), credits=3)

    admission = world.meter.admit(make_facts(), "crawl", 5)

    assert admission.reason is DenialReason.INSUFFICIENT_CREDITS
    assert (admission.needed_microcredits, admission.left_microcredits) == (5 * CREDIT, 3 * CREDIT)
    assert world.figures() == (3, 0, 0)


def test_the_last_credit_is_admitted_and_not_one_more():
    world = World(credits=2)

    answers = [world.meter.admit(make_facts(f"t{n}"), "page-capture", None) for n in range(3)]

    assert [answer.admitted for answer in answers] == [True, True, False]
    assert world.figures() == (0, 2, 0)


def test_a_task_revoked_before_it_started_is_refused():
    world = World()
    world.meter.admit(make_facts("warm-up"), "page-capture", None)
    world.meter.lost(make_facts(), "page-capture", ReleaseCause.REVOKED)

    admission = world.meter.admit(make_facts(), "page-capture", None)

    assert admission.reason is DenialReason.REVOKED


def test_the_same_task_holds_once_however_often_it_is_delivered():
    world = World()

    answers = [world.another_process().admit(make_facts(), "page-capture", None) for _ in range(3)]

    assert [answer.number for answer in answers] == [1, 1, 1]
    assert world.figures() == (9, 1, 0)


def test_a_reserve_that_timed_out_after_it_held_is_found_by_the_next_delivery():
    world = World()
    world.quota.faults.plan("reserve", "well", "after")

    lost_answer = world.meter.admit(make_facts(), "page-capture", None)
    again = world.meter.admit(make_facts(), "page-capture", None)

    assert lost_answer.reason is DenialReason.QUOTA_UNAVAILABLE
    assert (again.admitted, again.number) == (True, 1)
    assert world.figures() == (9, 1, 0)


def test_a_task_that_was_billed_is_admitted_as_a_repeat_and_holds_nothing():
    world = World()
    admission = world.meter.admit(make_facts(), "page-capture", None)
    world.meter.settle(admission, world.meter.recorder(admission.sku))

    again = world.another_process().admit(make_facts(), "page-capture", None)

    assert (again.admitted, again.repeat, again.held_microcredits) == (True, True, 0)
    assert world.figures() == (9, 0, 1)


def test_a_refusal_leaves_no_line_until_it_is_put_on_record():
    world = World(credits=0)

    admission = world.meter.admit(make_facts(), "page-capture", None)
    assert world.outbox == []
    world.meter.record_denial(admission)

    (event,) = world.outbox
    assert (event.outcome, event.reason) == (Outcome.DENIED, "insufficient_credits")
    assert (event.amount_microcredits, event.cost_micros, event.quantity) == (0, 0, 0)
    assert world.figures() == (0, 0, 0)


def test_a_refusal_told_twice_is_one_line():
    world = World(credits=0)

    for _ in range(2):
        world.meter.record_denial(world.meter.admit(make_facts(), "page-capture", None))

    assert len({event.id for event in world.outbox}) == 1
    assert len({event.fingerprint() for event in world.outbox}) == 1
    assert [event.id for event in world.journal.events] == [event.id for event in world.outbox]


def test_a_later_admission_of_a_refused_task_is_another_line():
    world = World(credits=0)
    refused = world.meter.admit(make_facts(), "page-capture", None)
    world.meter.record_denial(refused)
    world.books.grant("acme", 10 * CREDIT)

    admitted = world.meter.admit(make_facts(), "page-capture", None)
    world.meter.settle(admitted, world.meter.recorder(admitted.sku))

    denied, billed = world.outbox
    assert denied.id != billed.id
    assert (denied.amount_microcredits, billed.amount_microcredits) == (0, CREDIT)


def test_an_admitted_task_has_no_denial_to_record():
    world = World()
    admission = world.meter.admit(make_facts(), "page-capture", None)

    with pytest.raises(InvalidValue, match="only a refused admission"):
        world.meter.record_denial(admission)

    assert world.outbox == []
