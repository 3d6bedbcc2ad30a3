from __future__ import annotations

import json
import time

import pytest
from memory_app import CREDIT, Bench, make_bench

from billing.core.errors import NotFound
from workers.billing_header import BillingHeader
from workers.errors import NotMetered, QuotaExceeded
from workers.task import MeteredTask


@pytest.fixture
def bench() -> Bench:
    return make_bench()


def test_a_fixed_task_costs_one_unit(bench: Bench):
    assert bench.app.tasks["fixed"].bill_to("acme").delay("x").get() == "x"
    assert bench.lines == [("fixed", "succeeded", CREDIT)]
    assert bench.balance == (0, CREDIT, 99 * CREDIT)


def test_a_measured_task_holds_the_most_and_settles_what_it_did(bench: Bench):
    bench.app.tasks["measured"].bill_to("acme").delay(3, 20)
    (event,) = bench.container.events
    assert (event.quantity, event.amount_microcredits) == (3, 3 * CREDIT)
    assert event.held_microcredits == 20 * CREDIT
    assert (event.cost_micros, event.subject, event.dimensions) == (30, "site", {"depth": "1"})
    assert bench.balance == (0, 3 * CREDIT, 97 * CREDIT)


def test_several_skus_of_one_run_are_several_lines(bench: Bench):
    bench.app.tasks["two_skus"].bill_to("acme").delay()
    assert bench.lines == [
        ("fixed", "succeeded", CREDIT),
        ("extra", "succeeded", 3 * CREDIT // 4),
    ]
    assert len({event.id for event in bench.container.events}) == 2


def test_a_failure_is_released_and_logged_with_its_provider_cost(bench: Bench):
    with pytest.raises(ValueError, match="no"):
        bench.app.tasks["failing"].bill_to("acme").delay().get()
    assert bench.lines == [("failed:fixed:1", "failed", 0)]
    assert bench.container.events[0].cost_micros == 700
    assert bench.container.events[0].reason == "exception"
    assert bench.balance == (0, 0, 100 * CREDIT)


@pytest.mark.parametrize(
    ("how", "charged", "reason"),
    [
        ("exception", True, "exception"),
        ("soft_time_limit", True, "soft_time_limit"),
        ("exit", True, "exited"),
        ("ignore", False, "ignored"),
        ("reject", False, "rejected"),
    ],
)
def test_the_charge_policy_charges_what_failed_by_itself(
    bench: Bench, how: str, charged: bool, reason: str
):
    task = bench.app.tasks["charging"].bill_to("acme")
    if how == "exit":
        with pytest.raises(SystemExit):
            task.delay(how)
    else:
        task.delay(how)
    line = "charging" if charged else "failed:charging:1"
    assert bench.lines == [(line, "failed", CREDIT if charged else 0)]
    assert bench.container.events[0].reason == reason
    assert bench.balance[0] == 0


def test_a_denied_task_does_not_run_and_says_what_was_left():
    bench = make_bench(credits="1.5")
    task = bench.app.tasks["fixed"].bill_to("acme")
    assert task.delay("first").get() == "first"
    with pytest.raises(QuotaExceeded) as denied:
        task.delay("second").get()
    assert bench.ran == ["first"]
    assert bench.lines == [
        ("fixed", "succeeded", CREDIT),
        ("denied:fixed:insufficient_credits", "denied", 0),
    ]
    assert denied.value.needed_microcredits == CREDIT
    assert denied.value.left_microcredits == CREDIT // 2
    assert "needed 1 credits, left 0.5" in str(denied.value)


def test_quota_exceeded_survives_json():
    error = QuotaExceeded("insufficient_credits", "acme", "fixed", 5, 3)
    again = QuotaExceeded(*json.loads(json.dumps(error.args)))
    assert str(again) == str(error)
    assert (again.reason, again.customer, again.sku) == ("insufficient_credits", "acme", "fixed")


def test_an_unknown_customer_is_denied(bench: Bench):
    with pytest.raises(QuotaExceeded, match="unknown_customer"):
        bench.app.tasks["fixed"].bill_to("nobody").delay("x").get()
    assert bench.ran == []


def test_a_sku_that_is_not_sold_stops_its_task(bench: Bench):
    with pytest.raises(NotFound, match="nothing"):
        bench.app.tasks["no_such_sku"].bill_to("acme").delay().get()
    assert bench.ran == []


def test_retries_keep_their_hold_are_charged_once_and_each_cost_is_told(bench: Bench):
    result = bench.app.tasks["retrying"].bill_to("acme").delay(2)
    assert result.get() == 2
    assert bench.ran == ["retry 0", "retry 1", "retry 2"]
    assert bench.lines == [
        ("retried:fixed:0", "failed", 0),
        ("retried:fixed:1", "failed", 0),
        ("fixed", "succeeded", CREDIT),
    ]
    assert [event.cost_micros for event in bench.container.events] == [500, 500, 500]
    assert bench.balance == (0, CREDIT, 99 * CREDIT)


def test_a_replacement_takes_over_the_hold(bench: Bench):
    bench.app.tasks["replacing"].bill_to("acme").delay()
    assert [line for line in bench.lines if line[1] == "succeeded"] == [
        ("measured", "succeeded", 2 * CREDIT)
    ]
    assert bench.balance == (0, 2 * CREDIT, 98 * CREDIT)


def test_the_same_task_id_is_charged_once(bench: Bench):
    header = BillingHeader("acme", bench.container.clock.now()).to_message()
    for _ in range(3):
        bench.app.tasks["fixed"].apply(("x",), task_id="same", headers={"billing": header})
    assert bench.ran == ["x"] * 3
    assert bench.lines == [("fixed", "succeeded", CREDIT)]


def test_a_deferring_task_cannot_come_back_eagerly_and_is_denied():
    bench = make_bench(credits="0")
    with pytest.raises(QuotaExceeded):
        bench.app.tasks["deferring"].bill_to("acme").delay().get()
    assert bench.lines == [("denied:deferring:insufficient_credits", "denied", 0)]


def test_a_task_whose_gate_was_overridden_does_not_run_for_nothing(bench: Bench):
    def before_start(*_: object) -> None:
        """Forgets to call super()."""

    @bench.app.task(
        shared=False, base=MeteredTask, sku="fixed", name="open", before_start=before_start
    )
    def unweighed() -> None:
        bench.ran.append("open")

    with pytest.raises(NotMetered, match="before_start"):
        unweighed.bill_to("acme").delay().get()
    assert bench.ran == []


@pytest.mark.parametrize("limits", [(7200, None), (None, 7200), (7200, 60), (60, 7200)])
def test_a_hold_outlives_the_longer_of_its_messages_time_limits(
    bench: Bench, limits: tuple[int | None, int | None]
):
    # Celery starts the clock of the hard limit only when the soft one is over.
    fixed = bench.app.tasks["fixed"]
    header = BillingHeader("acme", bench.container.clock.now()).to_message()
    fixed.push_request(
        id="long", timelimit=limits, headers={"billing": header}, called_directly=False
    )
    fixed.before_start("long", ("x",), {})
    fixed.pop_request()

    (hold,) = bench.container.quota.open_holds()
    assert hold.expires_at_ms / 1000 > time.time() + 7200 + 29
