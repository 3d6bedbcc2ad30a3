"""``billing usage``, ``receipt``, ``dead`` and ``holds`` on real servers."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime

import pytest
from commandline import Billing
from support import add_customer, add_sku, make_event

from billing.container import Container
from billing.core.reservation import HoldRequest
from billing.core.usage_event import Outcome, UsageEvent, denied_line

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


def log(container: Container, *events: UsageEvent) -> None:
    result = container.writer.write([event.to_wire() for event in events])
    assert result.inserted == len(events)


def denial(moment: datetime, **fields: object) -> UsageEvent:
    return make_event(
        metered_at=moment,
        line=denied_line("page-capture", "insufficient_credits"),
        outcome=Outcome.DENIED,
        reason="insufficient_credits",
        quantity=0,
        amount_microcredits=0,
        held_microcredits=0,
        **fields,
    )


@pytest.fixture
def month(moment: datetime) -> str:
    return f"{moment:%Y-%m}"


@pytest.fixture
def used(container: Container, acme: str, moment: datetime) -> str:
    """``acme`` with three captures (one of a subject twice), one denial; returns the customer."""
    log(
        container,
        make_event(metered_at=moment, task_id="t-1", subject="https://a.example", cost_micros=500),
        make_event(metered_at=moment, task_id="t-2", subject="https://a.example", cost_micros=500),
        make_event(metered_at=moment, task_id="t-3", subject='=cmd|"/c calc"!A1'),
        denial(moment, task_id="t-4"),
    )
    return acme


def test_usage_by_sku_has_counts_credits_cost_and_subjects(billing: Billing, used: str, month: str):
    usage = billing.json("usage", used, "--month", month)
    assert (usage["customer"], usage["month"], usage["by"]) == (used, month, "sku")
    assert usage["currency"] == "USD"
    assert usage["rows"] == [
        {
            "sku": "page-capture",
            "subjects": 2,
            "events": 4,
            "quantity": 3,
            "amount_microcredits": 3_000_000,
            "shortfall_microcredits": 0,
            "cost_micros": 1000,
        }
    ]
    assert usage["total"] == {
        "events": 4,
        "quantity": 3,
        "amount_microcredits": 3_000_000,
        "shortfall_microcredits": 0,
        "cost_micros": 1000,
    }
    assert usage["period_start"].startswith(month)


def test_usage_by_status_has_denials_with_their_reason(billing: Billing, used: str, month: str):
    rows = billing.json("usage", used, "--month", month, "--by", "status")["rows"]
    assert [(row["status"], row["reason"], row["events"]) for row in rows] == [
        ("denied", "insufficient_credits", 1),
        ("succeeded", "", 3),
    ]


@pytest.mark.parametrize(("by", "form"), [("hour", "%Y-%m-%dT%H:00:00Z"), ("day", "%Y-%m-%d")])
def test_usage_by_time_names_the_hour_or_day(
    billing: Billing, used: str, month: str, moment: datetime, by: str, form: str
):
    (row,) = billing.json("usage", used, "--month", month, "--by", by)["rows"]
    assert (row[by], row["events"]) == (moment.strftime(form), 4)


def test_a_usage_table_ends_with_the_total_and_the_margin(
    billing: Billing, used: str, month: str, subtests: pytest.Subtests
):
    for by in ["sku", "hour", "day", "status"]:
        with subtests.test(by=by):
            table = billing.table("usage", used, "--month", month, "--by", by)
            assert "total" in table
            # Three credits at 0.01 USD less 0.001 USD.
            assert "0.0290 USD" in table


def test_this_month_is_shown_without_being_asked_for(billing: Billing, acme: str):
    usage = billing.json("usage", acme)
    assert usage["rows"] == []
    assert usage["total"]["events"] == 0
    assert "none" in billing.table("usage", acme)


def test_an_error_names_what_was_asked_and_the_remedy(
    billing: Billing, acme: str, subtests: pytest.Subtests
):
    for arguments, said in [
        (("usage", "nobody"), "no customer 'nobody'"),
        (("usage", "acme", "--month", "2026-13"), "month='2026-13'"),
        (("receipt", "nobody"), "no customer 'nobody'"),
        (("receipt", "--task", "unknown"), "billing explain unknown"),
        (("dead", "show", "7"), "no dead letter '7'"),
        (("dead", "replay", "0"), "ID=0"),
        (("holds", "list", "--customer", "nobody"), "no customer 'nobody'"),
    ]:
        with subtests.test(arguments=arguments, said=said):
            assert acme == "acme"
            assert said in billing.error(*arguments)


def test_wrong_usage_of_a_query_exits_with_two(billing: Billing, subtests: pytest.Subtests):
    for arguments in [
        ("receipt",),
        ("dead", "replay"),
        ("usage", "acme", "--by", "moon"),
        ("dead", "show", "x"),
    ]:
        with subtests.test(arguments=arguments):
            billing.error(*arguments, code=2)


def test_a_receipt_has_a_line_per_event_and_adds_up(billing: Billing, used: str, month: str):
    receipt = billing.json("receipt", used, "--month", month)
    assert (receipt["customer"], receipt["month"]) == (used, month)
    lines = receipt["lines"]
    assert sorted(line["task_id"] for line in lines) == ["t-1", "t-2", "t-3", "t-4"]
    total = sum(line["amount_microcredits"] for line in lines)
    assert total == receipt["total"]["amount_microcredits"] == 3_000_000
    assert set(lines[0]) == {
        "event_id", "customer", "metered_at", "sku", "line", "outcome", "reason", "quantity",
        "amount_microcredits", "shortfall_microcredits", "held_microcredits", "cost_micros",
        "currency", "subject", "dimensions", "task_id", "task_name", "root_id", "parent_id",
        "group_id", "attempt", "worker", "degraded", "started_at", "finished_at", "logged_at",
    }  # fmt: skip


def test_format_json_and_the_option_json_are_the_same(billing: Billing, used: str, month: str):
    asked = billing.run("receipt", used, "--month", month, "--format", "json").stdout
    assert json.loads(asked) == billing.json("receipt", used, "--month", month)


def test_a_receipt_as_csv_has_every_line_and_no_formula(billing: Billing, used: str, month: str):
    text = billing.run("receipt", used, "--month", month, "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["outcome"] for row in rows].count("succeeded") == 3
    subjects = {row["task_id"]: row["subject"] for row in rows}
    assert subjects["t-1"] == "https://a.example"
    assert subjects["t-3"] == """'=cmd|"/c calc"!A1"""
    assert {json.loads(row["dimensions"]) == {} for row in rows} == {True}


