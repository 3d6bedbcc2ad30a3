"""The contract of leases, for every quota store: a lease is a hold that is settled in parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from stores import (
    CUSTOMER,
    HOLD_TTL_SECONDS,
    OTHER_SKU,
    RECORD_TTL_SECONDS,
    SKU,
    MemoryLeases,
    Store,
    StoreMaker,
    account_state,
    as_decided,
    charged,
    figures,
    newer,
    open_account,
    reserve,
    settle,
    usage,
    view,
)

from billing.core.credit_lease import (
    ENDED_SECONDS,
    SHARE,
    BatchSettlement,
    LeasedBatch,
    LeasedRun,
    LeaseGrant,
    LeaseOutcome,
    LeaseRequest,
)
from billing.core.errors import InvalidValue
from billing.core.reservation import (
    SYNC_ONLY,
    HoldState,
    LoadOutcome,
    ReleaseCause,
    ReleaseOutcome,
    ReserveOutcome,
    SettleOutcome,
)
from billing.core.usage_event import UsageEvent

LEASE = "lease:a"
OTHER = "lease:b"


@pytest.fixture
def in_memory() -> StoreMaker:
    return MemoryLeases


def ask(store: Store, number: int = 1, **overrides: object) -> LeaseGrant:
    """Ask for ten more than is kept, of use from one on."""
    fields: dict[str, Any] = {
        "customer": CUSTOMER,
        "sku": SKU,
        "lease_id": LEASE,
        "number": number,
        "keep_microcredits": 0,
        "wish_microcredits": 10,
        "least_microcredits": 1,
        "ttl_seconds": HOLD_TTL_SECONDS,
    }
    return store.quota.lease(LeaseRequest(**(fields | overrides)))


def give_back(store: Store, number: int, keep: int = 0) -> LeaseGrant:
    return ask(store, number, keep_microcredits=keep, wish_microcredits=0, least_microcredits=0)


def run_of(store: Store, task: str, amount: int = 1, promised: int | None = None) -> LeasedRun:
    return LeasedRun(
        promised_microcredits=amount if promised is None else promised,
        events=(usage(store, task, amount),),
    )


def settle_runs(store: Store, *runs: LeasedRun, lease: str = LEASE) -> BatchSettlement:
    batch = LeasedBatch(customer=CUSTOMER, lease_id=lease, runs=runs)
    (settlement,) = store.quota.settle_leased([batch])
    assert isinstance(settlement, BatchSettlement)
    return settlement


def amounts(settlement: BatchSettlement) -> list[list[tuple[int, int]] | str]:
    """Of each run the amount and shortfall of its lines, or that it is a repeat."""
    return [
        "repeat"
        if run.repeat
        else [(line.amount_microcredits, line.shortfall_microcredits) for line in run.lines]
        for run in settlement.runs
    ]


def scarce(store: Store) -> bool:
    return ask(store, lease_id="lease:probe").outcome is LeaseOutcome.SCARCE


# -- asking ----------------------------------------------------------------------------------------


def test_a_lease_is_held_and_known_as_a_hold(store: Store):
    open_account(store, granted_microcredits=800)

    grant = ask(store)

    assert (grant.outcome, grant.granted_microcredits) == (LeaseOutcome.GRANTED, 10)
    assert figures(store) == (10, 0, 790)
    assert view(store).leases == 1
    (hold,) = store.quota.open_holds(CUSTOMER)
    assert (hold.task_id, hold.sku, hold.held_microcredits) == (LEASE, SKU, 10)
    assert (hold.state, hold.admission) == (HoldState.HELD, 1)
    assert abs(hold.expires_at_ms - store.now_ms() - HOLD_TTL_SECONDS * 1000) < 5_000


@pytest.mark.parametrize(
    ("granted", "wish", "least", "expected"),
    [
        (800, 10, 1, 10),
        (800, 500, 1, 100),
        (800, 500, 100, 100),
        (800, 500, 101, None),
        (8, 10, 1, 1),
        (7, 10, 1, None),
        (0, 10, 0, 0),
    ],
)
def test_a_lease_gets_at_most_its_share_and_never_less_than_is_of_use(
    store: Store, granted: int, wish: int, least: int, expected: int | None
):
    open_account(store, granted_microcredits=granted)

    grant = ask(store, wish_microcredits=wish, least_microcredits=least)

    if expected is None:
        assert grant.outcome is LeaseOutcome.SCARCE
        assert store.quota.open_holds() == []
        assert view(store).leases == 0
    else:
        assert (grant.outcome, grant.granted_microcredits) == (LeaseOutcome.GRANTED, expected)
    assert figures(store) == (expected or 0, 0, granted - (expected or 0))


def test_every_holder_makes_the_next_ones_share_smaller(store: Store):
    open_account(store, granted_microcredits=8_000)
    granted = [
        ask(store, lease_id=f"lease:{n}", wish_microcredits=10_000).granted_microcredits
        for n in range(4)
    ]
    assert granted == [1000, 437, 273, 196]
    assert view(store).leases == 4


@pytest.mark.parametrize("budget", ["*", SKU])
def test_a_budget_bounds_a_lease_as_the_balance_does(store: Store, budget: str):
    open_account(store, granted_microcredits=8_000, budgets={budget: 80})
    assert ask(store, wish_microcredits=100).granted_microcredits == 10
    assert view(store).spent == {SKU: 10, "*": 10}
    assert ask(store, 2, wish_microcredits=100).granted_microcredits == 10
    reserve(store, "t", 69)
    assert ask(store, 3).outcome is LeaseOutcome.GRANTED
    reserve(store, "u", 4)
    assert ask(store, 4, wish_microcredits=100).outcome is LeaseOutcome.SCARCE
    assert view(store).spent == {SKU: 73, "*": 73}


def test_a_budget_of_another_sku_does_not(store: Store):
    open_account(store, granted_microcredits=8_000, budgets={OTHER_SKU: 0})
    assert ask(store, wish_microcredits=100).granted_microcredits == 100


def test_a_suspended_customer_gets_none_and_what_is_free_comes_back(store: Store):
    state = open_account(store, granted_microcredits=800)
    ask(store)
    store.quota.load(newer(state, suspended=True, settled_microcredits=SYNC_ONLY))

    assert ask(store, 2, keep_microcredits=3).outcome is LeaseOutcome.SCARCE
    assert figures(store) == (3, 0, 797)
    assert ask(store, lease_id=OTHER).outcome is LeaseOutcome.SCARCE


def test_without_an_account_or_in_a_month_that_is_over_the_balance_is_unknown(store: Store):
    assert ask(store).outcome is LeaseOutcome.UNKNOWN_BALANCE
    open_account(store, granted_microcredits=800, period_end_ms=store.now_ms() + 1_000)
    ask(store, lease_id=OTHER)
    store.pass_time(2)
    assert ask(store).outcome is LeaseOutcome.UNKNOWN_BALANCE
    assert ask(store, 2, lease_id=OTHER, keep_microcredits=4).outcome is (
        LeaseOutcome.UNKNOWN_BALANCE
    )
    assert figures(store) == (4, 0, 796)


# -- becoming larger, smaller, nothing -------------------------------------------------------------


def test_a_request_gives_up_what_was_free_and_is_granted_anew(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)

    again = ask(store, 2, keep_microcredits=4, wish_microcredits=20)

    assert again.granted_microcredits == 20
    assert figures(store) == (24, 0, 776)


def test_the_same_request_again_is_answered_as_before(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)
    ask(store, 2, keep_microcredits=4, wish_microcredits=20)
    before = store.raw()

    assert ask(store, 2, keep_microcredits=4, wish_microcredits=20).granted_microcredits == 20
    assert store.raw() == before
    reserve(store, "others", 770)
    settle_runs(store, run_of(store, "t1", 4))
    assert ask(store, 2, keep_microcredits=4, wish_microcredits=20).granted_microcredits == 20
    assert figures(store) == (790, 4, 6)


def test_a_request_that_was_overtaken_changes_nothing(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)
    ask(store, 3, keep_microcredits=4)
    before = store.raw()

    assert ask(store, 2).outcome is LeaseOutcome.ENDED
    assert store.raw() == before


def test_what_is_kept_is_never_more_than_what_is_held(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)

    ask(store, 2, keep_microcredits=500, wish_microcredits=1)

    assert figures(store) == (11, 0, 789)


def test_a_lease_with_nothing_to_keep_that_wishes_for_nothing_ends(store: Store):
    open_account(store, granted_microcredits=800, budgets={"*": 100})
    ask(store)

    assert give_back(store, 2).outcome is LeaseOutcome.GRANTED

    assert figures(store) == (0, 0, 800)
    assert view(store).leases == 0
    assert view(store).spent == {}
    assert store.quota.open_holds() == []
    hold = store.quota.hold(CUSTOMER, LEASE)
    assert hold is not None
    assert (hold.state, hold.cause) == (HoldState.RELEASED, "returned")
    assert ask(store, 3).outcome is LeaseOutcome.ENDED


def test_a_lease_that_keeps_something_stays_when_it_wishes_for_nothing(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)

    assert give_back(store, 2, keep=3).granted_microcredits == 0

    assert figures(store) == (3, 0, 797)
    assert ask(store, 3, keep_microcredits=3).granted_microcredits == 10


def test_a_lease_given_back_before_its_opening_arrived_is_not_opened(store: Store):
    open_account(store, granted_microcredits=800)
    assert give_back(store, 2).outcome is LeaseOutcome.ENDED

    assert ask(store, 1).outcome is LeaseOutcome.ENDED

    assert figures(store) == (0, 0, 800)
    store.pass_time(ENDED_SECONDS + 1)
    assert store.quota.hold(CUSTOMER, LEASE) is None


def test_a_lease_of_last_month_is_not_made_larger_but_what_it_keeps_stays(store: Store):
    now_ms = store.now_ms()
    state = open_account(
        store, granted_microcredits=800, period_end_ms=now_ms + 1_000, budgets={"*": 500}
    )
    ask(store)
    store.pass_time(2)
    later = account_state(
        store,
        version=2,
        granted_microcredits=800,
        settled_microcredits=SYNC_ONLY,
        period_start_ms=state.period_end_ms,
        budgets={"*": 500},
    )
    assert store.quota.load(later) is LoadOutcome.SYNCED
    assert view(store).spent == {}

    assert ask(store, 2, keep_microcredits=4).outcome is LeaseOutcome.ENDED

    assert figures(store) == (4, 0, 796)
    settle_runs(store, run_of(store, "t", 4))
    assert figures(store) == (0, 4, 796)
    assert view(store).spent == {}, "it was admitted in last month's budget"
    give_back(store, 3)
    assert view(store).leases == 0


@pytest.mark.parametrize(
    "change",
    [
        {"lease_id": "task-1"},
        {"number": 0},
        {"ttl_seconds": 0},
        {"keep_microcredits": -1},
        {"wish_microcredits": 2**53 + 1},
        {"least_microcredits": -1},
    ],
)
def test_a_request_that_cannot_be_right_is_refused(store: Store, change: dict[str, Any]):
    open_account(store, granted_microcredits=800)
    with pytest.raises(InvalidValue, match=next(iter(change))):
        ask(store, **({"number": 1} | change))


# -- settling in parts -----------------------------------------------------------------------------


def test_runs_are_charged_to_what_they_were_promised(store: Store):
    open_account(store, granted_microcredits=800, budgets={"*": 100})
    ask(store)

    settlement = settle_runs(store, run_of(store, "t1", 3), run_of(store, "t2", 4))

    assert amounts(settlement) == [[(3, 0)], [(4, 0)]]
    assert settlement.quota_epoch == 1
    assert figures(store) == (3, 7, 790)
    assert view(store).spent == {SKU: 10, "*": 10}
    assert [(event.task_id, event.amount_microcredits) for event in store.outbox()] == [
        ("t1", 3),
        ("t2", 4),
    ]
    (hold,) = store.quota.open_holds()
    assert hold.held_microcredits == 3


def test_the_decided_events_are_those_of_the_outbox(store: Store):
    open_account(store, granted_microcredits=24)
    ask(store)
    batch = LeasedBatch(
        customer=CUSTOMER, lease_id=LEASE, runs=(run_of(store, "t1", 90, 1), run_of(store, "t2", 2))
    )
    (settlement,) = store.quota.settle_leased([batch])
    assert isinstance(settlement, BatchSettlement)
    assert as_decided(batch, settlement) == store.outbox()
    assert [event.shortfall_microcredits for event in store.outbox()] == [68, 0]


def test_a_run_settled_before_is_left_out(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)
    first = run_of(store, "t1", 3)
    settle_runs(store, first)

    again = settle_runs(store, first, run_of(store, "t2", 4), first)

    assert amounts(again) == ["repeat", [(4, 0)], "repeat"]
    assert figures(store) == (3, 7, 790)
    assert len(store.outbox()) == 2


def test_a_run_settled_under_another_lease_is_left_out_too(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)
    ask(store, lease_id=OTHER)
    run = run_of(store, "t1", 3)
    settle_runs(store, run)

    assert amounts(settle_runs(store, run, lease=OTHER)) == ["repeat"]
    assert figures(store) == (17, 3, 780)


def test_a_settled_run_is_forgotten_as_an_ended_hold_is(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)
    run = run_of(store, "t1", 3)
    settle_runs(store, run)
    store.pass_time(RECORD_TTL_SECONDS + 1)

    assert amounts(settle_runs(store, run)) == [[(3, 0)]]


@pytest.mark.parametrize(
    ("promised", "asked", "expected"),
    [(5, 5, (5, 0)), (5, 3, (3, 0)), (5, 8, (8, 0)), (5, 300, (95, 205)), (50, 8, (8, 0))],
)
def test_beyond_its_promise_a_run_is_charged_from_what_is_available(
    store: Store, promised: int, asked: int, expected: tuple[int, int]
):
    open_account(store, granted_microcredits=100)
    ask(store)  # 10 of 100

    settlement = settle_runs(store, run_of(store, "t1", asked, promised))

    assert amounts(settlement) == [[expected]]
    taken = min(promised, 10)
    assert figures(store) == (10 - taken, expected[0], 100 - 10 + taken - expected[0])


def test_what_one_run_takes_beyond_its_promise_the_next_one_cannot(store: Store):
    open_account(store, granted_microcredits=100)
    ask(store)
    runs = [run_of(store, f"t{n}", 60, 1) for n in range(3)]

    # 1 and 59 of 90, then 1 and 31, then 1 alone.
    assert amounts(settle_runs(store, *runs)) == [[(60, 0)], [(32, 28)], [(1, 59)]]
    assert figures(store) == (7, 93, 0)


def test_budgets_are_a_ceiling_for_what_was_not_promised(store: Store):
    open_account(store, granted_microcredits=800, budgets={SKU: 80})
    ask(store)
    # The budget has 70 left: 5 promised and those, while 5 stay leased.
    assert amounts(settle_runs(store, run_of(store, "t1", 100, 5))) == [[(75, 25)]]
    assert amounts(settle_runs(store, run_of(store, "t2", 9, 5))) == [[(5, 4)]]
    assert view(store).spent == {SKU: 80, "*": 80}


def test_lines_of_other_skus_are_charged_to_what_is_left_of_the_promise_and_beyond(store: Store):
    open_account(store, granted_microcredits=800, budgets={OTHER_SKU: 4})
    ask(store)
    events = (usage(store, "t1", 3), usage(store, "t1", 9, sku=OTHER_SKU))

    settlement = settle_runs(store, LeasedRun(promised_microcredits=5, events=events))

    assert amounts(settlement) == [[(3, 0), (4, 5)]]
    assert view(store).spent == {SKU: 8, OTHER_SKU: 4, "*": 12}
    assert figures(store) == (5, 7, 788)


def test_an_event_of_amount_zero_goes_into_the_outbox_once(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)
    run = run_of(store, "t1", 0)

    assert amounts(settle_runs(store, run, run)) == [[(0, 0)], "repeat"]
    assert figures(store) == (10, 0, 790)
    assert [event.amount_microcredits for event in store.outbox()] == [0]


def test_several_leases_of_several_customers_are_settled_in_one_call(store: Store):
    open_account(store, granted_microcredits=800)
    open_account(store, customer="globex", granted_microcredits=800)
    ask(store)
    ask(store, customer="globex")
    batches = [
        LeasedBatch(
            customer=customer,
            lease_id=LEASE,
            runs=(
                LeasedRun(
                    promised_microcredits=amount,
                    events=(usage(store, f"of {customer}", amount, customer=customer),),
                ),
            ),
        )
        for customer, amount in ((CUSTOMER, 2), ("globex", 5))
    ]
    found = store.quota.settle_leased(batches)
    assert [amounts(each) for each in found if isinstance(each, BatchSettlement)] == [
        [[(2, 0)]],
        [[(5, 0)]],
    ]
    assert view(store).settled_microcredits == 2
    assert view(store, "globex").settled_microcredits == 5


def test_nothing_of_a_wrong_batch_is_settled(store: Store):
    open_account(store, granted_microcredits=800)
    good, wrong = run_of(store, "t1"), run_of(store, "t2", promised=-1)
    empty = LeasedRun(promised_microcredits=1, events=())
    two_tasks = LeasedRun(promised_microcredits=1, events=(*good.events, usage(store, "t3")))
    foreign = LeasedRun(promised_microcredits=1, events=(usage(store, "t4", customer="globex"),))
    for bad in (wrong, empty, two_tasks, foreign):
        with pytest.raises(InvalidValue):
            settle_runs(store, good, bad)
    assert store.outbox() == []


# -- ends and losses -------------------------------------------------------------------------------


def test_what_was_not_settled_comes_back_when_a_lease_expires(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)
    settle_runs(store, run_of(store, "t1", 4))
    store.pass_time(HOLD_TTL_SECONDS + 1)

    (expired,) = store.quota.expire(10)

    assert (expired.task_id, expired.held_microcredits) == (LEASE, 6)
    assert figures(store) == (0, 4, 796)
    assert view(store).leases == 0
    assert ask(store, 2).outcome is LeaseOutcome.ENDED


def test_a_request_keeps_a_lease_open_longer(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)
    store.pass_time(HOLD_TTL_SECONDS - 5)
    ask(store, 2)
    store.pass_time(HOLD_TTL_SECONDS - 5)
    assert store.quota.expire(10) == []


def test_a_run_that_is_settled_after_its_lease_expired_is_charged_as_far_as_credits_go(
    store: Store,
):
    open_account(store, granted_microcredits=800)
    ask(store)
    store.pass_time(HOLD_TTL_SECONDS + 1)
    store.quota.expire(10)
    reserve(store, "other", 798)

    assert amounts(settle_runs(store, run_of(store, "t1", 5))) == [[(2, 3)]]
    assert figures(store) == (798, 2, 0)


def test_a_lease_is_released_as_a_hold_is_and_stays_so(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)
    lost = ReleaseCause.WORKER_LOST
    assert store.quota.release(CUSTOMER, LEASE, lost, None) is ReleaseOutcome.RELEASED
    assert store.quota.release(CUSTOMER, LEASE, lost, None) is ReleaseOutcome.ENDED_BEFORE
    assert figures(store) == (0, 0, 800)
    assert ask(store, 2).outcome is LeaseOutcome.ENDED
    assert view(store).leases == 0


def test_a_rebuilt_account_counts_open_leases_as_open_holds(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)
    ask(store, lease_id=OTHER)
    reserve(store, "task", 30)
    settle_runs(store, run_of(store, "t1", 4))

    rebuilt = account_state(store, epoch=2, granted_microcredits=800, settled_microcredits=4)
    assert store.quota.load(rebuilt) is LoadOutcome.LOADED

    assert figures(store) == (46, 4, 750)
    assert view(store).leases == 2
    assert settle_runs(store, run_of(store, "t2", 6)).quota_epoch == 2
    assert figures(store) == (40, 10, 750)
    give_back(store, 2)
    assert view(store).leases == 1


def test_a_lease_whose_account_is_forgotten_waits_for_it(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)
    store.forget_account(CUSTOMER)

    settlement = settle_runs(store, run_of(store, "t1", 4))

    assert (amounts(settlement), settlement.quota_epoch) == ([[(4, 0)]], 0)
    assert ask(store, 2, keep_microcredits=1).outcome is LeaseOutcome.UNKNOWN_BALANCE
    open_account(store, epoch=2, granted_microcredits=800, settled_microcredits=4)
    assert figures(store) == (1, 4, 795)
    assert give_back(store, 3).outcome is LeaseOutcome.GRANTED
    assert figures(store) == (0, 4, 796)
    assert view(store).leases == 0


def test_after_a_loss_of_all_data_nothing_is_leased_and_usage_is_charged_without_a_lease(
    store: Store,
):
    open_account(store, granted_microcredits=800)
    ask(store)
    store.lose_everything()

    assert ask(store, 2, keep_microcredits=4).outcome is LeaseOutcome.ENDED
    lost = settle_runs(store, run_of(store, "t1", 4))
    assert (amounts(lost), lost.quota_epoch) == ([[(4, 0)]], 0)
    open_account(store, epoch=2, granted_microcredits=3)
    assert amounts(settle_runs(store, run_of(store, "t2", 5))) == [[(3, 2)]]
    assert figures(store) == (0, 3, 0)


def test_late_usage_below_zero_does_not_take_back_a_promise_nor_give_more(store: Store):
    state = open_account(store, granted_microcredits=80)
    ask(store)
    late = newer(state, late_microcredits=100, settled_microcredits=SYNC_ONLY)
    store.quota.load(late)
    assert figures(store) == (10, 100, -30)

    assert amounts(settle_runs(store, run_of(store, "t1", 9, 4), run_of(store, "t2", 5))) == [
        [(4, 5)],
        [(5, 0)],
    ]
    assert ask(store, 2, keep_microcredits=1).outcome is LeaseOutcome.SCARCE


# -- together with the exact way -------------------------------------------------------------------


def mark_of(event: UsageEvent) -> dict[str, Any]:
    return {"mark": event.id}


def test_a_task_that_a_lease_settled_is_known_to_a_marked_reserve_and_settle(store: Store):
    open_account(store, granted_microcredits=80)
    ask(store)
    event = usage(store, "t1", 4)
    settle_runs(store, LeasedRun(promised_microcredits=4, events=(event,)))
    reserve(store, "all the rest", 70)

    again = reserve(store, "t1", 4, mark=event.id)
    assert again.outcome is ReserveOutcome.ALREADY_SETTLED
    settlement = store.quota.settle(CUSTOMER, "t1", [event], marked=True)
    assert (settlement.outcome, settlement.lines) == (SettleOutcome.EXISTS, ())
    assert figures(store) == (76, 4, 0)
    assert len(store.outbox()) == 1


def test_a_task_settled_by_itself_is_known_to_a_lease(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)
    event = usage(store, "t1", 4)
    assert reserve(store, "t1", 4, mark=event.id).outcome is ReserveOutcome.HELD
    assert charged(store.quota.settle(CUSTOMER, "t1", [event], marked=True)) == [(4, 0)]

    run = LeasedRun(promised_microcredits=4, events=(event,))
    assert amounts(settle_runs(store, run)) == ["repeat"]
    again = store.quota.settle(CUSTOMER, "t1", [event], marked=True)
    assert (again.outcome, charged(again)) == (SettleOutcome.EXISTS, [(4, 0)])
    assert figures(store) == (10, 4, 786)


def test_a_hold_whose_task_a_lease_settled_meanwhile_is_given_back(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)
    event = usage(store, "t1", 4)
    reserve(store, "t1", 4, mark=event.id)
    settle_runs(store, LeasedRun(promised_microcredits=4, events=(event,)))

    settlement = store.quota.settle(CUSTOMER, "t1", [event], marked=True)

    assert settlement.outcome is SettleOutcome.EXISTS
    assert figures(store) == (6, 4, 790)
    assert store.quota.open_holds()[0].task_id == LEASE


def test_an_unmarked_task_leaves_no_mark(store: Store):
    open_account(store, granted_microcredits=800)
    ask(store)
    settle(store, "t1", 4)
    run = run_of(store, "t1", 4)
    # Nobody said that leases settle tasks of this SKU too.
    assert amounts(settle_runs(store, replace(run, events=(usage(store, "t1", 4),)))) == [[(4, 0)]]


def test_leases_never_take_more_than_their_share_however_often_they_ask(store: Store):
    open_account(store, granted_microcredits=1_000)
    numbers = dict.fromkeys((LEASE, OTHER, "lease:c"), 0)
    for _ in range(30):
        for lease in numbers:
            numbers[lease] += 1
            ask(store, numbers[lease], lease_id=lease, wish_microcredits=1_000)
    held, settled, available = figures(store)
    assert held + settled + available == 1_000
    assert held <= 1_000 / SHARE
