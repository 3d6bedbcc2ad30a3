"""No request leaves that Stripe's own description would refuse."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from stripe_bench import (
    CUSTOMERS,
    EVENTS,
    FINALISE,
    HOUR,
    INVOICES,
    ITEMS,
    METER,
    METERS,
    LocalStripe,
    delete,
    line,
    report,
    until_answered,
)
from stripe_description import problems_of_request

from billing.core.errors import AlreadyExists
from billing.providers.port import InvoiceLine, ProviderMeter, ProviderUnavailable
from billing.providers.stripe.provider import StripeProvider

UNIX_HOUR = int(HOUR.timestamp())
SUMMARIES = f"{METERS}/mtr_1/event_summaries"
EVENT: dict[str, Any] = {
    "event_name": "m",
    "payload": {"stripe_customer_id": "cus_1", "value": "1"},
    "identifier": "r1",
    "timestamp": str(UNIX_HOUR),
}
DAY: dict[str, Any] = {
    "customer": "cus_1",
    "start_time": str(UNIX_HOUR),
    "end_time": str(UNIX_HOUR + 3_600),
    "value_grouping_window": "hour",
}


def everything(provider: StripeProvider, customer: str) -> None:
    """Every method, with names as long as they may be."""
    long_meter = ProviderMeter(sku="long", name="m" * 100, display_name="d" * 250)
    provider.ensure_meters([METER, long_meter])
    ref = provider.link_customer(customer, "n" * 256)
    for number, value in enumerate((0, 1, 10**15 - 1, -(10**15) + 1)):
        provider.report_usage(report(ref, number, value))
    provider.read_back(ref, METER.name, HOUR.date())
    lines: list[InvoiceLine] = [line(number, 100 - number) for number in range(12)]
    draft = provider.open_invoice(f"{customer}:2026-10", ref, "USD", lines)
    provider.finalise_invoice(draft.provider_id)


def operations(local: LocalStripe) -> set[tuple[str, str]]:
    ids = re.compile(r"/(mtr|cus|in|ii)_[^/]+")
    return {(one["method"], ids.sub("/{id}", one["path"])) for one in local.requests()}


def assert_all_allowed(local: LocalStripe) -> None:
    seen = local.requests()
    problems = [
        problem
        for one in seen
        for problem in problems_of_request(one["method"], one["path"], one["params"])
    ]
    assert seen
    assert problems == []


@pytest.mark.parametrize("customer", ["acme", "A" * 64, "a.b_c-1"])
def test_everything_the_adapter_sends_is_allowed(local: LocalStripe, customer: str) -> None:
    everything(local.adapter(), customer)
    everything(local.adapter(), customer)
    assert_all_allowed(local)
    assert {one["status"] for one in local.requests()} <= {200, 400}
    assert operations(local) == {
        ("GET", METERS),
        ("POST", METERS),
        ("GET", f"{METERS}/{{id}}/event_summaries"),
        ("POST", EVENTS),
        ("GET", f"{CUSTOMERS}/search"),
        ("POST", CUSTOMERS),
        ("GET", INVOICES),
        ("POST", INVOICES),
        ("GET", f"{INVOICES}/{{id}}"),
        ("GET", f"{INVOICES}/{{id}}/lines"),
        ("POST", f"{INVOICES}/{{id}}/finalize"),
        ("POST", ITEMS),
    }


def test_the_only_refusals_on_the_way_are_duplicates(local: LocalStripe) -> None:
    everything(local.adapter(), "acme")
    everything(local.adapter(), "acme")
    refused = [one["path"] for one in local.requests() if one["status"] != 200]
    assert refused == [EVENTS] * 4


@pytest.mark.parametrize("path", [METERS, CUSTOMERS, EVENTS, INVOICES, ITEMS, FINALISE])
@pytest.mark.parametrize("effect", [True, False])
def test_what_it_sends_to_find_out_after_a_failure_is_allowed_too(
    local: LocalStripe, path: str, effect: bool
) -> None:
    local.control.post("settings", search_seconds=60)
    local.control.fault("server_error", method="POST", path=path, effect=effect)
    until_answered(lambda: everything(local.adapter(), "acme"))
    assert_all_allowed(local)


def test_what_it_sends_about_a_deleted_customer_is_allowed_too(local: LocalStripe) -> None:
    provider = local.adapter()
    everything(provider, "acme")
    ref = provider.link_customer("acme", "Acme")
    delete(local, ref)
    with pytest.raises(ProviderUnavailable):
        provider.read_back(ref, METER.name, HOUR.date())
    # The key stays with the invoice of the customer that was deleted.
    with pytest.raises(AlreadyExists):
        everything(provider, "acme")
    assert_all_allowed(local)


def test_days_are_asked_for_by_whole_utc_days(local: LocalStripe, acme: str) -> None:
    provider = local.adapter()
    for back in range(3):
        provider.read_back(acme, METER.name, (HOUR - timedelta(days=back)).date())
    asked = [one["params"] for one in local.requests() if one["path"].endswith("event_summaries")]
    starts = [int(params["start_time"]) for params in asked]
    assert [start % 86_400 for start in starts] == [0, 0, 0]
    assert [int(params["end_time"]) - 86_400 for params in asked] == starts
    assert len(set(starts)) == 3


def test_every_key_is_short_enough_and_no_read_has_one(local: LocalStripe) -> None:
    everything(local.adapter(), "A" * 64)
    for one in local.requests():
        key = one["idempotency_key"]
        assert (key is None) == (one["method"] == "GET")
        assert key is None or 1 <= len(key) <= 255


@pytest.mark.parametrize(
    ("method", "path", "params", "problem"),
    [
        ("POST", EVENTS, {**EVENT, "value": "1"}, "value is not in Stripe's description"),
        ("POST", EVENTS, {**EVENT, "identifier": "x" * 101}, "identifier is longer than 100"),
        ("POST", EVENTS, {**EVENT, "event_name": "x" * 101}, "event_name is longer than 100"),
        ("POST", EVENTS, {**EVENT, "timestamp": "1.5"}, "timestamp is '1.5', not of type integer"),
        ("POST", EVENTS, {**EVENT, "payload": "1"}, "payload is '1', not of type object"),
        ("POST", EVENTS, {"event_name": "m"}, "payload is missing"),
        ("GET", SUMMARIES, {**DAY, "value_grouping_window": "week"}, "not one of"),
        ("GET", SUMMARIES, {"customer": "cus_1", "start_time": "1"}, "end_time is missing"),
        ("GET", SUMMARIES, {**DAY, "start_time": str(UNIX_HOUR + 60)}, "not a multiple of 3600"),
        ("GET", SUMMARIES, {**DAY, "value_grouping_window": "day"}, "not a multiple of 86400"),
        (
            "GET",
            SUMMARIES,
            {"customer": "cus_1", "start_time": "60", "end_time": "61"},
            "end_time is 61, not a multiple of 60",
        ),
        ("POST", EVENTS, {**EVENT, "payload": {"value": "1E+3"}}, "value is 1E+3, not at most 15"),
        ("POST", EVENTS, {**EVENT, "payload": {"value": "1" * 16}}, "not at most 15 digits"),
        ("GET", METERS, {"limit": "many"}, "limit is 'many', not of type integer"),
        (
            "POST",
            METERS,
            {
                "display_name": "m",
                "event_name": "m",
                "default_aggregation": {"formula": "max"},
            },
            "formula is 'max', not one of",
        ),
        ("POST", ITEMS, {"amount": "1e3"}, "amount is '1e3', not of type integer"),
        ("POST", ITEMS, {"period": {"start": "1"}}, "period.end is missing"),
        ("POST", INVOICES, {"auto_advance": "no"}, "auto_advance is 'no', not of type boolean"),
    ],
)
def test_a_wrong_request_would_be_found(
    method: str, path: str, params: dict[str, Any], problem: str
) -> None:
    assert any(problem in found for found in problems_of_request(method, path, params))


def test_a_right_request_has_no_problem() -> None:
    assert problems_of_request("POST", EVENTS, EVENT) == []
    assert problems_of_request("GET", SUMMARIES, DAY) == []
