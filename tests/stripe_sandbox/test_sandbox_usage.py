"""Meters, meter events, adjustments and summaries."""

from __future__ import annotations

from datetime import timedelta

import pytest
from stripe_api import Api

from billing.core.clock import ManualClock

HOUR = 3_600
DAY = 86_400
EVENTS = "/v1/billing/meter_events"


@pytest.fixture
def now(sandbox_clock: ManualClock) -> int:
    return int(sandbox_clock.now().timestamp())


def test_a_meter_is_given_back_as_it_was_made(api: Api):
    meter = api.meter(event_time_window="hour")
    found = api.get(f"/v1/billing/meters/{meter}")
    assert found["event_time_window"] == "hour"
    assert found["default_aggregation"] == {"formula": "sum"}
    assert found["value_settings"] == {"event_payload_key": "value"}
    assert found["customer_mapping"] == {"event_payload_key": "stripe_customer_id", "type": "by_id"}


def test_a_meter_without_windows_says_so(api: Api):
    meter = api.meter(event_time_window=None)
    assert api.get(f"/v1/billing/meters/{meter}")["event_time_window"] is None


def test_an_event_name_belongs_to_one_active_meter(api: Api):
    first = api.meter()
    params = {
        "display_name": "again",
        "event_name": "searches",
        "default_aggregation": {"formula": "sum"},
    }
    assert api.post("/v1/billing/meters", params).status == 400
    api.post(f"/v1/billing/meters/{first}/deactivate")
    second = api.post("/v1/billing/meters", params)
    assert second["status"] == "active"
    assert api.post(f"/v1/billing/meters/{first}/reactivate").status == 400
    inactive = api.get("/v1/billing/meters", status="inactive")
    assert [meter["id"] for meter in inactive["data"]] == [first]
    assert inactive["data"][0]["status_transitions"]["deactivated_at"] is not None


def test_a_meter_can_change_nothing_but_its_display_name(api: Api):
    meter = api.meter()
    assert api.post(f"/v1/billing/meters/{meter}", {"display_name": "New"})["display_name"] == "New"
    refused = api.post(f"/v1/billing/meters/{meter}", {"event_name": "other"}).error
    assert refused["code"] == "parameter_unknown"
    assert refused["param"] == "event_name"


@pytest.mark.parametrize("formula", ["max", "SUM", ""])
def test_only_stripes_formulas_are_taken(api: Api, formula: str):
    refused = api.post(
        "/v1/billing/meters",
        {
            "display_name": "a",
            "event_name": "a",
            "default_aggregation": {"formula": formula},
        },
    )
    assert refused.error["param"] == "default_aggregation[formula]"


def test_in_an_hour_window_the_last_to_arrive_counts(api: Api, now: int):
    meter, customer = api.meter(), api.customer()
    api.report(customer, "10", at=now - HOUR + 1800, identifier="r1")
    # Its timestamp is the earlier one, its arrival the later: arrival decides.
    api.report(customer, "7", at=now - HOUR + 60, identifier="r2")
    assert api.summary(meter, customer, now - HOUR, now) == {now - HOUR: 7}


def test_without_a_window_everything_adds_up(api: Api, now: int):
    meter, customer = api.meter(event_time_window=None), api.customer()
    for place, value in enumerate(("10", "7", "-2", "0.25")):
        api.report(customer, value, at=now - HOUR, identifier=f"raw{place}")
    assert api.summary(meter, customer, now - HOUR, now) == {now - HOUR: 15.25}


def test_in_a_day_window_the_last_of_the_utc_day_counts(api: Api, now: int):
    meter, customer = api.meter(event_time_window="day"), api.customer()
    api.report(customer, "10", at=now - 20 * HOUR)
    api.report(customer, "4", at=now - 2 * HOUR)
    api.report(customer, "1", at=now)
    days = api.summary(meter, customer, now - DAY, now + DAY, value_grouping_window="day")
    assert days == {now - DAY: 4, now: 1}


@pytest.mark.parametrize(("formula", "expected"), [("count", 3), ("last", 5), ("sum", 10)])
def test_the_formula_aggregates_the_interval(api: Api, now: int, formula: str, expected: int):
    meter = api.meter(event_time_window=None, default_aggregation={"formula": formula})
    customer = api.customer()
    for value, at in (("2", now - 300), ("5", now - 60), ("3", now - 120)):
        api.report(customer, value, at=at)
    assert api.summary(meter, customer, now - HOUR, now) == {now - HOUR: expected}


