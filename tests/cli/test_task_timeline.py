"""The story of a task, from figures alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import asdict
from support import make_event

from billing.cli.task_timeline import Place, TaskRecords, TimelineStep, timeline
from billing.core.clock import to_ms
from billing.core.errors import DenialReason
from billing.core.reservation import HoldState, HoldView
from billing.core.usage_event import DeadReason, Outcome, UsageEvent, denied_line, failed_line
from billing.usage_log.dead_letters import DeadLetter
from billing.usage_log.receipts import ReceiptLine

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def logged(event: UsageEvent) -> ReceiptLine:
    return ReceiptLine(**asdict(event), logged_at=NOON)


def event(**overrides: object) -> UsageEvent:
    return make_event(metered_at=NOON, task_id="t-1", **overrides)


def denied(reason: str, **overrides: object) -> UsageEvent:
    return event(
        line=denied_line("page-capture", reason),
        outcome=Outcome.DENIED,
        reason=reason,
        quantity=0,
        amount_microcredits=0,
        held_microcredits=0,
        **overrides,
    )


def failed(admission: int) -> UsageEvent:
    return event(
        line=failed_line("page-capture", admission),
        outcome=Outcome.FAILED,
        reason="worker_lost",
        quantity=0,
        amount_microcredits=0,
    )


def hold(state: HoldState, **overrides: object) -> HoldView:
    view = HoldView(
        task_id="t-1",
        customer="acme",
        sku="page-capture",
        state=state,
        admission=1,
        held_microcredits=1_000_000,
        settled_microcredits=0,
        cause="",
        expires_at_ms=to_ms(NOON + timedelta(hours=1)),
    )
    return replace(view, **overrides)  # type: ignore[arg-type] - the fields by name


def letter(**overrides: object) -> DeadLetter:
    known = DeadLetter(
        id=7,
        reason=DeadReason.UNKNOWN_SKU,
        detail="sku='x'",
        event_id=None,
        customer_id="acme",
        task_id="t-1",
        times_seen=1,
        first_seen_at=NOON,
        last_seen_at=NOON,
        replayed_at=None,
    )
    return replace(known, **overrides)  # type: ignore[arg-type] - as above


def told(**known: object) -> list[TimelineStep]:
    return timeline(TaskRecords(task_id="t-1", customer="acme", **known))  # type: ignore[arg-type] - as above


def test_a_task_nobody_knows_has_no_story():
    assert told() == []
    assert not TaskRecords(task_id="t-1", customer=None).anything


@pytest.mark.parametrize(
    "known", [{"logged": [logged(event())]}, {"dead": [letter()]}, {"hold": hold(HoldState.HELD)}]
)
def test_whoever_knows_something_makes_it_known(known: dict[str, object]):
    assert TaskRecords(task_id="t-1", customer=None, **known).anything  # type: ignore[arg-type] - as above


def test_a_logged_event_that_is_also_still_in_the_outbox_is_told_once():
    same = event()
    (line,) = told(logged=[logged(same)], waiting=[same])
    assert line.place is Place.LOG
    assert line.since == NOON


def test_the_words_of_a_success_are_quantity_price_amount_hold_and_cost():
    (line,) = told(
        logged=[logged(event(quantity=3, amount_microcredits=4_500_000, cost_micros=1_500))],
        prices={"page-capture": 1_500_000},
    )
    assert line.words == (
        "admitted and succeeded: 3 x page-capture at 1.5 = 4.5 credits of 1 held, "
        "provider cost 0.0015 USD; its event is in the log since 2026-11-21 12:00:00 UTC"
    )
    assert line.unit_price_microcredits == 1_500_000


def test_a_shortfall_says_what_was_charged_and_why_no_more():
    (line,) = told(
        logged=[logged(event(amount_microcredits=400_000, shortfall_microcredits=600_000))]
    )
    assert "= 1 credits, of which 0.4 were charged: hold and balance covered no more" in line.words


def test_a_run_without_a_hold_says_that_redis_was_away():
    (line,) = told(logged=[logged(event(degraded=True))])
    assert "it ran without a hold while Redis was away" in line.words


def test_a_charged_failure_says_its_cause_and_its_charge():
    (line,) = told(logged=[logged(event(outcome=Outcome.FAILED, reason="exception"))])
    assert "admitted and failed (exception): 1 x page-capture" in line.words


@pytest.mark.parametrize("reason", list(DenialReason))
def test_every_denial_is_told_in_words(reason: DenialReason):
    (line,) = told(waiting=[denied(reason.value)])
    assert line.words.startswith(f"denied: {reason.value}, ")
    assert line.words.endswith(
        "its body did not run and it cost nothing; "
        "its event waits in the outbox for RabbitMQ's confirm"
    )


def test_a_denial_of_a_reason_yet_unknown_is_told_as_it_is():
    (line,) = told(waiting=[denied("phase_of_the_moon")])
    assert line.words.startswith("denied: phase_of_the_moon; its body did not run")


def test_a_denial_that_says_what_was_needed_and_left_is_told_with_it():
    figures = {"needed_microcredits": "2000000", "left_microcredits": "-500000"}
    (line,) = told(waiting=[denied("insufficient_credits", dimensions=figures)])
    assert "(needed 2, left -0.5)" in line.words


def test_an_open_hold_has_no_event_yet():
    (line,) = told(hold=hold(HoldState.HELD))
    assert line.place is Place.HELD
    assert "1 credits are held until 2026-11-21 13:00:00 UTC" in line.words


def test_a_settled_hold_whose_event_is_nowhere_is_on_the_way():
    settled = hold(HoldState.SETTLED, settled_microcredits=400_000)
    (line,) = told(hold=settled)
    assert line.place is Place.ON_THE_WAY
    assert line.words.startswith("settled, 0.4 of 1 credits charged; its event has left the outbox")
    (line,) = told(hold=settled, logged=[logged(event())])
    assert line.place is Place.LOG


def test_an_earlier_denial_is_not_the_event_of_a_settled_hold():
    places = [
        line.place
        for line in told(
            hold=hold(HoldState.SETTLED), logged=[logged(denied("insufficient_credits"))]
        )
    ]
    assert places == [Place.LOG, Place.ON_THE_WAY]


def test_a_released_hold_waits_for_the_failure_of_its_own_admission():
    released = hold(HoldState.RELEASED, admission=2, cause="worker_lost")
    assert [line.place for line in told(hold=released, logged=[logged(failed(2))])] == [Place.LOG]
    lines = told(hold=released, logged=[logged(failed(1))])
    assert [line.place for line in lines] == [Place.LOG, Place.ON_THE_WAY]
    assert "released (worker_lost)" in lines[1].words


def test_an_expired_hold_gave_everything_back():
    (line,) = told(hold=hold(HoldState.EXPIRED))
    assert "the credits were given back and nothing was charged" in line.words


def test_a_tombstone_says_that_the_task_will_not_run():
    (line,) = told(hold=hold(HoldState.RELEASED, admission=0, cause="revoked"))
    assert line.words == "revoked before it was admitted: it will not be admitted any more"


def test_an_open_dead_letter_may_be_the_event_that_is_missing():
    (line,) = told(hold=hold(HoldState.SETTLED), dead=[letter()])
    assert line.place is Place.DEAD_LETTER
    assert line.words == (
        "dead letter #7 (unknown_sku): sku='x'; after repair: billing dead replay 7"
    )


def test_a_replayed_dead_letter_is_no_longer_part_of_the_story():
    assert told(dead=[letter(replayed_at=NOON)]) == []


def test_a_conflicting_dead_letter_is_told_beside_the_line_it_conflicts_with():
    first = event()
    conflict = letter(reason=DeadReason.CONFLICT, event_id=str(first.id))
    places = [line.place for line in told(logged=[logged(first)], dead=[conflict])]
    assert places == [Place.LOG, Place.DEAD_LETTER]
