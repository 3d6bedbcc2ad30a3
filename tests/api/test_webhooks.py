"""Webhooks over real HTTP: what is believed, and what is done once whatever happens on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from support import TcpProxy, eventually
from webhook_bench import SECRET, WEBHOOK, Shop, signed

from billing.api.app import create_app
from billing.api.server import ApiServer
from billing.api.webhooks import MAX_BODY, Webhooks
from billing.core.clock import SystemClock
from billing.postgres.schema import customers, provider_invoices, report_seals, usage_reports
from billing.stripe_webhooks.processor import Polled, Received

SESSIONS = "/v1/checkout/sessions/*"
METER = "weighbridge_main_page-capture"


# -- what is believed --------------------------------------------------------------------------


def test_a_signed_event_is_done_and_answered_after_the_commit(shop: Shop):
    body = shop.a_top_up()
    answer = shop.post(body, signed(body))
    assert (answer.status_code, answer.json()) == (200, {"result": "done"})
    assert shop.books.granted() == 500


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        (lambda body: signed(body, seconds=-301), "more than five minutes old"),
        (lambda body: signed(body, seconds=330), "more than five minutes ahead"),
        (lambda body: signed(body, secret="whsec_of_somebody"), "no signature fits"),
        (lambda body: signed(body + b" "), "no signature fits"),
        (lambda _body: {}, "no Stripe-Signature header"),
        (lambda _body: {"Stripe-Signature": "t=now,v1=yes"}, "is not t="),
    ],
    ids=["stale", "from the future", "another secret", "changed body", "unsigned", "garbage"],
)
def test_what_is_not_believed_is_refused_and_leaves_nothing(
    shop: Shop, headers: Callable[[bytes], dict[str, str]], reason: str
):
    body = shop.a_top_up()
    with capture_logs() as logs:
        answer = shop.post(body, headers(body))
    assert answer.status_code == 400
    assert reason in answer.json()["error"]
    assert (shop.books.events(), shop.books.granted()) == ({}, 0)
    [refused] = [log for log in logs if log["event"] == "webhook_refused"]
    assert refused["log_level"] == "warning"
    assert "cs_test" not in str(logs)


def test_the_raw_bytes_are_what_counts_and_not_what_they_mean(shop: Shop):
    body = shop.a_top_up()
    reworded = json.dumps(json.loads(body)).encode()
    assert reworded != body
    assert shop.post(reworded, signed(body)).status_code == 400
    assert shop.post(reworded, signed(reworded)).status_code == 200


def test_of_several_secrets_each_is_believed(open_shop: Callable[..., Shop]):
    shop = open_shop(stripe_webhook_secret=SecretStr("whsec_new, whsec_old"))
    for secret, status in (("whsec_new", 200), ("whsec_old", 200), (SECRET, 400)):
        body = shop.a_top_up()
        assert shop.post(body, signed(body, secret=secret)).status_code == status
    assert shop.books.granted() == 1000


def test_without_a_secret_nothing_is_taken_and_everything_is_delivered_again(
    open_shop: Callable[..., Shop],
):
    shop = open_shop(stripe_webhook_secret=None)
    body = shop.a_top_up()
    answer = shop.post(body, signed(body))
    assert answer.status_code == 503
    assert "STRIPE_WEBHOOK_SECRET" in answer.json()["error"]
    assert shop.books.events() == {}


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_larger_than_any_event_is_refused(shop: Shop, chunked: bool):
    body = b"x" * (MAX_BODY + 1)
    content: bytes | Iterator[bytes] = iter([body[:1000], body[1000:]]) if chunked else body
    answer = shop.post(content, signed(body))  # type: ignore[arg-type]  # an iterator is sent in chunks
    assert answer.status_code == 413
    fits = b" " * MAX_BODY
    assert shop.post(fits, signed(fits)).json() == {"result": "kept"}


@pytest.mark.parametrize("body", [b"", b"{}", b"not JSON at all", b"[" * 10_000])
def test_a_signed_body_that_cannot_be_read_is_kept_and_not_asked_for_again(shop: Shop, body: bytes):
    assert shop.post(body, signed(body)).json() == {"result": "kept"}
    assert shop.post(body, signed(body)).json() == {"result": "already"}
    assert list(shop.books.events().values()) == ["kept"]


def test_other_paths_and_methods_are_not_there(shop: Shop):
    assert shop.get("/webhooks/stripe").status_code == 405
    for path in ("/", "/docs", "/redoc", "/openapi.json", "/webhooks"):
        assert shop.get(path).status_code == 404


# -- once --------------------------------------------------------------------------------------


def test_an_event_that_is_delivered_twice_is_done_once(told_shop: Shop):
    told_shop.stripe.buy(told_shop.ref)
    event = told_shop.stripe.event_of("checkout.session.completed")
    told_shop.stripe.until_delivered(event)
    told_shop.stripe.resend(event)
    told_shop.stripe.until_delivered(event, deliveries=2)
    assert told_shop.books.granted() == 500
    assert told_shop.books.events()[event] == "done"


def test_an_event_that_comes_eight_times_at_once_is_done_once(shop: Shop):
    body = shop.a_top_up()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: shop.post(body, signed(body)), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    results = sorted(answer.json()["result"] for answer in answers)
    assert results == ["already"] * 7 + ["done"]
    assert shop.books.granted() == 500


def test_many_events_at_once_are_all_done(shop: Shop):
    bodies = [shop.a_top_up() for _ in range(30)]
    with ThreadPoolExecutor(15) as pool:
        answers = list(pool.map(lambda body: shop.post(body, signed(body)), bodies))
    assert {answer.json()["result"] for answer in answers} == {"done"}
    assert shop.books.granted() == 30 * 500


def test_redis_is_told_of_a_top_up(shop: Shop):
    shop.container.account_loader.rebuild("acme")
    body = shop.a_top_up()
    shop.post(body, signed(body))
    view = shop.container.quota.account("acme")
    assert view is not None
    assert view.granted_microcredits == 500_000_000


def test_with_redis_away_credits_are_given_all_the_same(open_shop: Callable[..., Shop]):
    shop = open_shop(redis_url=SecretStr("redis://127.0.0.1:1/0"))
    body = shop.a_top_up()
    with capture_logs() as logs:
        assert shop.post(body, signed(body)).json() == {"result": "done"}
    assert shop.books.granted() == 500
    assert "balance_not_synced" in [log["event"] for log in logs]


# -- what is away ------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["server_error", "rate_limit", "timeout", "unauthorized"])
def test_while_stripe_gives_no_answer_the_event_is_put_off_and_delivered_again(
    told_shop: Shop, fault: str
):
    told_shop.stripe.control.fault(fault, path=SESSIONS, method="GET")
    told_shop.stripe.buy(told_shop.ref)
    event = told_shop.stripe.event_of("checkout.session.completed")
    told_shop.stripe.until_delivered(event)
    assert told_shop.stripe.statuses(event) == [[503, 200]]
    assert told_shop.books.granted() == 500


def test_with_a_key_that_cannot_be_used_nothing_is_lost(open_shop: Callable[..., Shop]):
    shop = open_shop(stripe_api_key=SecretStr("pk_test_123"))
    body = shop.a_top_up()
    assert shop.post(body, signed(body)).status_code == 503
    assert shop.books.events() == {}


def test_while_postgresql_is_away_the_event_is_put_off_and_delivered_again(
    open_shop: Callable[..., Shop], database_url: str
):
    where = urlsplit(database_url)
    with TcpProxy(where.hostname or "127.0.0.1", where.port or 5432) as proxy:
        user = where.netloc.rpartition("@")[0]
        netloc = f"{user}@127.0.0.1:{proxy.port}" if user else f"127.0.0.1:{proxy.port}"
        url = urlunsplit(where._replace(netloc=netloc))
        shop = open_shop(database_url=SecretStr(url))
        assert shop.get("/readyz").status_code == 200
        shop.stripe.deliver_to(shop.url)
        proxy.cut()
        shop.stripe.buy(shop.ref)
        event = shop.stripe.event_of("checkout.session.completed")
        eventually(lambda: 503 in shop.stripe.statuses(event)[0])
        assert shop.get("/readyz").status_code == 503
        assert shop.get("/healthz").status_code == 200
        proxy.restore()
        shop.stripe.until_delivered(event)
        assert shop.books.granted() == 500
        assert shop.get("/readyz").status_code == 200
        shop.container.engine.dispose()


def test_a_slow_answer_of_stripes_holds_up_nobody_else(shop: Shop):
    slow, other = shop.a_top_up(), shop.a_top_up()
    shop.stripe.control.fault("latency", path=SESSIONS, method="GET", seconds=3)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shop.post, slow, signed(slow))
        eventually(lambda: not shop.stripe.control.get("faults"))
        assert shop.get("/healthz").status_code == 200
        assert shop.get("/readyz").status_code == 200
        assert shop.post(other, signed(other)).json() == {"result": "done"}
        assert not waiting.done()
        assert waiting.result(timeout=15).json() == {"result": "done"}
    assert shop.books.granted() == 1000


def test_an_error_of_our_own_is_a_500_without_its_words():
    def broken(_body: bytes) -> Received:
        raise ZeroDivisionError("a secret of the inside")

    hooks = Webhooks(secrets=[SECRET], receive=broken, sync=print, clock=SystemClock())
    with ApiServer(create_app(hooks, lambda: None, lambda: b""), "127.0.0.1", 0) as server:
        with capture_logs() as logs:
            answer = httpx.post(
                server.url + WEBHOOK, content=b"{}", headers=signed(b"{}"), trust_env=False
            )
        assert (answer.status_code, answer.json()) == (500, {"error": "internal error"})
        # It goes on serving.
        assert httpx.get(f"{server.url}/healthz", trust_env=False).status_code == 200
    [failed] = [log for log in logs if log["event"] == "request_failed"]
    assert failed["exc_info"]


# -- what events do ----------------------------------------------------------------------------


def test_invoices_are_sealed_whatever_the_order_their_events_come_in(shop: Shop):
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=30)
    shop.stripe.control.post("settings", summary_seconds=0, judgement_seconds=0)
    shop.container.reporting.stripe.ensure_meters(shop.container.reporting.meters())
    shop.stripe.person.billing.meter_events.create(
        {
            "event_name": METER,
            "payload": {"stripe_customer_id": shop.ref, "value": "7"},
            "timestamp": int((start + timedelta(hours=1)).timestamp()),
        }
    )
    eventually(lambda: shop.stripe.control.get("state")["meter_events"].get("counted"))
    invoice = shop.stripe.control.post(
        "cycles",
        customer=shop.ref,
        period_start=int(start.timestamp()),
        period_end=int((start + timedelta(hours=24)).timestamp()),
        grace_seconds=0,
    )["id"]
    eventually(
        lambda: shop.stripe.person.invoices.retrieve(invoice).status in {"open", "paid"},
        message="the invoice is final",
    )
    kinds = ["invoice.paid", "invoice.finalized", "invoice.created", "invoice.finalized"]
    told = {one["type"]: one["id"] for one in shop.stripe.control.get("events")}
    for kind in [kind for kind in kinds if kind in told]:
        body = shop.stripe.body_of(told[kind])
        assert shop.post(body, signed(body)).status_code == 200
    [row] = shop.books.rows(provider_invoices)
    assert (row["customer_id"], row["invoice_ref"]) == ("acme", invoice)
    assert row["status"] in {"open", "paid"}
    [seal] = shop.books.rows(report_seals)
    assert (seal["meter"], int(seal["billed_value"])) == (METER, 7)
    # A poll finds the same invoice, and nothing more to do about it.
    reporting = shop.container.reporting
    assert reporting.webhook_processor.poll(reporting.stripe, start - timedelta(days=2)) == Polled(
        done=1
    )
    assert shop.books.rows(report_seals) == [seal]


def test_a_deleted_customer_is_unlinked(told_shop: Shop):
    told_shop.stripe.person.customers.delete(told_shop.ref)
    told_shop.stripe.until_delivered(told_shop.stripe.event_of("customer.deleted"))
    assert {row["stripe_customer_id"] for row in told_shop.books.rows(customers)} == {None}


def rejected(shop: Shop, identifier: str) -> str:
    """Stripe takes usage of a customer who is not there, and rejects it; returns the event."""
    shop.stripe.control.post("settings", judgement_seconds=0)
    shop.container.reporting.stripe.ensure_meters(shop.container.reporting.meters())
    shop.stripe.person.billing.meter_events.create(
        {
            "event_name": METER,
            "payload": {"stripe_customer_id": "cus_gone", "value": "1"},
            "identifier": identifier,
        }
    )
    event = eventually(
        lambda: shop.stripe.event_of("v1.billing.meter.error_report_triggered"),
        message="the usage is rejected",
    )
    shop.stripe.until_delivered(event)
    return event


def test_what_stripe_rejected_is_parked_and_the_rest_of_its_window_read_back(told_shop: Shop):
    now = datetime.now(UTC)
    later = now + timedelta(hours=1)
    for number in (1, 2):
        told_shop.books.add_accepted(METER, number, now, confirm_at=later)
    told_shop.books.add_accepted(METER, 3, now - timedelta(hours=1), confirm_at=later)
    told_shop.books.add_accepted("weighbridge_main_other", 6, now, confirm_at=later)
    event = rejected(told_shop, "main:r1")
    assert told_shop.books.events()[event] == "done"
    reports = {row["identifier"]: row for row in told_shop.books.rows(usage_reports)}
    listed = reports.pop("main:r1")
    assert (listed["state"], listed["cause"]) == ("parked", "customer_missing")
    assert {row["state"] for row in reports.values()} == {"accepted"}
    sooner = {name for name, row in reports.items() if row["confirm_at"] < later}
    assert sooner == {"main:r2"}


def test_a_rejection_of_what_is_not_ours_is_nothing_for_us(told_shop: Shop):
    event = rejected(told_shop, "somebody:else")
    assert told_shop.books.events()[event] == "ignored"


def test_usage_that_no_meter_listens_to_is_told_without_a_meter(told_shop: Shop):
    told_shop.stripe.control.post("settings", judgement_seconds=0)
    told_shop.books.add_accepted(METER, 1, datetime.now(UTC), confirm_at=datetime.now(UTC))
    told_shop.stripe.person.billing.meter_events.create(
        {"event_name": METER, "payload": {"value": "1"}, "identifier": "main:r1"}
    )
    kind = "v1.billing.meter.no_meter_found"
    event = eventually(lambda: told_shop.stripe.event_of(kind), message=kind)
    told_shop.stripe.until_delivered(event)
    [report] = told_shop.books.rows(usage_reports)
    assert (report["state"], report["cause"]) == ("parked", "meter_missing")


def test_an_event_of_live_mode_does_nothing_in_a_test_installation(shop: Shop):
    event = {**json.loads(shop.a_top_up()), "livemode": True}
    body = json.dumps(event).encode()
    assert shop.post(body, signed(body)).json() == {"result": "ignored"}
    assert shop.books.granted() == 0
