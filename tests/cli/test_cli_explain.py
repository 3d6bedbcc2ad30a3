"""``billing explain`` along the way of a task, and ``relay`` and ``consumer``, on real servers."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

import pytest
from commandline import Billing
from support import add_customer, eventually, make_event

from billing.container import Container
from billing.core.admission import Admission, TaskFacts
from billing.core.reservation import HoldRequest, ReleaseCause

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture
def task() -> str:
    return str(uuid.uuid4())


def admit(container: Container, task: str, moment: datetime, customer: str = "acme") -> Admission:
    facts = TaskFacts(task_id=task, customer=customer, metered_at=moment, task_name="tests.capture")
    return container.meter.admit(facts, "page-capture", None)


def settle(container: Container, admission: Admission) -> None:
    recorder = container.meter.recorder(admission.sku)
    recorder.record(cost_micros=500, subject="https://a.example")
    container.meter.settle(admission, recorder)


def story(billing: Billing, task: str, *more: str) -> list[dict[str, Any]]:
    told = billing.json("explain", task, *more)["story"]
    assert isinstance(told, list)
    return told


def words(billing: Billing, task: str) -> str:
    return " ".join(billing.run("explain", task).stdout.split())


def test_a_running_task_holds_credits_and_has_no_event(
    billing: Billing, container: Container, acme: str, task: str, moment: datetime
):
    admit(container, task, moment)
    document = billing.json("explain", task)
    assert document["customer"] == acme
    assert document["hold"]["state"] == "held"
    assert document["balance"]["held_microcredits"] == 1_000_000
    assert document["balance"]["available_microcredits"] == 99_000_000
    (told,) = document["story"]
    assert told["place"] == "held"
    said = words(billing, task)
    assert "1 credits are held until" in said
    assert "granted 100 - settled 0 - held 1 = available 99" in said


def test_a_settled_task_waits_in_the_outbox_with_price_and_cost(
    billing: Billing, container: Container, acme: str, task: str, moment: datetime
):
    assert acme == "acme"
    settle(container, admit(container, task, moment))
    (told,) = story(billing, task)
    assert (told["place"], told["outcome"]) == ("outbox", "succeeded")
    assert told["unit_price_microcredits"] == told["amount_microcredits"] == 1_000_000
    assert (told["cost_micros"], told["currency"]) == (500, "USD")
    said = words(billing, task)
    assert "1 x page-capture at 1 = 1 credits of 1 held, provider cost 0.0005 USD" in said
    assert "waits in the outbox" in said


@pytest.mark.rabbitmq
def test_an_event_is_followed_from_outbox_to_queue_to_log(
    billing: Billing, container: Container, acme: str, task: str, moment: datetime
):
    assert acme == "acme"
    settle(container, admit(container, task, moment))
    # A relay that finds a Redis it does not know also sends what the node's journal has.
    assert "0 still wait" in billing.run("relay", "--drain").stdout
    (told,) = story(billing, task)
    assert told["place"] == "on_the_way"
    assert "with RabbitMQ, or in a node's spool" in words(billing, task)
    consumed = billing.run("consumer", "--drain").stdout
    assert "consumed: 1 logged" in consumed
    assert "0 dead letters" in consumed
    (told,) = story(billing, task)
    assert told["place"] == "log"
    assert told["since"]
    assert "is in the log since" in words(billing, task)


@pytest.mark.rabbitmq
def test_an_idle_relay_and_consumer_have_nothing_to_do(billing: Billing):
    assert "0 events confirmed; 0 still wait" in billing.run("relay", "--drain").stdout
    assert "0 logged, 0 duplicates" in billing.run("consumer", "--drain").stdout


def test_a_denied_task_says_why_and_against_which_balance(
    billing: Billing, container: Container, task: str, acme: str, moment: datetime
):
    assert acme == "acme"
    add_customer(container.engine, "poor", credits="0.5")
    admission = admit(container, task, moment, "poor")
    assert not admission.admitted
    container.meter.record_denial(admission)
    document = billing.json("explain", task)
    assert document["customer"] == "poor"
    (told,) = document["story"]
    assert (told["outcome"], told["reason"]) == ("denied", "insufficient_credits")
    assert told["amount_microcredits"] == 0
    assert document["balance"]["available_microcredits"] == 500_000
    said = words(billing, task)
    assert "denied: insufficient_credits" in said
    assert "its body did not run and it cost nothing" in said
    assert "= available 0.5" in said


def test_a_task_denied_by_a_budget_shows_the_budget(
    billing: Billing, container: Container, acme: str, task: str, moment: datetime
):
    container.customers.set_budget(acme, "page-capture", 200_000)
    admission = admit(container, task, moment)
    container.meter.record_denial(admission)
    document = billing.json("explain", task)
    assert document["story"][0]["reason"] == "sku_budget_exceeded"
    assert document["balance"]["budgets_microcredits"] == {"page-capture": 200_000}
    assert "Budgets of the month" in billing.table("explain", task)


def test_a_failed_task_cost_nothing_and_says_so(
    billing: Billing, container: Container, acme: str, task: str, moment: datetime
):
    assert acme == "acme"
    admission = admit(container, task, moment)
    recorder = container.meter.recorder(admission.sku)
    recorder.record(cost_micros=700)
    container.meter.fail(admission, recorder, ReleaseCause.EXCEPTION)
    (told,) = story(billing, task)
    assert (told["place"], told["outcome"], told["reason"]) == ("outbox", "failed", "exception")
    said = words(billing, task)
    assert "failed (exception): nothing was charged, provider cost 0.0007 USD" in said


def test_an_expired_hold_gave_the_credits_back(
    billing: Billing, container: Container, acme: str, task: str
):
    container.account_loader.rebuild(acme)
    container.quota.reserve(
        HoldRequest(
            task_id=task,
            customer=acme,
            sku="page-capture",
            amount_microcredits=1_000_000,
            ttl_seconds=1,
        )
    )
    eventually(lambda: container.quota.expire(10), message="the hold expires")
    document = billing.json("explain", task)
    assert document["hold"]["state"] == "expired"
    assert document["balance"]["available_microcredits"] == 100_000_000
    assert "the credits were given back and nothing was charged" in words(billing, task)


def test_a_revoked_task_will_not_be_admitted(
    billing: Billing, container: Container, acme: str, task: str
):
    container.account_loader.rebuild(acme)
    container.quota.release(acme, task, ReleaseCause.REVOKED, None)
    assert "will not be admitted any more" in words(billing, task)


def test_a_dead_letter_is_part_of_the_story(
    billing: Billing, container: Container, acme: str, task: str, moment: datetime
):
    event = make_event(metered_at=moment, task_id=task, customer=acme, sku="new-sku")
    container.writer.write([event.to_wire()])
    (told,) = story(billing, task)
    assert (told["place"], told["reason"]) == ("dead_letter", "unknown_sku")
    assert "billing dead replay" in words(billing, task)


def test_a_task_denied_and_later_admitted_tells_both(
    billing: Billing, container: Container, acme: str, task: str, moment: datetime
):
    assert acme == "acme"
    add_customer(container.engine, "poor", credits="0.5")
    container.meter.record_denial(admit(container, task, moment, "poor"))
    billing.run("credits", "grant", "poor", "5", "--reference", "top-up")
    settle(container, admit(container, task, moment, "poor"))
    assert [told["outcome"] for told in story(billing, task)] == ["denied", "succeeded"]


def test_the_customer_is_found_among_many_and_can_be_named(
    billing: Billing, container: Container, acme: str, task: str, moment: datetime
):
    for number in range(5):
        add_customer(container.engine, f"a-{number}")
    admit(container, task, moment)
    assert billing.json("explain", task)["customer"] == acme
    assert story(billing, task) == story(billing, task, "--customer", acme)


def test_a_task_nobody_knows_is_an_error(billing: Billing, acme: str, subtests: pytest.Subtests):
    for task in ["nothing", "", "a\x00b", "x" * 5000]:
        with subtests.test(task=task):
            assert acme == "acme"
            assert "no trace of task" in billing.error("explain", task)


def test_without_redis_the_log_still_tells_its_part(
    billing: Billing, container: Container, acme: str, task: str, moment: datetime
):
    container.writer.write([make_event(metered_at=moment, task_id=task, customer=acme).to_wire()])
    billing.environment["WEIGHBRIDGE_REDIS_URL"] = "redis://127.0.0.1:1/0"
    result = billing.run("explain", task, "--json")
    assert '"place": "log"' in result.stdout
    assert "incomplete: Redis did not answer" in result.stderr
