"""Stripe's meters and figures, when everything goes wrong that a network and Stripe can do."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from stripe_api import KEY
from stripe_bench import EVENTS, HOUR, METER, METERS, LocalStripe, delete, report, until_answered

from billing.devtools.embedded_servers.launch import free_ports
from billing.providers.port import ProviderCause, ProviderUnavailable, ProviderVerdict
from billing.providers.stripe.client import StripeUnanswered, client_of
from billing.providers.stripe.provider import StripeProvider
from billing.providers.stripe.usage import exact


def figures(provider: StripeProvider, customer_ref: str) -> dict[Any, int]:
    return dict(provider.read_back(customer_ref, METER.name, HOUR.date()))


# ---- figures ----


@pytest.mark.parametrize(
    ("fault", "first", "then"),
    [
        ({"kind": "timeout"}, ProviderCause.CONNECTION_FAILED, ProviderCause.DUPLICATE_IDENTIFIER),
        (
            {"kind": "timeout", "effect": False},
            ProviderCause.CONNECTION_FAILED,
            ProviderCause.TAKEN,
        ),
        ({"kind": "server_error"}, ProviderCause.SERVER_ERROR, ProviderCause.TAKEN),
        (
            {"kind": "server_error", "effect": True},
            ProviderCause.SERVER_ERROR,
            ProviderCause.DUPLICATE_IDENTIFIER,
        ),
        ({"kind": "rate_limit"}, ProviderCause.RATE_LIMITED, ProviderCause.TAKEN),
        ({"kind": "lock_timeout"}, ProviderCause.LOCK_TIMEOUT, ProviderCause.TAKEN),
        ({"kind": "unauthorized"}, ProviderCause.KEY_REFUSED, ProviderCause.TAKEN),
        ({"kind": "forbidden"}, ProviderCause.PERMISSION_REFUSED, ProviderCause.TAKEN),
        (
            {"kind": "latency", "seconds": 0.2},
            ProviderCause.TAKEN,
            ProviderCause.DUPLICATE_IDENTIFIER,
        ),
    ],
)
def test_whatever_happens_to_a_figure_it_counts_once_when_sent_again(
    local: LocalStripe,
    provider: StripeProvider,
    acme: str,
    fault: dict[str, Any],
    first: ProviderCause,
    then: ProviderCause,
) -> None:
    local.control.fault(path=EVENTS, **fault)
    assert provider.report_usage(report(acme)).cause is first
    assert provider.report_usage(report(acme)).cause is then
    assert figures(provider, acme) == {HOUR: 1_500_000}


def test_an_answer_that_takes_too_long_is_unknown_and_the_figure_counts_once(
    local: LocalStripe, acme: str
) -> None:
    hasty = local.adapter(read_seconds=0.3)
    local.control.fault("timeout", path=EVENTS, seconds=1.0)
    answer = hasty.report_usage(report(acme))
    assert (answer.cause, answer.verdict) == (ProviderCause.TIMED_OUT, ProviderVerdict.UNKNOWN)
    assert hasty.report_usage(report(acme)).cause is ProviderCause.DUPLICATE_IDENTIFIER
    assert figures(local.adapter(), acme) == {HOUR: 1_500_000}


def test_a_newer_figure_stands_whatever_becomes_of_an_older_one_sent_again(
    local: LocalStripe, provider: StripeProvider, acme: str
) -> None:
    local.control.fault("server_error", path=EVENTS, effect=True)
    provider.report_usage(report(acme))
    assert provider.report_usage(report(acme, number=2, value=7)).cause is ProviderCause.TAKEN
    assert provider.report_usage(report(acme)).cause is ProviderCause.DUPLICATE_IDENTIFIER
    assert figures(provider, acme) == {HOUR: 7}


def test_every_attempt_has_a_fresh_idempotency_key_and_the_same_identifier(
    local: LocalStripe, provider: StripeProvider, acme: str
) -> None:
    local.control.fault("server_error", path=EVENTS, times=3)
    for _ in range(4):
        provider.report_usage(report(acme))
    sent = local.requests(EVENTS)
    assert [one["status"] for one in sent] == [500, 500, 500, 200]
    assert len({one["idempotency_key"] for one in sent}) == 4
    assert {one["params"]["identifier"] for one in sent} == {"test:r1"}
    assert not any(one["replayed"] for one in sent)


def test_the_adapter_itself_never_sends_twice(
    local: LocalStripe, provider: StripeProvider, acme: str
) -> None:
    for kind in ("server_error", "rate_limit", "lock_timeout", "timeout"):
        local.control.fault(kind, path=EVENTS)
        before = local.count("requests")
        assert provider.report_usage(report(acme)).verdict is ProviderVerdict.UNKNOWN
        assert local.count("requests") == before + 1


def test_a_figure_is_digits_at_an_instant_inside_its_hour(
    local: LocalStripe, provider: StripeProvider, acme: str
) -> None:
    for number, value in enumerate((0, 10**15 - 1, -5), start=1):
        assert provider.report_usage(report(acme, number, value)).cause is ProviderCause.TAKEN
    sent = [one["params"] for one in local.requests(EVENTS)]
    assert [one["payload"]["value"] for one in sent] == ["0", "999999999999999", "-5"]
    half_past = str(int(HOUR.timestamp()) + 1_800)
    assert {one["timestamp"] for one in sent} == {half_past}


@pytest.mark.parametrize(
    ("moved", "cause"),
    [
        (timedelta(days=-36), ProviderCause.TOO_OLD),
        (timedelta(days=-34), ProviderCause.TAKEN),
        (timedelta(hours=4), ProviderCause.IN_THE_FUTURE),
    ],
)
def test_stripe_takes_figures_of_the_last_35_days(
    provider: StripeProvider, acme: str, moved: timedelta, cause: ProviderCause
) -> None:
    one = report(acme)
    moved_report = replace(one, hour=one.hour + moved, timestamp=one.timestamp + moved)
    assert provider.report_usage(moved_report).cause is cause


def test_a_malformed_report_is_refused_without_asking(
    local: LocalStripe, provider: StripeProvider, acme: str
) -> None:
    wrong = replace(report(acme), timestamp=HOUR + timedelta(hours=1))
    assert provider.report_usage(wrong).cause is ProviderCause.INVALID_REQUEST
    assert provider.report_usage(report(acme, value=10**15)).cause is ProviderCause.INVALID_VALUE
    assert local.requests(EVENTS) == []


def test_nobody_at_the_address_is_a_lost_connection() -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    provider = StripeProvider(client_of(KEY, url))
    said = f"no answer from {url.removeprefix('http://')}: nobody listens there"
    answer = provider.report_usage(report("cus_1"))
    assert (answer.cause, answer.detail) == (ProviderCause.CONNECTION_FAILED, said)
    with pytest.raises(ProviderUnavailable, match=said):
        provider.ensure_meters([METER])


def test_a_key_that_stripe_does_not_know_stops_everything(local: LocalStripe) -> None:
    stranger = StripeProvider(client_of("sk_live_4eC39HqLyjWDarjtT1zdp7dc", local.url))
    answer = stranger.report_usage(report("cus_1"))
    assert (answer.cause, answer.verdict) == (ProviderCause.KEY_REFUSED, ProviderVerdict.STOPPED)
    assert "4eC39HqLyjWDarjtT1zdp7dc" not in answer.detail
    with pytest.raises(StripeUnanswered) as refused:
        stranger.ensure_meters([METER])
    assert refused.value.cause is ProviderCause.KEY_REFUSED


# ---- reading back ----


def test_what_was_taken_is_absent_until_stripe_has_summed_it(
    local: LocalStripe, provider: StripeProvider, acme: str
) -> None:
    local.control.post("settings", summary_seconds=600)
    provider.report_usage(report(acme))
    assert figures(provider, acme) == {}
    local.control.post("clock", advance_seconds=600)
    assert figures(provider, acme) == {HOUR: 1_500_000}


def test_a_whole_day_comes_hour_by_hour(provider: StripeProvider, acme: str) -> None:
    midnight = HOUR.replace(hour=0) - timedelta(days=1)
    expected = {midnight + timedelta(hours=hour): 10**14 + hour for hour in range(24)}
    for number, (hour, value) in enumerate(expected.items()):
        sent = replace(report(acme, number, value), hour=hour, timestamp=hour)
        assert provider.report_usage(sent).cause is ProviderCause.TAKEN
    assert provider.read_back(acme, METER.name, midnight.date()) == expected
    assert figures(provider, acme) == {}


def test_a_deleted_customer_is_said_and_is_not_zero(
    local: LocalStripe, provider: StripeProvider, acme: str
) -> None:
    provider.report_usage(report(acme))
    delete(local, acme)
    with pytest.raises(StripeUnanswered, match=f"{acme} is not there or deleted") as gone:
        figures(provider, acme)
    assert gone.value.cause is ProviderCause.CUSTOMER_MISSING
    assert provider.report_usage(report(acme, number=2)).cause is ProviderCause.TAKEN


def test_a_meter_that_is_not_there_is_said_and_is_not_zero(
    local: LocalStripe, provider: StripeProvider, acme: str
) -> None:
    with pytest.raises(StripeUnanswered, match=r"there is no meter test\.other") as gone:
        provider.read_back(acme, "test.other", HOUR.date())
    assert gone.value.cause is ProviderCause.METER_MISSING
    local.control.post("reset")
    with pytest.raises(StripeUnanswered) as gone:
        figures(provider, acme)
    assert gone.value.cause in {ProviderCause.METER_MISSING, ProviderCause.CUSTOMER_MISSING}


def test_a_deactivated_meter_still_tells_its_figures(
    local: LocalStripe, provider: StripeProvider, acme: str
) -> None:
    provider.report_usage(report(acme))
    [there] = provider.ensure_meters([METER])
    local.person.billing.meters.deactivate(there.provider_id)
    assert figures(local.adapter(), acme) == {HOUR: 1_500_000}


def test_somebody_elses_fraction_is_said_and_not_rounded(
    local: LocalStripe, provider: StripeProvider, acme: str
) -> None:
    payload = {"stripe_customer_id": acme, "value": "0.5"}
    local.person.billing.meter_events.create(
        {"event_name": METER.name, "payload": payload, "timestamp": int(HOUR.timestamp())}
    )
    with pytest.raises(StripeUnanswered, match=r"0\.5"):
        figures(provider, acme)


@pytest.mark.parametrize(
    ("told", "value"), [(0, 0), (7.0, 7), (-3.0, -3), (999_999_999_999_999.0, 10**15 - 1)]
)
def test_a_number_of_at_most_fifteen_digits_is_exact(told: float, value: int) -> None:
    assert exact(told) == value
    assert isinstance(exact(told), int)


@pytest.mark.parametrize("told", [0.1, 1e15, -1e15, 1e300, float("inf"), float("nan")])
def test_any_other_number_is_not_ours(told: float) -> None:
    with pytest.raises(StripeUnanswered) as refused:
        exact(told)
    assert refused.value.cause is ProviderCause.INVALID_VALUE


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("timeout", ProviderCause.CONNECTION_FAILED),
        ("server_error", ProviderCause.SERVER_ERROR),
        ("rate_limit", ProviderCause.RATE_LIMITED),
        ("unauthorized", ProviderCause.KEY_REFUSED),
        ("forbidden", ProviderCause.PERMISSION_REFUSED),
    ],
)
def test_a_question_without_an_answer_is_unavailable_and_says_why(
    local: LocalStripe, provider: StripeProvider, acme: str, kind: str, cause: ProviderCause
) -> None:
    local.control.fault(kind, path=f"{METERS}/*/event_summaries")
    with pytest.raises(StripeUnanswered) as unanswered:
        figures(provider, acme)
    assert unanswered.value.cause is cause
    assert figures(provider, acme) == {}


# ---- meters ----


def test_a_meter_is_made_as_an_hourly_sum_with_the_usual_payload(local: LocalStripe) -> None:
    [made] = local.adapter().ensure_meters([METER])
    assert (made.created, list(made.differences)) == (True, [])
    there = local.person.billing.meters.retrieve(made.provider_id)
    assert there.default_aggregation.formula == "sum"
    assert there.event_time_window == "hour"
    assert there.display_name == METER.display_name
    [again] = local.adapter().ensure_meters([METER])
    assert (again.created, again.provider_id) == (False, made.provider_id)


def test_a_dry_run_makes_no_meter(local: LocalStripe) -> None:
    [check] = local.adapter().ensure_meters([METER], dry_run=True)
    assert (check.provider_id, check.created) == ("", False)
    assert local.count("meters") == 0


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"event_time_window": "day"}, "event_time_window is day, needed hour"),
        (
            {"default_aggregation": {"formula": "last"}},
            "default_aggregation.formula is last, needed sum",
        ),
        (
            {"customer_mapping": {"type": "by_id", "event_payload_key": "who"}},
            "customer_mapping.event_payload_key is who, needed stripe_customer_id",
        ),
        (
            {"value_settings": {"event_payload_key": "much"}},
            "value_settings.event_payload_key is much, needed value",
        ),
    ],
)
def test_a_meter_made_otherwise_is_told_with_the_field(
    local: LocalStripe, changes: dict[str, Any], difference: str
) -> None:
    params: Any = {
        "display_name": "By hand",
        "event_name": METER.name,
        "default_aggregation": {"formula": "sum"},
        "event_time_window": "hour",
        **changes,
    }
    made = local.person.billing.meters.create(params)
    [check] = local.adapter().ensure_meters([METER])
    assert (check.provider_id, check.created) == (made.id, False)
    assert list(check.differences) == [difference]


def test_a_deactivated_meter_is_told_and_not_made_anew(
    local: LocalStripe, provider: StripeProvider
) -> None:
    [there] = provider.ensure_meters([METER])
    local.person.billing.meters.deactivate(there.provider_id)
    [check] = provider.ensure_meters([METER])
    assert list(check.differences) == ["status is inactive, needed active"]
    assert local.count("meters") == 1


def test_an_active_meter_goes_before_a_deactivated_one_of_the_same_name(
    local: LocalStripe, provider: StripeProvider
) -> None:
    [old] = provider.ensure_meters([METER])
    local.person.billing.meters.deactivate(old.provider_id)
    params: Any = {
        "display_name": "New",
        "event_name": METER.name,
        "default_aggregation": {"formula": "sum"},
        "event_time_window": "hour",
    }
    new = local.person.billing.meters.create(params)
    [check] = provider.ensure_meters([METER])
    assert (check.provider_id, list(check.differences)) == (new.id, [])


def test_a_meter_is_found_behind_a_hundred_others(
    local: LocalStripe, provider: StripeProvider
) -> None:
    [first] = provider.ensure_meters([METER])
    others = [replace(METER, name=f"test.{number}") for number in range(105)]
    assert all(check.created for check in provider.ensure_meters(others))
    before = len(local.requests(METERS))
    [again] = local.adapter().ensure_meters([METER])
    assert again.provider_id == first.provider_id
    assert [one["method"] for one in local.requests(METERS)[before:]] == ["GET", "GET"]


@pytest.mark.parametrize("kind", ["timeout", "server_error"])
@pytest.mark.parametrize("effect", [True, False])
def test_one_meter_is_made_whatever_becomes_of_the_answer(
    local: LocalStripe, kind: str, effect: bool
) -> None:
    local.control.fault(kind, path=METERS, method="POST", effect=effect)
    provider = local.adapter()
    [check], failed = until_answered(lambda: provider.ensure_meters([METER]))
    assert failed == 1
    assert list(check.differences) == []
    assert local.count("meters") == 1