def test_a_receipt_table_has_the_total(billing: Billing, used: str, month: str):
    table = billing.table("receipt", used, "--month", month)
    assert "total: 4 lines, 3 credits, provider cost 0.0010 USD" in table
    assert "insufficient_credits" in "".join(table.split())


def test_a_receipt_of_one_task_needs_no_customer(billing: Billing, used: str):
    receipt = billing.json("receipt", "--task", "t-1")
    assert receipt["task_id"] == "t-1"
    assert [line["cost_micros"] for line in receipt["lines"]] == [500]
    assert receipt["total"]["events"] == 1
    assert "t-1" in billing.table("receipt", "--task", "t-1")
    assert billing.json("receipt", used, "--task", "t-1") == receipt


def test_a_task_of_another_customer_is_not_on_the_receipt(
    billing: Billing, container: Container, used: str
):
    assert used == "acme"
    add_customer(container.engine, "beta")
    billing.error("receipt", "beta", "--task", "t-1")


def test_a_receipt_longer_than_a_page_is_whole(
    billing: Billing, container: Container, acme: str, moment: datetime, month: str,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr("billing.cli.receipt._PAGE", 7)
    monkeypatch.setattr("billing.cli.receipt._TABLE_LINES", 10)
    log(container, *(make_event(metered_at=moment, task_id=f"t-{n}") for n in range(30)))
    lines = billing.json("receipt", acme, "--month", month)["lines"]
    assert len({line["event_id"] for line in lines}) == 30
    assert "the first 10 of 30 lines" in billing.table("receipt", acme, "--month", month)


def test_an_empty_receipt_is_a_document_too(billing: Billing, acme: str):
    receipt = billing.json("receipt", acme, "--month", "2020-01")
    assert receipt["lines"] == []
    assert "no lines" in billing.table("receipt", acme, "--month", "2020-01")
    text = billing.run("receipt", acme, "--month", "2020-01", "--format", "csv").stdout
    assert list(csv.DictReader(io.StringIO(text))) == []


def test_a_dead_letter_is_listed_shown_and_replayed_after_repair(
    billing: Billing, container: Container, acme: str, moment: datetime
):
    event = make_event(metered_at=moment, task_id="t-1", sku="new-sku", customer=acme)
    container.writer.write([event.to_wire(), b"\x1b[2Jnot json"])
    letters = billing.json("dead", "list")
    assert {letter["reason"] for letter in letters} == {"unknown_sku", "not_json"}
    assert set(letters[0]) == {
        "id", "reason", "detail", "event_id", "customer", "task_id", "times_seen",
        "first_seen_at", "last_seen_at", "replayed_at",
    }  # fmt: skip
    table = billing.table("dead", "list")
    assert "unknown_sku" in table
    (letter,) = billing.json("dead", "list", "--reason", "unknown_sku")
    number = str(letter["id"])
    assert letter["task_id"] == "t-1"
    shown = billing.json("dead", "show", number)
    assert json.loads(shown["body"])["sku"] == "new-sku"
    assert '"sku": "new-sku"' in billing.run("dead", "show", number).stdout

    (still,) = billing.json("dead", "replay", number, code=1)
    assert (still["outcome"], still["reason"]) == ("still_dead", "unknown_sku")
    add_sku(container.engine, "new-sku")
    assert "logged" in billing.table("dead", "replay", number)
    assert [letter["reason"] for letter in billing.json("dead", "list")] == ["not_json"]
    assert len(billing.json("dead", "list", "--replayed")) == 2
    assert billing.json("receipt", "--task", "t-1")["total"]["events"] == 1


def test_a_dead_message_cannot_act_on_the_terminal(billing: Billing, container: Container):
    container.writer.write([b"\x1b[2Jnot json"])
    (letter,) = billing.json("dead", "list")
    for arguments in (("dead", "list"), ("dead", "show", str(letter["id"]))):
        assert "\x1b" not in billing.table(*arguments)


def test_replaying_a_reason_replays_all_of_it_once(
    billing: Billing, container: Container, acme: str, moment: datetime
):
    events = [
        make_event(metered_at=moment, task_id=f"t-{n}", sku="new-sku", customer=acme)
        for n in range(3)
    ]
    container.writer.write([event.to_wire() for event in events])
    add_sku(container.engine, "new-sku")
    results = billing.json("dead", "replay", "--reason", "unknown_sku")
    assert [result["outcome"] for result in results] == ["logged"] * 3
    assert billing.json("dead", "replay", "--reason", "unknown_sku") == []
    assert billing.json("usage", acme, "--month", f"{moment:%Y-%m}")["total"]["events"] == 3


def test_replaying_what_is_not_there_says_so(billing: Billing):
    (result,) = billing.json("dead", "replay", "12345", code=1)
    assert result["outcome"] == "not_found"


def test_an_empty_list_of_dead_letters_is_good_news(billing: Billing):
    assert billing.json("dead", "list") == []
    assert "none open" in billing.table("dead", "list")


def test_open_holds_are_listed_with_what_they_hold(
    billing: Billing, container: Container, acme: str
):
    container.account_loader.rebuild(acme)
    for number in (1, 2):
        container.quota.reserve(
            HoldRequest(
                task_id=f"t-{number}",
                customer=acme,
                sku="page-capture",
                amount_microcredits=number * 1_000_000,
                ttl_seconds=60 * number,
            )
        )
    holds = billing.json("holds", "list")
    assert [hold["task_id"] for hold in holds] == ["t-1", "t-2"]
    assert holds[0] | {"expires_at": ""} == {
        "task_id": "t-1",
        "customer": acme,
        "sku": "page-capture",
        "state": "held",
        "admission": 1,
        "held_microcredits": 1_000_000,
        "settled_microcredits": 0,
        "cause": "",
        "expires_at": "",
        "overdue": False,
    }
    assert "open: 2, credits held: 3, past their time: 0" in billing.table(
        "holds", "list", "--customer", acme
    )
    add_customer(container.engine, "beta")
    assert billing.json("holds", "list", "--customer", "beta") == []
    assert "none" in billing.table("holds", "list", "--customer", "beta")


def test_without_redis_holds_are_an_error_and_not_an_empty_list(billing: Billing):
    billing.environment["WEIGHBRIDGE_REDIS_URL"] = "redis://127.0.0.1:1/0"
    assert "see REDIS_URL and billing doctor" in billing.error("holds", "list")
