"""What is read of an event, and what is no event."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import NOW

from billing.providers.port import ProviderCause
from billing.stripe_webhooks.meter_errors import read_meter_errors
from billing.stripe_webhooks.stripe_event import (
    KINDS,
    EventKind,
    StripeEvent,
    Unreadable,
    read_event,
    stand_in,
)

SNAPSHOT: dict[str, Any] = {
    "id": "evt_1",
    "object": "event",
    "type": "invoice.paid",
    "created": 1_795_000_000,
    "livemode": False,
    "data": {"object": {"id": "in_1", "object": "invoice", "status": "draft"}},
}
THIN: dict[str, Any] = {
    "id": "evt_test_2",
    "object": "v2.core.event",
    "type": "v1.billing.meter.error_report_triggered",
    "created": "2026-11-21T18:18:05.760Z",
    "livemode": True,
    "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"},
}
# As Stripe documents it.
ERRORS: dict[str, Any] = {
    "developer_message_summary": "There are 4 invalid events",
    "reason": {
        "error_count": 4,
        "error_types": [
            {
                "code": "meter_event_customer_not_found",
                "error_count": 3,
                "sample_errors": [
                    {"error_message": "No such customer", "request": {"identifier": "main:r1"}},
                    {"error_message": "No such customer", "request": {"identifier": "main:r2"}},
                ],
            },
            {
                "code": "archived_meter",
                "error_count": 1,
                "sample_errors": [
                    {"error_message": "archived", "request": {"identifier": "main:r3"}}
                ],
            },
        ],
    },
    "validation_start": "2026-11-21T18:18:00.000Z",
    "validation_end": "2026-11-21T18:18:10.000Z",
}


def read(event: object, **changes: Any) -> StripeEvent:
    if changes:
        assert isinstance(event, dict)
        event = {**event, **changes}
    return read_event(json.dumps(event).encode())


def test_a_snapshot_is_read_for_its_ids_only():
    notice = read(SNAPSHOT)
    assert notice == StripeEvent(
        id="evt_1",
        type="invoice.paid",
        happened_at=datetime.fromtimestamp(1_795_000_000, UTC),
        live=False,
        thing="in_1",
    )
    assert notice.kind is EventKind.INVOICE


def test_a_thin_event_names_what_it_is_about():
    notice = read(THIN)
    assert (notice.id, notice.thing, notice.live) == ("evt_test_2", "mtr_1", True)
    assert notice.happened_at == datetime(2026, 11, 21, 18, 18, 5, 760_000, UTC)
    assert notice.kind is EventKind.METER_ERRORS


def test_an_event_about_nothing_is_one_where_its_kind_needs_nothing():
    unrelated = {key: value for key, value in THIN.items() if key != "related_object"}
    notice = read(unrelated, type="v1.billing.meter.no_meter_found")
    assert (notice.thing, notice.kind) == ("", EventKind.METER_ERRORS)
    assert read(SNAPSHOT, type="balance.available", data={}).kind is None


def test_the_types_of_the_issue_are_handled():
    assert {
        *("invoice.created", "invoice.finalized", "invoice.paid", "invoice.payment_failed"),
        *("invoice.voided", "customer.deleted", "checkout.session.completed"),
        "v1.billing.meter.error_report_triggered",
        "v1.billing.meter.no_meter_found",
    } <= set(KINDS)


@pytest.mark.parametrize(
    "changes",
    [
        {"object": "invoice"},
        {"object": None},
        {"id": None},
        {"id": ""},
        {"id": "x" * 256},
        {"id": "evt\x00"},
        {"id": "evt\n"},
        {"id": 7},
        {"type": None},
        {"type": "\ud800"},
        {"created": "2026-11-21T18:18:05Z"},
        {"created": True},
        {"created": -1},
        {"created": 10**18},
        {"created": 1.5},
        {"livemode": None},
        {"livemode": "false"},
        {"data": None},
        {"data": {}},
        {"data": {"object": "in_1"}},
        {"data": {"object": {"id": "in\x00"}}},
    ],
    ids=repr,
)
def test_what_is_not_as_described_is_unreadable(changes: dict[str, Any]):
    with pytest.raises(Unreadable):
        read(SNAPSHOT, **changes)


@pytest.mark.parametrize("created", [1_795_000_000, "yesterday", "2026-11-21T18:18:05", None])
def test_a_thin_event_needs_an_instant_with_its_offset(created: object):
    with pytest.raises(Unreadable, match="created"):
        read(THIN, created=created)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"7", b"{", b"\xff", b"[" * 5000, b'{"a":NaN}']
)
def test_what_is_no_object_of_json_is_unreadable(body: bytes):
    with pytest.raises(Unreadable):
        read_event(body)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.sampled_from([SNAPSHOT, THIN]), st.data())
def test_whatever_a_field_holds_it_is_read_or_unreadable(
    event: dict[str, Any], data: st.DataObject
):
    name = data.draw(st.sampled_from(sorted(event)))
    body = json.dumps({**event, name: data.draw(_JSON)}).encode()
    try:
        notice = read_event(body)
    except Unreadable:
        return
    else:
        assert notice.id
        assert notice.happened_at.tzinfo is not None


def test_the_same_unreadable_body_has_the_same_id():
    first, again = stand_in(b"x", NOW), stand_in(b"x", NOW + timedelta(hours=1))
    assert first.id == again.id != stand_in(b"y", NOW).id
    assert len(first.id) <= 255


def test_meter_errors_are_read_with_their_window_codes_and_samples():
    errors = read_meter_errors({**THIN, "data": ERRORS})
    assert errors.start == datetime(2026, 11, 21, 18, 18, 0, tzinfo=UTC)
    assert errors.end == datetime(2026, 11, 21, 18, 18, 10, tzinfo=UTC)
    assert errors.codes == {"meter_event_customer_not_found": 3, "archived_meter": 1}
    assert errors.sampled == {
        "main:r1": ProviderCause.CUSTOMER_MISSING,
        "main:r2": ProviderCause.CUSTOMER_MISSING,
        "main:r3": ProviderCause.METER_INACTIVE,
    }
    assert errors.summary == "meter_event_customer_not_found 3, archived_meter 1"


def test_a_repeat_that_stripe_dropped_is_no_error_of_a_report():
    kind = {**ERRORS["reason"]["error_types"][0], "code": "duplicate_meter_event"}
    errors = read_meter_errors({"data": {**ERRORS, "reason": {"error_types": [kind]}}})
    assert errors.sampled == {}
    assert errors.codes == {"duplicate_meter_event": 3}


@pytest.mark.parametrize(
    "reason",
    [
        None,
        {},
        "x",
        {"error_types": None},
        {"error_types": ["x", {"code": "archived_meter"}]},
        {"error_types": [{"sample_errors": [None, {"request": None}, {"request": {}}]}]},
    ],
    ids=repr,
)
def test_the_window_counts_whatever_else_is_missing(reason: object):
    errors = read_meter_errors({"data": {**ERRORS, "reason": reason}})
    assert errors.sampled == {}
    assert errors.start < errors.end
    assert errors.summary


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {**ERRORS, "validation_start": None},
        {**ERRORS, "validation_end": "2026-11-21T18:18:10"},
        {**ERRORS, "validation_end": "2026-11-21T18:17:59.000Z"},
    ],
    ids=repr,
)
def test_meter_errors_without_a_window_are_unreadable(data: object):
    with pytest.raises(Unreadable):
        read_meter_errors({"data": data})