def test_hours_are_grouped_newest_first_and_paged(api: Api, now: int):
    meter, customer = api.meter(), api.customer()
    for hour in range(1, 13):
        api.report(customer, str(hour), at=now - hour * HOUR)
    path = f"/v1/billing/meters/{meter}/event_summaries"
    interval = {"customer": customer, "start_time": now - DAY, "end_time": now}
    first = api.get(path, **interval, value_grouping_window="hour")
    assert [one["aggregated_value"] for one in first["data"]] == list(range(1, 11))
    assert first["has_more"]
    cursor = first["data"][-1]["id"]
    rest = api.get(path, **interval, value_grouping_window="hour", starting_after=cursor)
    assert [one["aggregated_value"] for one in rest["data"]] == [11, 12]
    assert not rest["has_more"]
    assert rest["data"][0]["end_time"] - rest["data"][0]["start_time"] == HOUR


@pytest.mark.parametrize(
    ("start", "end", "grouping", "param"),
    [
        (30, HOUR, None, "start_time"),
        (0, 61, None, "end_time"),
        (60, HOUR, "hour", "start_time"),
        (0, HOUR, "day", "end_time"),
        (HOUR, HOUR, None, "end_time"),
        (HOUR, 0, "hour", "end_time"),
    ],
)
def test_an_interval_has_to_be_aligned(
    api: Api, now: int, start: int, end: int, grouping: str | None, param: str
):
    meter, customer = api.meter(), api.customer()
    params = {"customer": customer, "start_time": now + start, "end_time": now + end}
    if grouping:
        params["value_grouping_window"] = grouping
    refused = api.get(f"/v1/billing/meters/{meter}/event_summaries", **params)
    assert refused.status == 400
    assert refused.error["param"] == param


def test_a_customer_of_whom_nothing_is_known_has_no_summaries(api: Api, now: int):
    assert api.summary(api.meter(), api.customer(), now - DAY, now) == {}


def test_summaries_see_an_event_after_the_delay_that_is_set(
    api: Api, sandbox_clock: ManualClock, now: int
):
    meter, customer = api.meter(), api.customer()
    api.box.usage.summary_seconds = 90
    api.report(customer, "3", at=now)
    assert api.summary(meter, customer, now, now + HOUR) == {}
    sandbox_clock.advance(timedelta(seconds=89))
    assert api.summary(meter, customer, now, now + HOUR) == {}
    sandbox_clock.advance(timedelta(seconds=1))
    assert api.summary(meter, customer, now, now + HOUR) == {now: 3}


def test_an_overwrite_that_is_not_seen_yet_leaves_the_old_figure(
    api: Api, sandbox_clock: ManualClock, now: int
):
    meter, customer = api.meter(), api.customer()
    api.box.usage.summary_seconds = 60
    api.report(customer, "10", at=now)
    sandbox_clock.advance(timedelta(seconds=60))
    api.report(customer, "7", at=now)
    assert api.summary(meter, customer, now, now + HOUR) == {now: 10}
    sandbox_clock.advance(timedelta(seconds=60))
    assert api.summary(meter, customer, now, now + HOUR) == {now: 7}


def test_a_repeated_identifier_is_refused_with_stripes_words_and_no_code(api: Api, now: int):
    meter, customer = api.meter(event_time_window=None), api.customer()
    api.report(customer, "3", at=now, identifier="prod:searches:h1:r1")
    again = api.report(customer, "3", at=now, identifier="prod:searches:h1:r1")
    assert again.status == 400
    assert again.error == {
        "type": "invalid_request_error",
        "message": "An event already exists with identifier prod:searches:h1:r1.",
    }
    assert again.headers["Stripe-Should-Retry"] == "false"
    assert api.summary(meter, customer, now, now + HOUR) == {now: 3}


