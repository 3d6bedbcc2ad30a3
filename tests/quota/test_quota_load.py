"""The contract of the quota store, continued: accounts from PostgreSQL, budgets and months."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from stores import (
    CUSTOMER,
    DAY_MS,
    HOLD_TTL_SECONDS,
    OTHER_SKU,
    SKU,
    Store,
    StoreMaker,
    account_state,
    charged,
    figures,
    newer,
    open_account,
    reserve,
    settle,
    usage,
    view,
)

from billing.core.clock import from_ms
from billing.core.credits import MAX_MICROCREDITS
from billing.core.errors import DenialReason, InvalidValue
from billing.core.reservation import (
    SYNC_ONLY,
    LoadOutcome,
    ReleaseCause,
    ReserveOutcome,
)

# -- load ------------------------------------------------------------------------------------------


def test_a_loaded_account_is_what_was_told(store: Store):
    state = account_state(
        store,
        epoch=4,
        version=9,
        granted_microcredits=1_000,
        settled_microcredits=200,
        late_microcredits=30,
        budgets={"*": 500, SKU: 0},
        spent={"*": 40, SKU: 25, OTHER_SKU: 15},
    )

    assert store.quota.load(state) is LoadOutcome.LOADED

    account = view(store)
    assert (account.epoch, account.version, account.suspended) == (4, 9, False)
    assert (account.granted_microcredits, account.held_microcredits) == (1_000, 0)
    assert (account.settled_microcredits, account.late_microcredits) == (230, 30)
    assert account.available_microcredits == 770
    assert account.period_start_ms == state.period_start_ms
    assert account.period_end_ms == state.period_end_ms
    assert account.budgets == {"*": 500, SKU: 0}
    assert account.spent == {"*": 40, SKU: 25, OTHER_SKU: 15}


@pytest.mark.parametrize(("epoch", "version"), [(3, 7), (3, 6), (2, 99)])
def test_what_is_not_newer_is_stale_and_changes_nothing(store: Store, epoch: int, version: int):
    state = open_account(store, epoch=3, version=7)
    before = store.raw()
    other = replace(state, epoch=epoch, version=version, granted_microcredits=5, suspended=True)

    assert store.quota.load(other) is LoadOutcome.STALE
    assert store.raw() == before


def test_a_newer_version_brings_grants_status_and_budgets_and_keeps_what_was_counted(store: Store):
    state = open_account(store, budgets={"*": 80, OTHER_SKU: 5}, spent={"*": 10, SKU: 10})
    reserve(store, "t1", 30)
    settle(store, "t1", 20)
    reserve(store, "t2", 15)

    outcome = store.quota.load(
        newer(
            state,
            granted_microcredits=500,
            suspended=True,
            budgets={SKU: 70},
            settled_microcredits=SYNC_ONLY,
            spent={"*": 999},
        )
    )

    assert outcome is LoadOutcome.SYNCED
    account = view(store)
    assert (account.granted_microcredits, account.suspended) == (500, True)
    assert account.budgets == {SKU: 70}
    assert account.spent == {"*": 45, SKU: 45}
    assert figures(store) == (15, 20, 465)


def test_late_usage_is_added_once_however_often_it_is_told(store: Store):
    state = open_account(store, late_microcredits=5)
    assert figures(store) == (0, 5, 95)
    later = newer(state, late_microcredits=12, settled_microcredits=SYNC_ONLY)

    assert store.quota.load(later) is LoadOutcome.SYNCED
    assert store.quota.load(later) is LoadOutcome.STALE
    assert figures(store) == (0, 12, 88)

    assert store.quota.load(newer(later, late_microcredits=12)) is LoadOutcome.SYNCED
    assert figures(store) == (0, 12, 88)


def test_what_was_counted_twice_is_taken_back_once_however_often_it_is_told(store: Store):
    state = open_account(store, late_microcredits=30)
    reserve(store, "t1", 20)
    settle(store, "t1", 20)
    assert figures(store) == (0, 50, 50)
    back = newer(state, late_microcredits=-15, settled_microcredits=SYNC_ONLY)

    assert store.quota.load(back) is LoadOutcome.SYNCED
    assert store.quota.load(back) is LoadOutcome.STALE

    assert figures(store) == (0, 5, 95)


def test_versions_that_overtake_each_other_end_at_the_newest(store: Store):
    state = open_account(store)
    second = newer(state, late_microcredits=10)
    third = newer(second, late_microcredits=25)

    assert store.quota.load(third) is LoadOutcome.SYNCED
    assert store.quota.load(second) is LoadOutcome.STALE
    assert figures(store) == (0, 25, 75)


def test_late_usage_may_take_the_balance_below_zero_and_nothing_is_admitted_until_it_is_paid(
    store: Store,
):
    state = open_account(store)
    late = newer(state, late_microcredits=130)
    store.quota.load(late)

    assert figures(store) == (0, 130, -30)
    assert reserve(store, "t1", 1).reason is DenialReason.INSUFFICIENT_CREDITS
    store.quota.load(newer(late, granted_microcredits=140))
    assert reserve(store, "t1", 10).outcome is ReserveOutcome.HELD


def test_a_new_epoch_replaces_the_figures_and_open_holds_stay_held(store: Store):
    state = open_account(store, spent={"*": 1, SKU: 1})
    reserve(store, "open", 30)
    reserve(store, "other", 5, sku=OTHER_SKU)
    reserve(store, "settled", 20)
    settle(store, "settled", 20)

    rebuilt = replace(
        state,
        epoch=2,
        version=2,
        settled_microcredits=40,
        spent={"*": 40, SKU: 40},
        had_usage=True,
    )
    assert store.quota.load(rebuilt) is LoadOutcome.LOADED

    assert figures(store) == (35, 40, 25)
    assert view(store).spent == {"*": 75, SKU: 70, OTHER_SKU: 5}
    settle(store, "open", 10)
    assert figures(store) == (5, 50, 45)


def test_a_lost_account_comes_back_with_its_open_holds(store: Store):
    state = open_account(store)
    open_account(store, customer="globex")
    reserve(store, "t1", 30)
    reserve(store, "t2", 25, customer="globex")
    store.forget_account(CUSTOMER)

    assert store.quota.load(replace(state, epoch=2)) is LoadOutcome.LOADED

    assert figures(store) == (30, 0, 70)
    assert view(store).spent == {"*": 30, SKU: 30}
    store.quota.release(CUSTOMER, "t1", ReleaseCause.EXCEPTION, None)
    assert figures(store) == (0, 0, 100)
    assert view(store).spent == {}


def test_holds_that_ended_while_the_account_was_lost_do_not_come_back(store: Store):
    state = open_account(store)
    for task in ("released", "expired", "open"):
        reserve(store, task, 10, ttl_seconds=HOLD_TTL_SECONDS if task == "expired" else 10_000)
    store.forget_account(CUSTOMER)
    store.quota.release(CUSTOMER, "released", ReleaseCause.EXCEPTION, None)
    store.pass_time(HOLD_TTL_SECONDS + 1)
    assert len(store.quota.expire(10)) == 1

    store.quota.load(replace(state, epoch=2))

    assert figures(store) == (10, 0, 90)


def test_a_state_that_can_only_sync_never_fills_a_missing_account(store: Store):
    state = account_state(store, epoch=3, settled_microcredits=SYNC_ONLY)

    assert store.quota.load(state) is LoadOutcome.STALE
    assert store.quota.account(CUSTOMER) is None


def test_an_account_behind_the_fence_is_forgotten_so_that_it_gets_rebuilt(store: Store):
    state = open_account(store, epoch=3)
    reserve(store, "t1", 30)

    ahead = replace(state, epoch=4, version=9, settled_microcredits=SYNC_ONLY)
    assert store.quota.load(ahead) is LoadOutcome.STALE

    assert reserve(store, "t2").outcome is ReserveOutcome.UNKNOWN_BALANCE
    assert store.quota.load(replace(state, epoch=5, version=10)) is LoadOutcome.LOADED
    assert figures(store) == (30, 0, 70)


@pytest.mark.parametrize(
    "wrong",
    [
        {"granted_microcredits": -1},
        {"granted_microcredits": MAX_MICROCREDITS + 1},
        {"late_microcredits": -MAX_MICROCREDITS - 1},
        {"settled_microcredits": -2},
        {"settled_microcredits": MAX_MICROCREDITS, "late_microcredits": 1},
        {"budgets": {"*": -1}},
        {"spent": {SKU: MAX_MICROCREDITS + 1}},
        {"period_end_ms": 0},
    ],
)
def test_figures_that_the_store_could_not_hold_exactly_are_refused(
    store: Store, wrong: dict[str, object]
):
    with pytest.raises(InvalidValue):
        store.quota.load(account_state(store, **wrong))
    assert store.quota.account(CUSTOMER) is None


# -- quarantine ------------------------------------------------------------------------------------


def test_after_a_loss_an_account_with_usage_waits_for_events_on_their_way(make_store: StoreMaker):
    store = make_store(quarantine_seconds=5)
    state = account_state(store, had_usage=True)

    assert store.quota.load(state) is LoadOutcome.QUARANTINED
    assert reserve(store, "t1").outcome is ReserveOutcome.UNKNOWN_BALANCE
    store.pass_time(4)
    assert store.quota.load(state) is LoadOutcome.QUARANTINED
    store.pass_time(1.1)
    assert store.quota.load(state) is LoadOutcome.LOADED
    assert reserve(store, "t1").outcome is ReserveOutcome.HELD


def test_a_customer_without_any_usage_is_not_kept_waiting(make_store: StoreMaker):
    store = make_store(quarantine_seconds=5)

    assert store.quota.load(account_state(store, had_usage=False)) is LoadOutcome.LOADED


def test_an_account_that_is_there_is_rebuilt_without_waiting(make_store: StoreMaker):
    store = make_store(quarantine_seconds=5)
    state = open_account(store, had_usage=False)

    assert store.quota.load(replace(state, epoch=2, had_usage=True)) is LoadOutcome.LOADED


def test_the_quarantine_begins_anew_with_the_next_loss(make_store: StoreMaker):
    store = make_store(quarantine_seconds=5)
    state = account_state(store, had_usage=True)
    store.quota.load(state)
    store.pass_time(6)
    assert store.quota.load(state) is LoadOutcome.LOADED

    store.lose_everything()

    assert reserve(store, "t1").outcome is ReserveOutcome.UNKNOWN_BALANCE
    assert store.quota.load(replace(state, epoch=2)) is LoadOutcome.QUARANTINED


# -- budgets ---------------------------------------------------------------------------------------


def test_a_budget_over_all_skus_counts_every_one_of_them(store: Store):
    open_account(store, granted_microcredits=1_000, budgets={"*": 50})
    reserve(store, "t1", 20)
    reserve(store, "t2", 20, sku=OTHER_SKU)

    denied = reserve(store, "t3", 11)

    assert denied.reason is DenialReason.BUDGET_EXCEEDED
    assert denied.left_microcredits == 10
    assert reserve(store, "t3", 10).outcome is ReserveOutcome.HELD


def test_a_budget_of_one_sku_leaves_the_others_alone(store: Store):
    open_account(store, granted_microcredits=1_000, budgets={SKU: 25}, spent={SKU: 5, "*": 5})
    reserve(store, "t1", 15)

    denied = reserve(store, "t2", 6)

    assert denied.reason is DenialReason.SKU_BUDGET_EXCEEDED
    assert denied.left_microcredits == 5
    assert reserve(store, "t3", 500, sku=OTHER_SKU).outcome is ReserveOutcome.HELD


def test_the_balance_is_named_before_the_budgets_and_the_wider_budget_first(store: Store):
    open_account(store, granted_microcredits=10, budgets={"*": 5, SKU: 2})

    assert reserve(store, "t1", 11).reason is DenialReason.INSUFFICIENT_CREDITS
    assert reserve(store, "t1", 6).reason is DenialReason.BUDGET_EXCEEDED
    assert reserve(store, "t1", 3).reason is DenialReason.SKU_BUDGET_EXCEEDED
    assert reserve(store, "t1", 2).outcome is ReserveOutcome.HELD


def test_a_budget_lowered_below_what_is_spent_leaves_nothing(store: Store):
    state = open_account(store, budgets={"*": 50})
    reserve(store, "t1", 40)
    store.quota.load(newer(state, budgets={"*": 30}))

    denied = reserve(store, "t2", 1)

    assert (denied.reason, denied.left_microcredits) == (DenialReason.BUDGET_EXCEEDED, 0)


def test_what_is_given_back_is_no_longer_spent(store: Store):
    open_account(store, granted_microcredits=1_000, budgets={"*": 50})
    reserve(store, "settled", 20)
    reserve(store, "released", 20)
    settle(store, "settled", 5)
    store.quota.release(CUSTOMER, "released", ReleaseCause.EXCEPTION, None)
    reserve(store, "expired", 45)
    store.pass_time(HOLD_TTL_SECONDS + 1)
    store.quota.expire(10)

    assert view(store).spent == {"*": 5, SKU: 5}
    assert reserve(store, "next", 45).outcome is ReserveOutcome.HELD


def test_each_line_counts_under_its_own_sku(store: Store):
    open_account(store, granted_microcredits=1_000)
    reserve(store, "t1", 50)

    settle(store, "t1", 20, 70)

    assert view(store).spent == {"*": 90, SKU: 20, OTHER_SKU: 70}


@pytest.mark.parametrize(
    ("budgets", "charge"),
    [({"*": 20}, (20, 70)), ({SKU: 15}, (15, 75)), ({"*": 40, SKU: 12}, (12, 78)), ({}, (90, 0))],
)
def test_a_budget_is_a_ceiling_for_what_exceeds_the_hold(
    store: Store, budgets: dict[str, int], charge: tuple[int, int]
):
    open_account(store, granted_microcredits=1_000, budgets=budgets)
    reserve(store, "t1", 10)

    assert charged(settle(store, "t1", 90)) == [charge]

    account = view(store)
    assert account.spent == {"*": charge[0], SKU: charge[0]}
    assert account.settled_microcredits == charge[0]


def test_what_was_held_is_charged_although_the_budget_was_lowered_since(store: Store):
    state = open_account(store, granted_microcredits=1_000, budgets={"*": 50})
    reserve(store, "t1", 30)
    store.quota.load(newer(state, budgets={"*": 5}))

    assert charged(settle(store, "t1", 40)) == [(30, 10)]


def test_the_lines_of_one_task_share_the_budget_over_all(store: Store):
    open_account(store, granted_microcredits=1_000, budgets={"*": 25, OTHER_SKU: 8})
    reserve(store, "t1", 10)

    assert charged(settle(store, "t1", 10, 20, 20)) == [(10, 0), (8, 12), (7, 13)]
    assert view(store).spent == {"*": 25, SKU: 10, OTHER_SKU: 8, "third": 7}


def test_usage_without_a_hold_is_charged_within_the_budget(store: Store):
    open_account(store, granted_microcredits=1_000, budgets={"*": 6})

    assert charged(settle(store, "t1", 10)) == [(6, 4)]


def test_a_hold_grows_only_as_far_as_the_budget_goes(store: Store):
    open_account(store, granted_microcredits=1_000, budgets={SKU: 50})
    reserve(store, "t1", 30)

    denied = reserve(store, "t1", 51)

    assert denied.reason is DenialReason.SKU_BUDGET_EXCEEDED
    assert (denied.left_microcredits, denied.held_microcredits) == (20, 30)
    assert reserve(store, "t1", 50).outcome is ReserveOutcome.ADJUSTED
    assert view(store).spent == {"*": 50, SKU: 50}
    assert reserve(store, "t1", 5).outcome is ReserveOutcome.ADJUSTED
    assert view(store).spent == {"*": 5, SKU: 5}


def test_a_hold_shrinks_even_over_a_budget_that_is_used_up(store: Store):
    state = open_account(store, granted_microcredits=1_000)
    reserve(store, "t1", 30)
    store.quota.load(newer(state, budgets={"*": 0, SKU: 0}, granted_microcredits=0))

    assert reserve(store, "t1", 20).outcome is ReserveOutcome.ADJUSTED
    assert figures(store) == (20, 0, -20)


def test_a_task_replaced_by_another_ones_sku_moves_its_hold(store: Store):
    open_account(store, budgets={OTHER_SKU: 25})
    reserve(store, "t1", 30)

    denied = reserve(store, "t1", 30, sku=OTHER_SKU)
    assert denied.reason is DenialReason.SKU_BUDGET_EXCEEDED
    assert view(store).spent == {"*": 30, SKU: 30}

    moved = reserve(store, "t1", 25, sku=OTHER_SKU)
    assert (moved.outcome, moved.admission) == (ReserveOutcome.ADJUSTED, 1)
    assert view(store).spent == {"*": 25, OTHER_SKU: 25}
    store.quota.release(CUSTOMER, "t1", ReleaseCause.EXCEPTION, None)
    assert view(store).spent == {}


def test_usage_without_a_hold_counts_into_the_month_it_was_metered_in(store: Store):
    state = open_account(store)
    before = from_ms(state.period_start_ms) - timedelta(milliseconds=1)

    store.quota.settle(CUSTOMER, "old", [usage(store, "old", 10, metered_at=before)])
    assert view(store).spent == {}
    first_instant = from_ms(state.period_start_ms)
    store.quota.settle(CUSTOMER, "new", [usage(store, "new", 15, metered_at=first_instant)])

    end = from_ms(state.period_end_ms)
    store.quota.settle(CUSTOMER, "ahead", [usage(store, "ahead", 20, metered_at=end)])

    assert view(store).spent == {"*": 15, SKU: 15}
    assert figures(store) == (0, 45, 55)


# -- months ----------------------------------------------------------------------------------------


def _ending(store: Store, **overrides: object) -> dict[str, object]:
    """A period that is over in a minute."""
    now_ms = store.now_ms()
    return {"period_start_ms": now_ms - DAY_MS, "period_end_ms": now_ms + 60_000, **overrides}


def _next_period(store: Store) -> dict[str, int]:
    return {"period_start_ms": store.now_ms() - 1_000, "period_end_ms": store.now_ms() + DAY_MS}


def test_when_the_month_is_over_the_balance_is_unknown_until_the_next_is_told(store: Store):
    state = open_account(store, **_ending(store))
    reserve(store, "before", 10)
    store.pass_time(61)

    assert reserve(store, "after").outcome is ReserveOutcome.UNKNOWN_BALANCE
    assert reserve(store, "before", 10).outcome is ReserveOutcome.EXISTS

    # The month ends without a new version.
    turned = replace(state, settled_microcredits=SYNC_ONLY, **_next_period(store))
    assert store.quota.load(turned) is LoadOutcome.SYNCED
    assert store.quota.load(turned) is LoadOutcome.STALE
    assert reserve(store, "after").outcome is ReserveOutcome.HELD


def test_a_new_month_begins_with_what_the_log_says_and_the_balance_goes_on(store: Store):
    state = open_account(store, **_ending(store), budgets={"*": 50})
    reserve(store, "settled", 40)
    settle(store, "settled", 40)
    store.pass_time(61)

    store.quota.load(replace(state, spent={"*": 3, SKU: 3}, **_next_period(store)))

    assert view(store).spent == {"*": 3, SKU: 3}
    assert figures(store) == (0, 40, 60)
    assert reserve(store, "t2", 48).reason is DenialReason.BUDGET_EXCEEDED
    assert reserve(store, "t2", 47).outcome is ReserveOutcome.HELD


@pytest.mark.parametrize("end", ["settle", "release", "expire", "adjust"])
def test_a_hold_of_last_month_does_not_touch_this_months_spent(store: Store, end: str):
    state = open_account(store, **_ending(store), budgets={"*": 50})
    reserve(store, "t1", 40)
    store.pass_time(HOLD_TTL_SECONDS + 1)
    store.quota.load(newer(state, **_next_period(store)))
    assert view(store).spent == {}

    if end == "settle":
        settle(store, "t1", 45)
    elif end == "release":
        store.quota.release(CUSTOMER, "t1", ReleaseCause.EXCEPTION, None)
    elif end == "expire":
        assert len(store.quota.expire(10)) == 1
    else:
        assert reserve(store, "t1", 60).outcome is ReserveOutcome.ADJUSTED

    assert view(store).spent == {}
    held, settled = {"settle": (0, 45), "adjust": (60, 0)}.get(end, (0, 0))
    assert figures(store) == (held, settled, 100 - held - settled)
    # Nor does a rebuild count it into this month.
    this_month = _next_period(store) | {"period_start_ms": view(store).period_start_ms}
    store.quota.load(replace(state, epoch=2, settled_microcredits=settled, **this_month))
    assert view(store).spent == {}


def test_a_state_read_before_the_month_turned_brings_its_news_and_not_its_month(store: Store):
    state = open_account(store, **_ending(store))
    store.pass_time(61)
    turned = replace(state, **_next_period(store))
    store.quota.load(turned)
    ended = {"period_end_ms": store.now_ms() - 1_000}

    outcome = store.quota.load(newer(state, granted_microcredits=700, spent={"*": 9}, **ended))

    assert outcome is LoadOutcome.SYNCED
    account = view(store)
    assert account.granted_microcredits == 700
    assert account.period_end_ms == turned.period_end_ms
    assert account.spent == {}


def test_a_months_end_told_too_early_changes_nothing(store: Store):
    state = open_account(store, **_ending(store))
    before = store.raw()

    assert store.quota.load(replace(state, **_next_period(store))) is LoadOutcome.STALE
    assert store.raw() == before


def test_a_customer_who_changes_the_zone_and_back_has_every_hold_counted_where_it_belongs(
    store: Store,
):
    state = open_account(store)
    reserve(store, "t1", 30)
    elsewhere = newer(
        state,
        period_start_ms=state.period_start_ms - 3_600_000,
        period_end_ms=state.period_end_ms - 3_600_000,
    )
    store.quota.load(elsewhere)
    assert view(store).spent == {}

    store.quota.load(replace(state, version=3))

    assert view(store).spent == {"*": 30, SKU: 30}
    assert charged(settle(store, "t1", 12)) == [(12, 0)]
    assert view(store).spent == {"*": 12, SKU: 12}
