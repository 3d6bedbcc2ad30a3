"""Webhooks twice and out of order, with usage before and after: the books are right to the unit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from support import eventually, make_event
from webhook_bench import Shop, signed

from billing.core.periods import Period
from billing.core.usage_event import usage_line
from billing.postgres.schema import report_carries, report_seals
from billing.reporting.report_store import Sums
from billing.usage_log.log_writer import LogWriter

METER = "weighbridge_main_page-capture"


def log(shop: Shop, amount: int, hour: datetime) -> None:
    """Usage of acme's reaches the log."""
    wide = timedelta(days=400)
    writer = LogWriter(
        shop.container.engine,
        clock=shop.container.clock,
        max_age=wide,
        max_ahead=wide,
        currency="USD",
    )
    event = make_event(
        metered_at=hour + timedelta(minutes=5), finished_at=hour + timedelta(minutes=6),
        customer="acme", sku="page-capture", line=usage_line("page-capture"),
        amount_microcredits=amount, held_microcredits=amount,
    )  # fmt: skip
    assert writer.write([event.to_wire()]).inserted == 1


def report_all(shop: Shop) -> Sums:
    """Everything due is reported; acme's books, which add up in every month."""
    shop.container.reporting.reporter().advance(up_to_now=True)
    now = shop.container.clock.now()
    ever = Period("ever", now - timedelta(days=400), now + timedelta(days=400))
    [sums] = shop.container.reporting.reports.sums(ever)
    assert sums.off_by == 0
    return sums


@pytest.mark.parametrize(
    "order", [["paid", "finalized", "created", "finalized"], ["created", "finalized", "finalized"]]
)
def test_events_twice_and_out_of_order_leave_the_books_right_to_the_unit(
    shop: Shop, order: list[str]
):
    this_hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    start, end = this_hour - timedelta(hours=30), this_hour - timedelta(hours=6)
    hour = start + timedelta(hours=1)
    shop.stripe.control.post("settings", summary_seconds=0, judgement_seconds=0)
    shop.container.reporting.stripe.ensure_meters(shop.container.reporting.meters())
    log(shop, 100, hour)
    report_all(shop)
    invoice = shop.stripe.control.post(
        "cycles", customer=shop.ref, period_start=int(start.timestamp()),
        period_end=int(end.timestamp()), grace_seconds=0,
    )["id"]  # fmt: skip
    eventually(
        lambda: shop.stripe.person.invoices.retrieve(invoice).status in {"open", "paid"},
        message="the invoice is final",
    )
    log(shop, 7, hour)  # nobody knows yet that it is final: Stripe takes it, and bills nobody
    report_all(shop)
    told = {one["type"]: one["id"] for one in shop.stripe.control.get("events")}
    for kind in [f"invoice.{each}" for each in order if f"invoice.{each}" in told]:
        body = shop.stripe.body_of(told[kind])
        assert shop.post(body, signed(body)).status_code == 200
        report_all(shop)
    log(shop, 5, hour)
    report_all(shop)
    books = report_all(shop)
    [seal] = shop.books.rows(report_seals)
    assert (int(seal["billed_value"]), seal["settled_at"] is not None) == (100, True)
    lines = [(r["amount_microcredits"], r["reason"]) for r in shop.books.rows(report_carries)]
    assert sorted((int(amount), reason) for amount, reason in lines) == [(5, "late"), (7, "billed")]
    assert (books.logged, books.accepted, books.parked, books.open) == (112, 112, 0, 0)
    meter = shop.container.reporting.stripe.read_back(shop.ref, METER, this_hour.date())
    assert meter[this_hour] == 12
