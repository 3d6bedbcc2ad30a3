"""The contract of the quota store, for every implementation: reserve, settle, release, expire."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from stores import (
    CUSTOMER,
    HOLD_TTL_SECONDS,
    OTHER_SKU,
    RECORD_TTL_SECONDS,
    SKU,
    Store,
    charged,
    customers_of_one_shard,
    denial,
    failure,
    figures,
    open_account,
    reserve,
    settle,
    usage,
    view,
)

from billing.core.credits import MAX_MICROCREDITS
from billing.core.errors import DenialReason, InvalidValue
from billing.core.reservation import (
    HoldState,
    ReleaseCause,
    ReleaseOutcome,
    ReserveOutcome,
    SettleOutcome,
)

# -- reserve ---------------------------------------------------------------------------------------


def test_a_hold_takes_its_amount_from_what_is_available(store: Store):
    open_account(store)

    reservation = reserve(store, "t1", 30)

    assert reservation.outcome is ReserveOutcome.HELD
    assert (reservation.admission, reservation.held_microcredits) == (1, 30)
    assert reservation.left_microcredits == 70
    assert figures(store) == (30, 0, 70)
    hold = store.quota.hold(CUSTOMER, "t1")
    assert hold is not None
    assert (hold.state, hold.sku, hold.held_microcredits) == (HoldState.HELD, SKU, 30)
    assert abs(hold.expires_at_ms - store.now_ms() - HOLD_TTL_SECONDS * 1000) < 5_000


def test_the_same_reserve_again_is_the_same_hold(store: Store):
    open_account(store)
    reserve(store, "t1", 30)

    again = reserve(store, "t1", 30)

    assert again.outcome is ReserveOutcome.EXISTS
    assert (again.admission, again.held_microcredits, again.left_microcredits) == (1, 30, 70)
    assert figures(store) == (30, 0, 70)


def test_the_same_reserve_again_keeps_the_hold_open_longer(store: Store):
    open_account(store)
    reserve(store, "t1")
    store.pass_time(HOLD_TTL_SECONDS - 5)
    reserve(store, "t1")
    store.pass_time(HOLD_TTL_SECONDS - 5)

    assert store.quota.expire(10) == []
    store.pass_time(10)
    assert [hold.task_id for hold in store.quota.expire(10)] == ["t1"]


@pytest.mark.parametrize(("amount", "left"), [(50, 50), (10, 90), (100, 0), (0, 100)])
def test_another_amount_for_an_open_hold_adjusts_it_in_the_same_admission(
    store: Store, amount: int, left: int
):
    open_account(store)
    reserve(store, "t1", 30)

    adjusted = reserve(store, "t1", amount)

    assert adjusted.outcome is ReserveOutcome.ADJUSTED
    assert (adjusted.admission, adjusted.held_microcredits) == (1, amount)
    assert adjusted.left_microcredits == left
    assert figures(store) == (amount, 0, left)


def test_a_hold_that_cannot_grow_stays_as_it_is(store: Store):
    open_account(store)
    reserve(store, "t1", 30)
    reserve(store, "t2", 60)

    denied = reserve(store, "t1", 41)

    assert denied.outcome is ReserveOutcome.DENIED
    assert denied.reason is DenialReason.INSUFFICIENT_CREDITS
    assert (denied.held_microcredits, denied.left_microcredits) == (30, 10)
    assert figures(store) == (90, 0, 10)
    assert reserve(store, "t1", 40).outcome is ReserveOutcome.ADJUSTED


def test_more_than_is_available_is_denied_with_what_is_left(store: Store):
    open_account(store)
    reserve(store, "t1", 60)

    denied = reserve(store, "t2", 41)

    assert denied.outcome is ReserveOutcome.DENIED
    assert denied.reason is DenialReason.INSUFFICIENT_CREDITS
    assert (denied.admission, denied.held_microcredits, denied.left_microcredits) == (0, 0, 40)
    assert store.quota.hold(CUSTOMER, "t2") is None
    assert reserve(store, "t2", 40).outcome is ReserveOutcome.HELD


def test_a_hold_of_nothing_is_a_hold(store: Store):
    open_account(store, granted_microcredits=0)

    assert reserve(store, "t1", 0).outcome is ReserveOutcome.HELD
    assert [hold.task_id for hold in store.quota.open_holds()] == ["t1"]
    assert settle(store, "t1", 0).outcome is SettleOutcome.SETTLED


def test_a_suspended_customer_is_denied_and_open_holds_go_on(store: Store):
    state = open_account(store)
    reserve(store, "t1", 30)
    store.quota.load(replace(state, version=2, suspended=True))

    denied = reserve(store, "t2", 10)

    assert denied.reason is DenialReason.CUSTOMER_SUSPENDED
    assert denied.left_microcredits == 70
    assert reserve(store, "t1", 30).outcome is ReserveOutcome.EXISTS
    assert settle(store, "t1", 30).outcome is SettleOutcome.SETTLED


def test_a_balance_that_was_never_loaded_is_unknown_and_neither_empty_nor_endless(store: Store):
    reservation = reserve(store, "t1")

    assert reservation.outcome is ReserveOutcome.UNKNOWN_BALANCE
    assert not reservation.outcome.admitted
    assert store.quota.account(CUSTOMER) is None
    assert store.quota.hold(CUSTOMER, "t1") is None


def test_an_open_hold_answers_even_where_the_balance_was_lost(store: Store):
    open_account(store)
    reserve(store, "t1", 30)
    store.forget_account(CUSTOMER)

    assert reserve(store, "t1", 30).outcome is ReserveOutcome.EXISTS
    grown = reserve(store, "t1", 31)
    assert grown.outcome is ReserveOutcome.UNKNOWN_BALANCE
    assert grown.held_microcredits == 30


def test_a_settled_task_may_run_again_and_costs_nothing_more(store: Store):
    open_account(store)
    reserve(store, "t1", 30)
    settle(store, "t1", 20)

    again = reserve(store, "t1", 30)

    assert again.outcome is ReserveOutcome.ALREADY_SETTLED
    assert again.outcome.admitted
    assert (again.admission, again.held_microcredits, again.left_microcredits) == (1, 0, 80)
    assert figures(store) == (0, 20, 80)


@pytest.mark.parametrize("how", ["release", "expire"])
def test_a_task_that_comes_back_after_its_hold_ended_is_another_admission(store: Store, how: str):
    open_account(store)
    reserve(store, "t1", 30)
    if how == "release":
        store.quota.release(CUSTOMER, "t1", ReleaseCause.EXCEPTION, None)
    else:
        store.pass_time(HOLD_TTL_SECONDS + 1)
        store.quota.expire(10)

    again = reserve(store, "t1", 50)

    assert (again.outcome, again.admission) == (ReserveOutcome.HELD, 2)
    assert figures(store) == (50, 0, 50)
    # The open hold outlives the time for which an ended one is remembered.
    store.pass_time(RECORD_TTL_SECONDS + 1)
    hold = store.quota.hold(CUSTOMER, "t1")
    assert hold is not None
    assert (hold.state, hold.cause) == (HoldState.HELD, "")


def test_the_same_task_id_of_two_customers_of_one_shard_is_two_holds(store: Store):
    first, second = customers_of_one_shard(2)
    for customer in (first, second):
        open_account(store, customer=customer)

    assert reserve(store, "t1", 10, customer=first).outcome is ReserveOutcome.HELD
    assert reserve(store, "t1", 20, customer=second).outcome is ReserveOutcome.HELD

    store.quota.release(first, "t1", ReleaseCause.EXCEPTION, None)
    assert [hold.customer for hold in store.quota.open_holds()] == [second]
    assert view(store, second).held_microcredits == 20


@pytest.mark.parametrize("amount", [-1, MAX_MICROCREDITS + 1, 1.0, True])
def test_an_amount_that_is_none_never_reaches_a_balance(store: Store, amount: int):
    open_account(store)
    before = store.raw()

    with pytest.raises(InvalidValue, match="amount_microcredits"):
        reserve(store, "t1", amount)
    with pytest.raises(InvalidValue, match="amount_microcredits"):
        settle(store, "t1", amount)

    assert store.raw() == before


def test_a_hold_without_time_to_live_is_refused(store: Store):
    with pytest.raises(InvalidValue, match="ttl_seconds"):
        reserve(store, "t1", 1, ttl_seconds=0)


# -- settle ----------------------------------------------------------------------------------------


def test_a_settle_charges_what_was_used_and_gives_the_rest_back(store: Store):
    open_account(store, epoch=7)
    reserve(store, "t1", 30)

    settlement = settle(store, "t1", 12)

    assert settlement.outcome is SettleOutcome.SETTLED
    assert (charged(settlement), settlement.quota_epoch) == ([(12, 0)], 7)
    assert figures(store) == (0, 12, 88)
    hold = store.quota.hold(CUSTOMER, "t1")
    assert hold is not None
    assert (hold.state, hold.held_microcredits, hold.settled_microcredits) == (
        HoldState.SETTLED,
        30,
        12,
    )
    (event,) = store.outbox()
    assert event.task_id == "t1"
    assert (event.amount_microcredits, event.shortfall_microcredits) == (12, 0)
    assert event.quota_epoch == 7


def test_a_second_settle_returns_the_first_ones_figures(store: Store):
    open_account(store, epoch=7)
    reserve(store, "t1", 30)
    first = settle(store, "t1", 12, 3)
    before = store.raw()

    second = settle(store, "t1", 25)

    assert second.outcome is SettleOutcome.EXISTS
    assert (second.lines, second.quota_epoch) == (first.lines, 7)
    assert store.raw() == before
    assert len(store.outbox()) == 2


def test_a_second_settle_tells_the_epoch_of_the_first_even_after_a_rebuild(store: Store):
    open_account(store, epoch=1)
    reserve(store, "t1", 30)
    settle(store, "t1", 12)
    open_account(store, epoch=2, settled_microcredits=12)

    assert settle(store, "t1", 12).quota_epoch == 1
    assert figures(store) == (0, 12, 88)


def test_more_than_was_held_is_charged_as_far_as_the_balance_goes(store: Store):
    open_account(store)
    reserve(store, "t1", 30)
    reserve(store, "t2", 50)

    settlement = settle(store, "t1", 70)

    assert charged(settlement) == [(50, 20)]
    assert figures(store) == (50, 50, 0)
    (event,) = store.outbox()
    assert (event.amount_microcredits, event.shortfall_microcredits) == (50, 20)


def test_the_lines_of_a_task_are_charged_in_their_order(store: Store):
    open_account(store, granted_microcredits=40)
    reserve(store, "t1", 30)

    settlement = settle(store, "t1", 25, 20, 5)

    assert charged(settlement) == [(25, 0), (15, 5), (0, 5)]
    assert [line.line for line in settlement.lines] == [SKU, OTHER_SKU, "third"]
    assert figures(store) == (0, 40, 0)
    assert [event.sku for event in store.outbox()] == [SKU, OTHER_SKU, "third"]
    hold = store.quota.hold(CUSTOMER, "t1")
    assert hold is not None
    assert hold.settled_microcredits == 40


def test_a_task_without_lines_settles_at_nothing(store: Store):
    open_account(store)
    reserve(store, "t1", 30)

    settlement = store.quota.settle(CUSTOMER, "t1", [])

    assert (settlement.outcome, settlement.lines) == (SettleOutcome.SETTLED, ())
    assert figures(store) == (0, 0, 100)
    assert store.quota.settle(CUSTOMER, "t1", []).outcome is SettleOutcome.EXISTS


def test_usage_without_any_hold_is_charged_from_what_is_available(store: Store):
    open_account(store, epoch=3)
    reserve(store, "t1", 70)

    settlement = settle(store, "t2", 50)

    assert settlement.outcome is SettleOutcome.WITHOUT_HOLD
    assert (charged(settlement), settlement.quota_epoch) == ([(30, 20)], 3)
    assert figures(store) == (70, 30, 0)
    hold = store.quota.hold(CUSTOMER, "t2")
    assert hold is not None
    assert (hold.state, hold.admission, hold.held_microcredits) == (HoldState.SETTLED, 1, 0)


@pytest.mark.parametrize("cause", [ReleaseCause.WORKER_LOST, ReleaseCause.REVOKED])
def test_a_settle_after_the_release_is_an_admission_that_settles_at_once(
    store: Store, cause: ReleaseCause
):
    open_account(store)
    reserve(store, "t1", 30)
    store.quota.release(CUSTOMER, "t1", cause, None)

    settlement = settle(store, "t1", 20)

    assert settlement.outcome is SettleOutcome.WITHOUT_HOLD
    hold = store.quota.hold(CUSTOMER, "t1")
    assert hold is not None
    assert (hold.state, hold.admission, hold.cause) == (HoldState.SETTLED, 2, "")
    assert figures(store) == (0, 20, 80)
    assert settle(store, "t1", 20).outcome is SettleOutcome.EXISTS
    assert reserve(store, "t1", 20).outcome is ReserveOutcome.ALREADY_SETTLED


def test_usage_of_an_unknown_balance_is_charged_in_full_under_no_epoch(store: Store):
    settlement = settle(store, "t1", 5, 7)

    assert settlement.outcome is SettleOutcome.UNCOUNTED
    assert (charged(settlement), settlement.quota_epoch) == ([(5, 0), (7, 0)], 0)
    assert [event.quota_epoch for event in store.outbox()] == [0, 0]
    assert settle(store, "t1", 5, 7).outcome is SettleOutcome.EXISTS
    assert len(store.outbox()) == 2
    assert store.quota.account(CUSTOMER) is None


def test_an_open_hold_of_a_lost_balance_settles_uncounted_and_is_not_held_after_the_rebuild(
    store: Store,
):
    open_account(store)
    reserve(store, "t1", 30)
    reserve(store, "t2", 20)
    store.forget_account(CUSTOMER)

    settlement = settle(store, "t1", 40)

    assert settlement.outcome is SettleOutcome.UNCOUNTED
    assert charged(settlement) == [(40, 0)]
    hold = store.quota.hold(CUSTOMER, "t1")
    assert hold is not None
    assert hold.admission == 1
    open_account(store, epoch=2)
    assert figures(store) == (20, 0, 80)


def test_a_balance_below_zero_does_not_take_back_what_was_held(store: Store):
    state = open_account(store)
    reserve(store, "t1", 30)
    store.quota.load(replace(state, version=2, late_microcredits=90))
    assert figures(store) == (30, 90, -20)

    settlement = settle(store, "t1", 40)

    assert charged(settlement) == [(30, 10)]
    assert figures(store) == (0, 120, -20)
    assert charged(settle(store, "t2", 5)) == [(0, 5)]
    assert reserve(store, "t3", 1).left_microcredits == 0


def test_a_settle_with_another_tasks_event_is_refused(store: Store):
    open_account(store)
    with pytest.raises(InvalidValue, match="task_id"):
        store.quota.settle(CUSTOMER, "t1", [usage(store, "t2")])
    with pytest.raises(InvalidValue, match="customer"):
        store.quota.settle("globex", "t1", [usage(store, "t1")])
    with pytest.raises(InvalidValue, match="line"):
        store.quota.settle(CUSTOMER, "t1", [usage(store, "t1"), usage(store, "t1")])


def test_an_ended_hold_is_remembered_for_its_time_and_no_longer(store: Store):
    open_account(store)
    reserve(store, "t1")
    settle(store, "t1", 10)
    settle(store, "t2", 10)

    store.pass_time(RECORD_TTL_SECONDS - 5)
    assert settle(store, "t1", 10).outcome is SettleOutcome.EXISTS
    store.pass_time(10)

    assert store.quota.hold(CUSTOMER, "t1") is None
    assert store.quota.hold(CUSTOMER, "t2") is None
    assert reserve(store, "t1").admission == 1


# -- release ---------------------------------------------------------------------------------------


def test_a_release_gives_everything_back_and_tells_why(store: Store):
    open_account(store, epoch=4)
    reserve(store, "t1", 30)

    outcome = store.quota.release(
        CUSTOMER, "t1", ReleaseCause.HARD_TIME_LIMIT, failure(store, "t1")
    )

    assert outcome is ReleaseOutcome.RELEASED
    assert figures(store) == (0, 0, 100)
    hold = store.quota.hold(CUSTOMER, "t1")
    assert hold is not None
    assert (hold.state, hold.cause) == (HoldState.RELEASED, "hard_time_limit")
    (event,) = store.outbox()
    assert (event.line, event.amount_microcredits) == (f"failed:{SKU}:1", 0)
    assert event.quota_epoch == 4


def test_a_second_release_changes_nothing_and_writes_no_event(store: Store):
    open_account(store)
    reserve(store, "t1", 30)
    store.quota.release(CUSTOMER, "t1", ReleaseCause.EXCEPTION, failure(store, "t1"))
    before = store.raw()

    again = store.quota.release(CUSTOMER, "t1", ReleaseCause.HARD_TIME_LIMIT, failure(store, "t1"))

    assert again is ReleaseOutcome.ENDED_BEFORE
    assert store.raw() == before


@pytest.mark.parametrize("cause", [ReleaseCause.EXCEPTION, ReleaseCause.REVOKED])
def test_a_release_after_the_settle_changes_nothing(store: Store, cause: ReleaseCause):
    open_account(store)
    reserve(store, "t1", 30)
    settle(store, "t1", 20)
    before = store.raw()

    assert store.quota.release(CUSTOMER, "t1", cause, None) is ReleaseOutcome.ENDED_BEFORE
    assert store.raw() == before


def test_a_release_without_any_hold_is_nothing(store: Store):
    before = store.raw()

    outcome = store.quota.release(CUSTOMER, "t1", ReleaseCause.EXCEPTION, failure(store, "t1"))

    assert outcome is ReleaseOutcome.NOTHING
    assert store.raw() == before


def test_a_revoke_that_comes_before_the_hold_leaves_a_tombstone(store: Store):
    open_account(store)

    outcome = store.quota.release(CUSTOMER, "t1", ReleaseCause.REVOKED, failure(store, "t1"))

    assert outcome is ReleaseOutcome.TOMBSTONE
    assert store.outbox() == []
    denied = reserve(store, "t1")
    assert (denied.outcome, denied.reason) == (ReserveOutcome.DENIED, DenialReason.REVOKED)
    assert figures(store) == (0, 0, 100)
    again = store.quota.release(CUSTOMER, "t1", ReleaseCause.REVOKED, None)
    assert again is ReleaseOutcome.TOMBSTONE
    later = store.quota.release(CUSTOMER, "t1", ReleaseCause.EXCEPTION, None)
    assert later is ReleaseOutcome.NOTHING


def test_a_tombstone_denies_even_where_the_balance_is_unknown(store: Store):
    store.quota.release(CUSTOMER, "t1", ReleaseCause.REVOKED, None)

    assert reserve(store, "t1").reason is DenialReason.REVOKED


def test_a_tombstone_is_forgotten_after_its_time(store: Store):
    open_account(store)
    store.quota.release(CUSTOMER, "t1", ReleaseCause.REVOKED, None)
    store.pass_time(RECORD_TTL_SECONDS + 1)

    assert reserve(store, "t1").outcome is ReserveOutcome.HELD


def test_a_task_revoked_while_it_ran_is_not_admitted_again(store: Store):
    open_account(store)
    reserve(store, "t1", 30)

    assert store.quota.release(CUSTOMER, "t1", ReleaseCause.REVOKED, None) is (
        ReleaseOutcome.RELEASED
    )
    assert reserve(store, "t1").reason is DenialReason.REVOKED
    again = store.quota.release(CUSTOMER, "t1", ReleaseCause.REVOKED, None)
    assert again is ReleaseOutcome.ENDED_BEFORE


def test_a_task_revoked_between_two_admissions_is_not_admitted_again(store: Store):
    open_account(store)
    reserve(store, "t1", 30)
    store.quota.release(CUSTOMER, "t1", ReleaseCause.EXCEPTION, None)

    assert store.quota.release(CUSTOMER, "t1", ReleaseCause.REVOKED, None) is (
        ReleaseOutcome.TOMBSTONE
    )
    assert reserve(store, "t1").reason is DenialReason.REVOKED
    hold = store.quota.hold(CUSTOMER, "t1")
    assert hold is not None
    assert (hold.state, hold.admission, hold.cause) == (HoldState.RELEASED, 1, "exception")


def test_only_a_settle_can_charge(store: Store):
    open_account(store)
    reserve(store, "t1", 30)
    with pytest.raises(InvalidValue, match="amount_microcredits"):
        store.quota.release(CUSTOMER, "t1", ReleaseCause.EXCEPTION, usage(store, "t1", 1))
    with pytest.raises(InvalidValue, match="amount_microcredits"):
        store.quota.append(CUSTOMER, usage(store, "t1", 1))
    assert store.outbox() == []


# -- append ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_loaded", [True, False])
def test_a_denial_goes_into_the_outbox_whether_or_not_the_balance_is_known(
    store: Store, is_loaded: bool
):
    if is_loaded:
        open_account(store, epoch=5)

    store.quota.append(CUSTOMER, denial(store, "t1"))

    (event,) = store.outbox()
    assert (event.task_id, event.amount_microcredits) == ("t1", 0)
    assert event.quota_epoch == (5 if is_loaded else 0)


# -- expire ----------------------------------------------------------------------------------------


def test_a_hold_over_time_expires_and_its_credits_are_available_again(store: Store):
    open_account(store)
    reserve(store, "t1", 30)
    assert store.quota.expire(10) == []
    store.pass_time(HOLD_TTL_SECONDS + 1)
    assert figures(store) == (30, 0, 70)

    (expired,) = store.quota.expire(10)

    assert (expired.task_id, expired.customer, expired.sku) == ("t1", CUSTOMER, SKU)
    assert (expired.state, expired.held_microcredits) == (HoldState.EXPIRED, 30)
    assert figures(store) == (0, 0, 100)
    assert store.quota.expire(10) == []
    assert store.quota.open_holds() == []


def test_only_open_holds_over_time_expire(store: Store):
    open_account(store)
    reserve(store, "settled")
    reserve(store, "released")
    reserve(store, "late")
    settle(store, "settled", 10)
    store.quota.release(CUSTOMER, "released", ReleaseCause.EXCEPTION, None)
    store.pass_time(HOLD_TTL_SECONDS + 1)
    reserve(store, "fresh")

    assert [hold.task_id for hold in store.quota.expire(10)] == ["late"]
    assert [hold.task_id for hold in store.quota.open_holds()] == ["fresh"]
    assert figures(store) == (10, 10, 80)


def test_a_sweep_expires_no_more_than_its_limit_and_the_next_ones_the_rest(store: Store):
    customers = [f"customer{number}" for number in range(12)]
    for customer in customers:
        open_account(store, customer=customer)
        for task in ("a", "b", "c"):
            reserve(store, task, 1, customer=customer)
    store.pass_time(HOLD_TTL_SECONDS + 1)

    sizes = [len(store.quota.expire(10)) for _ in range(5)]

    assert sizes == [10, 10, 10, 6, 0]
    assert {view(store, customer).held_microcredits for customer in customers} == {0}


def test_more_holds_of_one_customer_than_one_script_takes_expire_in_one_sweep(store: Store):
    open_account(store, granted_microcredits=1_000)
    for number in range(230):
        reserve(store, f"t{number}", 1)
    store.pass_time(HOLD_TTL_SECONDS + 1)

    assert len(store.quota.expire(500)) == 230
    assert figures(store) == (0, 0, 1_000)


def test_a_settle_after_the_expiry_still_charges(store: Store):
    open_account(store)
    reserve(store, "t1", 30)
    store.pass_time(HOLD_TTL_SECONDS + 1)
    store.quota.expire(10)

    assert settle(store, "t1", 20).outcome is SettleOutcome.WITHOUT_HOLD
    assert figures(store) == (0, 20, 80)
    late = store.quota.release(CUSTOMER, "t1", ReleaseCause.WORKER_LOST, None)
    assert late is ReleaseOutcome.ENDED_BEFORE


def test_a_settle_of_a_hold_over_time_that_no_sweep_has_seen_is_an_ordinary_one(store: Store):
    open_account(store)
    reserve(store, "t1", 30)
    store.pass_time(HOLD_TTL_SECONDS + 1)

    assert settle(store, "t1", 20).outcome is SettleOutcome.SETTLED
    assert store.quota.expire(10) == []


def test_open_holds_are_listed_oldest_expiry_first(store: Store):
    open_account(store)
    open_account(store, customer="globex")
    reserve(store, "third", 1, ttl_seconds=300)
    reserve(store, "first", 1, ttl_seconds=100)
    reserve(store, "second", 1, ttl_seconds=200, customer="globex")

    assert [hold.task_id for hold in store.quota.open_holds()] == ["first", "second", "third"]
    assert [hold.task_id for hold in store.quota.open_holds(CUSTOMER)] == ["first", "third"]
    assert store.quota.open_holds("nobody") == []


@pytest.mark.parametrize("task", ["a|b", "with space", "ünï:{s00}|x", "t" * 300])
def test_a_task_id_is_any_text(store: Store, task: str):
    open_account(store)
    reserve(store, task, 10)
    assert [hold.task_id for hold in store.quota.open_holds()] == [task]
    store.pass_time(HOLD_TTL_SECONDS + 1)

    assert [hold.task_id for hold in store.quota.expire(1)] == [task]
    assert settle(store, task, 5).outcome is SettleOutcome.WITHOUT_HOLD
    assert settle(store, task, 5).outcome is SettleOutcome.EXISTS


# -- large amounts and many threads ----------------------------------------------------------------


def test_amounts_are_exact_up_to_two_to_the_fifty_third(store: Store):
    open_account(store, granted_microcredits=MAX_MICROCREDITS)

    assert reserve(store, "t1", MAX_MICROCREDITS - 1).left_microcredits == 1
    assert reserve(store, "t2", 2).reason is DenialReason.INSUFFICIENT_CREDITS
    assert reserve(store, "t2", 1).outcome is ReserveOutcome.HELD
    assert reserve(store, "t3", 0).outcome is ReserveOutcome.HELD

    settlement = settle(store, "t1", MAX_MICROCREDITS, MAX_MICROCREDITS)

    assert charged(settlement) == [(MAX_MICROCREDITS - 1, 1), (0, MAX_MICROCREDITS)]
    assert figures(store) == (1, MAX_MICROCREDITS - 1, 0)
    assert settle(store, "t1", 0).lines == settlement.lines


def test_two_of_the_largest_amounts_never_pass_a_budget_of_the_largest(store: Store):
    open_account(
        store,
        granted_microcredits=MAX_MICROCREDITS,
        budgets={"*": MAX_MICROCREDITS},
        spent={"*": MAX_MICROCREDITS - 1},
    )

    denied = reserve(store, "t1", 2)

    assert (denied.reason, denied.left_microcredits) == (DenialReason.BUDGET_EXCEEDED, 1)
    assert reserve(store, "t2", 1).outcome is ReserveOutcome.HELD


def test_fifty_threads_never_overspend_one_customer(store: Store):
    open_account(store, granted_microcredits=1_000, budgets={SKU: 700})
    start = threading.Barrier(50)

    def work(thread: int) -> int:
        start.wait(timeout=30)
        admitted = 0
        for number in range(6):
            task = f"{thread}.{number}"
            if reserve(store, task, 7).outcome is ReserveOutcome.HELD:
                admitted += 1
                if number % 3 == 0:
                    settle(store, task, 9)
                elif number % 3 == 1:
                    store.quota.release(CUSTOMER, task, ReleaseCause.EXCEPTION, None)
        return admitted

    with ThreadPoolExecutor(50) as pool:
        admitted = sum(pool.map(work, range(50)))

    account = view(store)
    holds = store.quota.open_holds(CUSTOMER)
    assert admitted >= 100
    assert account.available_microcredits >= 0
    assert account.held_microcredits == sum(hold.held_microcredits for hold in holds)
    assert account.settled_microcredits == sum(
        event.amount_microcredits for event in store.outbox()
    )
    assert account.spent["*"] == account.held_microcredits + account.settled_microcredits


def test_fifty_threads_settling_one_task_charge_it_once(store: Store):
    open_account(store)
    reserve(store, "t1", 30)
    start = threading.Barrier(50)

    def work(thread: int) -> tuple[SettleOutcome, int]:
        start.wait(timeout=30)
        settlement = settle(store, "t1", thread % 30)
        return settlement.outcome, settlement.lines[0].amount_microcredits

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(work, range(50)))

    assert [outcome for outcome, _ in answers].count(SettleOutcome.SETTLED) == 1
    assert len({amount for _, amount in answers}) == 1
    assert len(store.outbox()) == 1
    assert view(store).settled_microcredits == answers[0][1]
