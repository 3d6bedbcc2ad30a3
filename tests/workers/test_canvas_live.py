"""Chains, groups and chords in real workers: who pays, and that nothing hangs on a denial."""

from __future__ import annotations

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError
from live import Live

from workers.billing_header import BillingHeader, bill_to
from workers.errors import QuotaExceeded

pytestmark = [pytest.mark.worker, pytest.mark.rabbitmq]

CREDIT = 1_000_000


def test_the_customer_goes_through_chain_group_chord_and_plain_tasks(live: Live):
    page, plain, body = live.task("page"), live.task("plain"), live.task("body")
    with live.worker():
        through = chain(page.bill_to("acme").s("a"), plain.s(), page.si("b"), plain.si(1))
        assert through.apply_async().get(timeout=30) == 1
        with bill_to("globex"):
            members = group(page.s("c"), page.s("d")).apply_async()
            joined = chord([page.s("e"), chain(plain.s(2), page.si("f"))], body.s()).apply_async()
        assert members.get(timeout=30) == ["c", "d"]
        assert joined.get(timeout=30) == ["e", "f"]
        live.await_idle()
        live.await_idle("globex")
        live.drain()
    paid = sorted((row.customer_id, row.subject or row.task_name) for row in live.events())
    assert paid == [
        ("acme", "a"),
        ("acme", "b"),
        ("globex", "c"),
        ("globex", "d"),
        ("globex", "e"),
        ("globex", "f"),
        ("globex", "live.body"),
    ]
    assert live.discrepancies() == []


def test_a_chord_in_which_one_is_denied_fails_and_does_not_hang(live: Live):
    live.container.customers.set_budget("acme", "*", 3 * CREDIT)
    page, body = live.task("page"), live.task("body")
    with live.worker():
        with bill_to("acme"):
            result = chord((page.s(str(n)) for n in range(4)), body.s()).apply_async()
        with pytest.raises((ChordError, QuotaExceeded)) as failed:
            result.get(timeout=30)
        live.await_idle()
        live.drain()
    assert "budget_exceeded" in str(failed.value)
    assert len(live.trace("live.page")) == 3
    assert live.trace("live.body") == []
    outcomes = sorted(row.outcome for row in live.events())
    assert outcomes == ["denied", "succeeded", "succeeded", "succeeded"]
    assert live.discrepancies() == []


def test_a_denied_link_stops_its_chain(live: Live):
    live.container.customers.set_budget("acme", "*", CREDIT)
    page = live.task("page")
    with live.worker():
        with bill_to("acme"):
            result = chain(page.s("a"), page.si("b"), page.si("c")).apply_async()
        # The chain's last member never starts; the denied one is its parent.
        with pytest.raises(QuotaExceeded) as denied:
            result.parent.get(timeout=30)
        live.await_idle()
        live.drain()
    assert denied.value.reason == "budget_exceeded"
    assert [line.split()[-1] for line in live.trace()] == ["a"]
    assert live.discrepancies() == []


def test_one_task_delivered_again_and_run_twice_at_once_is_charged_once(live: Live):
    header = BillingHeader("acme", live.container.clock.now()).to_message()
    with live.worker(concurrency=3):
        copies = [
            live.task("sleep").apply_async((0.5,), task_id="twice", headers={"billing": header})
            for _ in range(3)
        ]
        for copy in copies:
            assert copy.get(timeout=30) == "slept"
        live.await_idle()
        again = live.task("sleep").apply_async((0.1,), task_id="twice", headers={"billing": header})
        assert again.get(timeout=30) == "slept"
        live.drain()
    assert live.lines() == [("page", "succeeded", CREDIT)]
    assert live.settled_and_held() == (CREDIT, 0)
    assert live.discrepancies() == []
