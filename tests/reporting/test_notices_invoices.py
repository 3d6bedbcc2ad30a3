"""Invoices that are told of or polled: written down as they stand, and their periods sealed."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from notices_support import END, METER, START, Told, Unanswered, an_invoice
from structlog.testing import capture_logs
from support import NOW

from billing.postgres.schema import customers, provider_invoices, report_seals
from billing.providers.port import ProviderCause, ProviderUnavailable
from billing.stripe_webhooks.invoices import VOID, is_older
from billing.stripe_webhooks.processor import Polled

pytestmark = pytest.mark.postgres


@pytest.fixture
def told(engine: sa.Engine) -> Told:
    return Told(engine)


def invoice(told: Told, ref: str = "in_1") -> sa.RowMapping:
    [row] = [row for row in told.rows(provider_invoices) if row["invoice_ref"] == ref]
    return row


def test_a_draft_is_written_down_and_seals_nothing(told: Told):
    told.invoices.has(an_invoice())
    assert told.about("invoice.created", "in_1").reception == "done"
    row = invoice(told)
    assert (row["customer_id"], row["customer_ref"], row["status"]) == ("acme", "cus_acme", "draft")
    assert (row["currency"], row["total_minor"]) == ("USD", 500)
    assert (row["period_start"], row["period_end"], row["finalized_at"]) == (START, END, None)
    assert told.rows(report_seals) == []


def test_a_final_invoice_seals_its_periods_once(told: Told):
    told.invoices.has(an_invoice("open"))
    for number, kind in enumerate(("invoice.finalized", "invoice.paid", "invoice.finalized")):
        told.about(kind, "in_1", f"evt_{number}")
    [seal] = told.rows(report_seals)
    assert (seal["customer_id"], seal["meter"], seal["invoice_ref"]) == ("acme", METER, "in_1")
    assert (seal["period_start"], seal["period_end"], int(seal["billed_value"])) == (START, END, 7)
    assert invoice(told)["finalized_at"] == END + timedelta(hours=1)


def test_the_invoice_as_it_stands_decides_and_not_the_event(told: Told):
    told.invoices.has(an_invoice("paid"))
    told.about("invoice.created", "in_1")
    assert invoice(told)["status"] == "paid"
    assert len(told.rows(report_seals)) == 1


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["draft", "open", "paid"])), ids="-".join
)
def test_reads_that_come_in_any_order_end_in_the_latest_status(told: Told, order: tuple[str, ...]):
    for number, status in enumerate(order):
        told.invoices.has(an_invoice(status))
        told.about("invoice.paid", "in_1", f"evt_{number}")
    row = invoice(told)
    assert (row["status"], row["finalized_at"]) == ("paid", END + timedelta(hours=1))
    assert len(told.rows(report_seals)) == 1


def test_handlers_that_read_at_different_times_and_write_at_once_never_step_back(told: Told):
    statuses = ["draft", "open", "paid", "draft", "open", "uncollectible", "open", "draft"]

    def tell(numbered: tuple[int, str]) -> None:
        number, status = numbered
        other = Told.__new__(Told)
        other.__dict__ |= told.__dict__
        other.invoices = type(told.invoices)()
        other.invoices.has(an_invoice(status))
        other.notices = other.new_notices()
        other.about("invoice.paid", "in_1", f"evt_{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(tell, enumerate(statuses)))
    assert len(told.events()) == 8
    assert {result for result, _ in told.events().values()} == {"done"}
    assert invoice(told)["status"] == "paid"
    assert len(told.rows(report_seals)) == 1


@pytest.mark.parametrize(
    ("status", "known", "older"),
    [
        ("draft", "open", True),
        ("open", "draft", False),
        ("open", "paid", True),
        ("open", "void", True),
        ("open", "uncollectible", True),
        ("paid", "uncollectible", False),
        ("void", "uncollectible", False),
        ("uncollectible", "paid", True),
        ("deleted", "draft", False),
        ("open", "open", False),
    ],
)
def test_an_invoice_never_goes_back(status: str, known: str, older: bool):
    assert is_older(status, known) is older


def test_a_failed_payment_is_noted_with_its_time_and_stays_noted(told: Told):
    told.invoices.has(an_invoice("open", payment_failed=True))
    failed_at = NOW - timedelta(hours=2)
    told.about("invoice.payment_failed", "in_1", created=int(failed_at.timestamp()))
    assert invoice(told)["payment_failed_at"] == failed_at
    told.invoices.has(an_invoice("paid"))
    told.about("invoice.paid", "in_1", "evt_2")
    assert (invoice(told)["payment_failed_at"], invoice(told)["status"]) == (failed_at, "paid")


def test_a_void_invoice_is_told_once_for_a_person_to_decide(told: Told):
    told.invoices.has(an_invoice("open"))
    told.about("invoice.finalized", "in_1")
    told.invoices.has(an_invoice("void"))
    with capture_logs() as logs:
        told.about("invoice.voided", "in_1", "evt_2")
        told.about("invoice.voided", "in_1", "evt_3")
        told.notices.poll(told.invoices.as_provider(), START)
    assert [log["event"] for log in logs].count(VOID.event) == 1
    assert invoice(told)["status"] == "void"
    assert len(told.rows(report_seals)) == 1


def test_an_invoice_of_somebody_elses_customer_is_ignored(told: Told):
    told.invoices.has(an_invoice("paid", customer_ref="cus_of_another_shop"))
    assert told.about("invoice.paid", "in_1").reception == "ignored"
    assert "no customer of ours" in told.events()["evt_1"][1]
    assert told.rows(provider_invoices) == []


def test_an_invoice_for_other_things_is_ignored(told: Told):
    assert told.about("invoice.paid", "in_other").reception == "ignored"
    assert told.rows(provider_invoices) == []


@pytest.mark.parametrize("seen_before", [True, False])
def test_the_last_invoice_of_a_customer_who_left_is_still_theirs(told: Told, seen_before: bool):
    told.invoices.has(an_invoice("paid", "in_0"), an_invoice("draft"))
    told.about("invoice.paid", "in_0", "evt_0")
    if seen_before:
        told.about("invoice.created", "in_1", "evt_1")
    told.about("customer.deleted", "cus_acme", "evt_2")
    assert {row["stripe_customer_id"] for row in told.rows(customers)} == {None}
    told.invoices.has(an_invoice("open"))
    assert told.about("invoice.finalized", "in_1", "evt_3").reception == "done"
    assert invoice(told)["customer_id"] == "acme"
    assert len(told.rows(report_seals)) == 2


def test_stripe_without_an_answer_leaves_nothing_behind(told: Told):
    told.invoices.failing = Unanswered(ProviderCause.SERVER_ERROR)
    with pytest.raises(ProviderUnavailable):
        told.about("invoice.paid", "in_1")
    assert told.events() == {}
    told.invoices.failing = None
    told.invoices.has(an_invoice("paid"))
    assert told.about("invoice.paid", "in_1").reception == "done"


def test_what_stripe_will_never_answer_is_kept_and_can_be_tried_again(told: Told):
    told.invoices.failing = Unanswered(ProviderCause.INVALID_VALUE)
    assert told.about("invoice.paid", "in_1").reception == "kept"
    assert told.notices.retry("evt_1").reception == "kept"
    told.invoices.failing = None
    told.invoices.has(an_invoice("paid"))
    assert told.notices.retry("evt_1").reception == "done"
    assert len(told.rows(report_seals)) == 1


def poll(told: Told) -> Polled:
    return told.notices.poll(told.invoices.as_provider(), START)


def test_a_poll_does_what_a_lost_webhook_would_have_done(told: Told):
    told.invoices.has(an_invoice("open"), an_invoice("paid", "in_2", customer_ref="cus_other"))
    assert poll(told) == Polled(done=1, ignored=1)
    assert (invoice(told)["status"], len(told.rows(report_seals))) == ("open", 1)
    assert told.events() == {}
    assert poll(told) == Polled(done=1, ignored=1)
    assert len(told.rows(report_seals)) == 1


def test_a_poll_after_the_webhook_changes_nothing_and_the_other_way_round(told: Told):
    told.invoices.has(an_invoice("paid"))
    poll(told)
    told.about("invoice.paid", "in_1")
    before = told.rows(report_seals), told.rows(provider_invoices)
    poll(told)
    assert (told.rows(report_seals), told.rows(provider_invoices)) == before


def test_a_draft_from_before_the_polls_reach_is_looked_at_too(told: Told):
    told.invoices.has(an_invoice())
    told.about("invoice.created", "in_1")
    told.invoices.has(an_invoice("open"))

    class Listless(type(told.invoices)):  # type: ignore[misc]  # a class made at run time
        def invoices_since(self, created: Any) -> list[Any]:
            del created
            return []

    told.invoices.__class__ = Listless
    assert poll(told) == Polled(done=1)
    assert invoice(told)["status"] == "open"
    told.invoices.asked = 0
    poll(told)
    assert told.invoices.asked == 0


def test_a_draft_that_was_deleted_is_noted_so(told: Told):
    told.invoices.has(an_invoice())
    told.about("invoice.created", "in_1")
    told.invoices.has(an_invoice("deleted", lines=()))
    told.about("invoice.deleted", "in_1", "evt_2")
    assert invoice(told)["status"] == "deleted"
    assert told.rows(report_seals) == []


def test_a_poll_without_an_answer_says_so(told: Told):
    told.invoices.failing = Unanswered()
    with pytest.raises(ProviderUnavailable):
        poll(told)