def test_after_a_day_an_identifier_is_forgotten_and_a_delta_adds_again(
    api: Api, sandbox_clock: ManualClock, now: int
):
    meter, customer = api.meter(event_time_window=None), api.customer()
    api.report(customer, "3", at=now, identifier="once")
    sandbox_clock.advance(timedelta(hours=23, minutes=59))
    assert api.report(customer, "3", at=now, identifier="once").status == 400
    sandbox_clock.advance(timedelta(minutes=1))
    assert api.report(customer, "3", at=now, identifier="once").status == 200
    assert api.summary(meter, customer, now, now + HOUR) == {now: 6}


@pytest.mark.parametrize(
    ("seconds", "status"), [(-35 * DAY, 200), (-35 * DAY - 1, 400), (300, 200), (301, 400)]
)
def test_a_timestamp_is_at_most_35_days_old_and_5_minutes_ahead(
    api: Api, now: int, seconds: int, status: int
):
    api.meter()
    answer = api.report(api.customer(), "1", at=now + seconds)
    assert answer.status == status
    if seconds < -35 * DAY:
        assert answer.error["message"] == (
            "The event timestamp cannot be more than 35 days in past. Expected a timestamp "
            f"greater than or equal to {now - 35 * DAY}"
        )


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("123456789012345", 200),
        ("1234567890123456", 400),
        ("-123456789012345", 200),
        ("0.00000123456789012345", 200),
        ("1.2345678901234560", 400),
        ("000000000000000000001", 200),
    ],
)
def test_a_value_has_at_most_15_significant_digits(api: Api, value: str, status: int):
    api.meter()
    assert api.report(api.customer(), value).status == status


@pytest.mark.parametrize(
    ("params", "param", "code"),
    [
        ({"event_name": "searches"}, "payload", "parameter_missing"),
        ({"payload": {"value": "1"}}, "event_name", "parameter_missing"),
        ({"event_name": "n" * 101, "payload": {"value": "1"}}, "event_name", None),
        (
            {"event_name": "a", "payload": {"value": "1"}, "identifier": "i" * 101},
            "identifier",
            None,
        ),
        (
            {"event_name": "a", "payload": {"value": "1"}, "identifier": ""},
            "identifier",
            "parameter_invalid_empty",
        ),
        (
            {"event_name": "a", "payload": {"value": "1"}, "timestamp": "1.5"},
            "timestamp",
            "parameter_invalid_integer",
        ),
        (
            {"event_name": "a", "payload": {"value": "1"}, "value": "1"},
            "value",
            "parameter_unknown",
        ),
        ({"event_name": "a", "payload": "1"}, "payload", None),
    ],
)
def test_a_wrong_parameter_is_named(
    api: Api, params: dict[str, object], param: str, code: str | None
):
    refused = api.post(EVENTS, params)
    assert refused.status == 400
    assert refused.error["type"] == "invalid_request_error"
    assert refused.error["param"] == param
    assert refused.error.get("code") == code


def test_an_unknown_customer_is_taken_and_reported_afterwards(api: Api):
    meter = api.meter()
    assert api.report("cus_nobody", "4", identifier="lost").status == 200
    [event_id] = [e["id"] for e in api.box.events.all() if e["object"] == "v2.core.event"]
    event = api.get(f"/v2/core/events/{event_id}")
    assert event["type"] == "v1.billing.meter.error_report_triggered"
    assert event["related_object"]["id"] == meter
    [kind] = event["data"]["reason"]["error_types"]
    assert kind["code"] == "meter_event_customer_not_found"
    assert kind["sample_errors"][0]["request"] == {"identifier": "lost"}
    assert event["data"]["validation_start"] <= "2020-04-10T00:00:00.000Z"


def test_a_report_counts_every_error_and_lists_only_samples(api: Api, sandbox_clock: ManualClock):
    api.meter()
    api.box.usage.judgement_seconds = 30
    for place in range(8):
        api.report("cus_nobody", "4", identifier=f"lost{place}")
    assert not [e for e in api.box.events.all() if e["object"] == "v2.core.event"]
    sandbox_clock.advance(timedelta(seconds=30))
    api.box.advance()
    [event] = [e for e in api.box.events.all() if e["object"] == "v2.core.event"]
    reason = event["data"]["reason"]
    assert reason["error_count"] == 8
    assert len(reason["error_types"][0]["sample_errors"]) == 5


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"value": "1"}, "meter_event_no_customer_defined"),
        ({"stripe_customer_id": "{customer}"}, "meter_event_value_not_found"),
        ({"stripe_customer_id": "{customer}", "value": "1E-7"}, "meter_event_invalid_value"),
        ({"stripe_customer_id": "{customer}", "value": "many"}, "meter_event_invalid_value"),
    ],
)
def test_what_is_wrong_with_a_payload_is_reported(api: Api, payload: dict[str, str], code: str):
    api.meter()
    customer = api.customer()
    filled = {name: value.format(customer=customer) for name, value in payload.items()}
    assert api.post(EVENTS, {"event_name": "searches", "payload": filled}).status == 200
    assert api.box.usage.taken[-1].state == code


