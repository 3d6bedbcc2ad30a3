from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta

import pytest

from billing.core.clock import ManualClock, to_ms
from billing.core.credits import parse_credits
from billing.core.errors import DenialReason
from billing.core.event_ids import event_id
from billing.core.reservation import AccountState, HoldRequest, ReleaseCause
from billing.core.usage_event import Outcome, UsageEvent, usage_line
from billing.quota.memory_store import MemoryQuotaStore
from lab.demo.pages import LIGHT_PAGES, SEARCH_SEEDS
from lab.demo.scenario import (
    CUSTOMERS,
    FORENSIC,
    PATIENT,
    SKUS,
    Batch,
    Call,
    Places,
    Way,
    batches,
    interleaved,
    tasks_of,
    waves,
)

PLACES = Places(site="http://site", difficult="http://difficult", nowhere="http://nowhere")


@pytest.fixture
def planned() -> list[Batch]:
    return batches(PLACES)


def calls(planned: list[Batch]) -> list[Call]:
    return [call for batch in planned for call in batch.calls]


def test_five_customers_submit_at_least_a_thousand_tasks(planned: list[Batch]):
    assert tasks_of(planned) == {plan.id: plan.expected.tasks for plan in CUSTOMERS}
    assert len(CUSTOMERS) == 5
    assert tasks_of(planned).total() >= 1000


def test_the_habits_are_those_that_were_asked_for(planned: list[Batch]):
    by_id = {plan.id: plan for plan in CUSTOMERS}
    assert by_id["atlas"].expected.succeeded >= 700
    deep = [call for call in calls(planned) if call.task == FORENSIC and "borealis" in call.urls[0]]
    assert 8 <= len(deep) <= 12
    assert set(by_id["corvus"].expected.denied) == {DenialReason.INSUFFICIENT_CREDITS}
    assert set(by_id["delphi"].budgets) == {"*", "premium-proxy-search"}
    assert by_id["elbrus"].expected.failed > by_id["elbrus"].expected.succeeded


def test_every_way_to_submit_a_retry_and_a_time_limit_are_used(planned: list[Batch]):
    assert {batch.way for batch in planned} == set(Way)
    assert any(call.task == PATIENT for call in calls(planned))
    assert any(call.soft_time_limit for call in calls(planned))


def test_no_two_tasks_ask_for_the_same_url(planned: list[Batch]):
    urls = Counter(url for call in calls(planned) for url in call.urls)
    assert [url for url, times in urls.items() if times > 1] == []


def test_only_pages_that_are_known_to_be_light_are_captured(planned: list[Batch]):
    pages = {url.partition("?")[0] for call in calls(planned) for url in call.urls}
    named = {page.removeprefix("http://site/") for page in pages if page.startswith("http://site")}
    assert named <= {f"{name}.html" for name in (*LIGHT_PAGES, *SEARCH_SEEDS)}


def test_the_same_places_give_the_same_batches(planned: list[Batch]):
    assert batches(PLACES) == planned


def test_interleaving_keeps_every_call_and_every_group_whole(planned: list[Batch]):
    for wave in waves(planned):
        mixed = interleaved(wave)
        assert Counter(url for call in calls(mixed) for url in call.urls) == Counter(
            url for call in calls(wave) for url in call.urls
        )
        whole = {Way.GROUP, Way.CHORD}
        assert [b for b in mixed if b.way in whole] == [b for b in wave if b.way in whole]


def test_interleaving_lets_nobody_wait_for_all_of_anothers_tasks(planned: list[Batch]):
    first_wave = interleaved(waves(planned)[0])
    begun = [batch.customer for batch in first_wave[:25]]
    assert set(begun) == {plan.id for plan in CUSTOMERS}


def test_waves_come_in_order(planned: list[Batch]):
    assert [{batch.wave for batch in wave} for wave in waves(planned)] == [{1}, {2}]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_expected_comes_about_in_whatever_order_the_tasks_run(
    planned: list[Batch], clock: ManualClock, seed: int
):
    quota = stocked(clock)
    order = random.Random(seed)
    ended: dict[str, Counter[str]] = {plan.id: Counter() for plan in CUSTOMERS}
    number = 0
    for wave in waves(planned):
        asked = [(batch.customer, call) for batch in wave for call in batch.calls]
        order.shuffle(asked)
        # Three at a time, as the worker's processes do: holds overlap.
        for start in range(0, len(asked), 3):
            group = [
                (f"task-{number + i}", *each) for i, each in enumerate(asked[start : start + 3])
            ]
            number += len(group)
            held = [(task, who, call, reserve(quota, task, who, call)) for task, who, call in group]
            for task, who, call, reason in held:
                ended[who][reason or finish(quota, clock, task, who, call)] += 1
    for plan in CUSTOMERS:
        expected = plan.expected
        wanted = {"succeeded": expected.succeeded, "failed": expected.failed}
        wanted |= {reason.value: count for reason, count in expected.denied.items()}
        assert ended[plan.id] == {name: count for name, count in wanted.items() if count}


def stocked(clock: ManualClock) -> MemoryQuotaStore:
    quota = MemoryQuotaStore(clock)
    for plan in CUSTOMERS:
        state = AccountState(
            customer=plan.id,
            epoch=1,
            version=1,
            suspended=False,
            granted_microcredits=parse_credits(plan.credits),
            settled_microcredits=0,
            late_microcredits=0,
            period_start_ms=to_ms(clock.now() - timedelta(days=1)),
            period_end_ms=to_ms(clock.now() + timedelta(days=1)),
            budgets={sku: parse_credits(limit) for sku, limit in plan.budgets.items()},
        )
        quota.load(state)
    return quota


def held_amount(call: Call) -> int:
    price = next(parse_credits(sku.price) for sku in SKUS if sku.id == call.sku)
    units = call.args[2] if call.task == FORENSIC else 1
    assert isinstance(units, int)
    return price * units


def reserve(quota: MemoryQuotaStore, task: str, customer: str, call: Call) -> str | None:
    answer = quota.reserve(
        HoldRequest(
            task_id=task,
            customer=customer,
            sku=call.sku,
            amount_microcredits=held_amount(call),
            ttl_seconds=60,
        )
    )
    return None if answer.reason is None else answer.reason.value


def finish(
    quota: MemoryQuotaStore, clock: ManualClock, task: str, customer: str, call: Call
) -> str:
    """End a hold as its page would: what is not on the site fails."""
    well = call.task == PATIENT or all(
        url.startswith(("http://site/", "http://difficult/leaflet")) for url in call.urls
    )
    line = usage_line(call.sku)
    event = UsageEvent(
        id=event_id(task, line, clock.now()),
        customer=customer,
        sku=call.sku,
        line=line,
        outcome=Outcome.SUCCEEDED,
        quantity=1,
        amount_microcredits=held_amount(call),
        task_id=task,
    )
    if well:
        quota.settle(customer, task, [event])
        return "succeeded"
    quota.release(customer, task, ReleaseCause.EXCEPTION, None)
    return "failed"