def test_a_missing_and_an_archived_meter_are_reported(api: Api):
    customer = api.customer()
    api.report(customer, "1", name="nothing-listens")
    assert api.box.events.all()[-1]["type"] == "v1.billing.meter.no_meter_found"
    meter = api.meter()
    api.post(f"/v1/billing/meters/{meter}/deactivate")
    api.report(customer, "1")
    assert api.box.usage.taken[-1].state == "archived_meter"


def test_a_deleted_customer_is_not_found_when_judged(api: Api, sandbox_clock: ManualClock):
    api.meter()
    customer = api.customer()
    api.box.usage.judgement_seconds = 10
    api.report(customer, "1")
    api.delete(f"/v1/customers/{customer}")
    sandbox_clock.advance(timedelta(seconds=10))
    api.box.advance()
    assert api.box.usage.taken[-1].state == "meter_event_customer_not_found"


def test_a_cancelled_event_counts_no_longer(api: Api, sandbox_clock: ManualClock, now: int):
    meter, customer = api.meter(event_time_window=None), api.customer()
    api.report(customer, "3", at=now, identifier="keep")
    api.report(customer, "4", at=now, identifier="drop")
    order = {"event_name": "searches", "type": "cancel", "cancel": {"identifier": "drop"}}
    assert api.post("/v1/billing/meter_event_adjustments", order)["status"] == "pending"
    assert api.summary(meter, customer, now, now + HOUR) == {now: 3}
    assert api.post("/v1/billing/meter_event_adjustments", order).status == 400
    sandbox_clock.advance(timedelta(hours=25))
    order["cancel"] = {"identifier": "keep"}
    assert api.post("/v1/billing/meter_event_adjustments", order).status == 400


def test_v2_takes_an_event_and_says_its_instants_in_words(api: Api, now: int):
    meter, customer = api.meter(), api.customer()
    taken = api.post(
        "/v2/billing/meter_events",
        {
            "event_name": "searches",
            "payload": {"stripe_customer_id": customer, "value": "5"},
            "timestamp": "2020-04-10T00:00:00Z",
        },
    )
    assert taken["timestamp"] == "2020-04-10T00:00:00.000Z"
    assert api.summary(meter, customer, now, now + HOUR) == {now: 5}


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"value": "1"}, "payload_no_customer_defined"),
        ({"stripe_customer_id": "cus_1"}, "payload_no_value_defined"),
        ({"stripe_customer_id": "cus_1", "value": "-1"}, "payload_invalid_value"),
        ({"stripe_customer_id": "cus_1", "value": "1.5"}, "payload_invalid_value"),
    ],
)
def test_v2_judges_the_payload_at_once(api: Api, payload: dict[str, str], code: str):
    api.meter()
    event = {"event_name": "searches", "payload": payload}
    refused = api.post("/v2/billing/meter_events", event)
    assert refused.status == 400
    assert refused.error["code"] == code


def test_v2_has_a_code_for_a_duplicate_a_missing_and_an_archived_meter(api: Api):
    meter, customer = api.meter(), api.customer()
    payload = {"stripe_customer_id": customer, "value": "5"}
    event = {"event_name": "searches", "payload": payload, "identifier": "same"}
    path = "/v2/billing/meter_events"
    assert api.post(path, event).status == 200
    assert api.post(path, event).error["code"] == "duplicate_meter_event"
    assert api.post(path, {**event, "event_name": "none"}).error["code"] == "no_meter"
    api.post(f"/v1/billing/meters/{meter}/deactivate")
    assert api.post(path, event).error["code"] == "archived_meter"
