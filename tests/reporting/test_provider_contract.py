"""One suite for every billing provider."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from provider_contracts import BENCHES, Bench
from support import NOW, add_customer

from billing.core.errors import AlreadyExists, NotFound
from billing.providers.port import (
    InvoiceLine,
    ProviderCause,
    ProviderMeter,
    ProviderUnavailable,
    ProviderVerdict,
    UsageReport,
)

HOUR = NOW.replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
DAY = HOUR.date()
METER = ProviderMeter(sku="page-capture", name="test.page-capture", display_name="Pages captured")
LINES = (
    InvoiceLine(
        key="page-capture",
        description="Pages captured",
        amount_minor=1250,
        period_start=datetime(2026, 10, 1, tzinfo=UTC),
        period_end=datetime(2026, 11, 1, tzinfo=UTC),
    ),
    InvoiceLine(
        key="carry",
        description="Late usage",
        amount_minor=-50,
        period_start=datetime(2026, 9, 1, tzinfo=UTC),
        period_end=datetime(2026, 10, 1, tzinfo=UTC),
    ),
)


@pytest.fixture(params=sorted(BENCHES))
def bench(request: pytest.FixtureRequest, engine: sa.Engine, tmp_path: Path) -> Iterator[Bench]:
    add_customer(engine, "acme")
    add_customer(engine, "globex")
    with BENCHES[request.param](engine, tmp_path / "provider") as made:
        made.provider.ensure_meters([METER])
        yield made


def report_of(bench: Bench, customer: str = "acme", **changes: object) -> UsageReport:
    report = UsageReport(
        identifier="test:r1",
        customer_ref=bench.provider.link_customer(customer, customer.title()),
        meter=METER.name,
        hour=HOUR,
        value=1_500_000,
        timestamp=HOUR + timedelta(minutes=30),
    )
    return replace(report, **changes)  # type: ignore[arg-type]  # fields by name


def figures(bench: Bench, customer: str = "acme") -> dict[datetime, int]:
    bench.settle()
    ref = bench.provider.link_customer(customer, customer.title())
    return dict(bench.provider.read_back(ref, METER.name, DAY))


def test_a_figure_that_was_taken_is_read_back(bench: Bench) -> None:
    assert bench.provider.report_usage(report_of(bench)).cause is ProviderCause.TAKEN
    assert figures(bench) == {HOUR: 1_500_000}
    assert figures(bench, "globex") == {}


def test_the_same_report_again_is_accepted_and_changes_nothing(bench: Bench) -> None:
    bench.provider.report_usage(report_of(bench))
    again = bench.again().report_usage(report_of(bench))
    assert again.cause is ProviderCause.DUPLICATE_IDENTIFIER
    assert again.verdict is ProviderVerdict.ACCEPTED
    assert figures(bench) == {HOUR: 1_500_000}


def test_an_identifier_is_never_taken_for_another_figure(bench: Bench) -> None:
    bench.provider.report_usage(report_of(bench))
    bench.provider.report_usage(report_of(bench, value=9))
    assert figures(bench) == {HOUR: 1_500_000}


@pytest.mark.parametrize("second", [700_000, 0, 2_000_000])
def test_the_last_figure_of_an_hour_is_the_one_that_counts(bench: Bench, second: int) -> None:
    bench.provider.report_usage(report_of(bench))
    answer = bench.provider.report_usage(report_of(bench, identifier="test:r2", value=second))
    assert answer.cause is ProviderCause.TAKEN
    assert figures(bench) == {HOUR: second}


def test_an_old_report_sent_again_does_not_come_back_over_a_newer_one(bench: Bench) -> None:
    bench.provider.report_usage(report_of(bench))
    bench.provider.report_usage(report_of(bench, identifier="test:r2", value=7))
    bench.provider.report_usage(report_of(bench))
    assert figures(bench) == {HOUR: 7}


def test_customers_meters_hours_and_days_are_kept_apart(bench: Bench) -> None:
    later = HOUR + timedelta(hours=1)
    other_day = HOUR - timedelta(days=1)
    reports = [
        report_of(bench),
        report_of(bench, "globex", identifier="g", value=2),
        report_of(bench, identifier="l", hour=later, timestamp=later, value=3),
        report_of(bench, identifier="d", hour=other_day, timestamp=other_day, value=4),
    ]
    for report in reports:
        assert bench.provider.report_usage(report).cause is ProviderCause.TAKEN
    assert figures(bench) == {HOUR: 1_500_000, later: 3}
    assert figures(bench, "globex") == {HOUR: 2}
    ref = reports[0].customer_ref
    assert bench.provider.read_back(ref, METER.name, other_day.date()) == {other_day: 4}


def test_who_or_what_is_not_there_has_no_figures(bench: Bench) -> None:
    ref = bench.provider.link_customer("acme", "Acme")
    asked = {
        ProviderCause.CUSTOMER_MISSING: ("nobody", METER.name),
        ProviderCause.METER_MISSING: (ref, "test.other"),
    }
    for cause, (customer_ref, meter) in asked.items():
        if not bench.says_who_is_missing:
            assert bench.provider.read_back(customer_ref, meter, DAY) == {}
            continue
        with pytest.raises(ProviderUnavailable) as unanswered:
            bench.provider.read_back(customer_ref, meter, DAY)
        assert unanswered.value.cause is cause


def test_fifteen_digits_are_kept_exactly_and_sixteen_are_refused(bench: Bench) -> None:
    answer = bench.provider.report_usage(report_of(bench, value=10**15 - 1))
    assert answer.cause is ProviderCause.TAKEN
    refused = bench.provider.report_usage(report_of(bench, identifier="test:r2", value=10**15))
    assert refused.cause is ProviderCause.INVALID_VALUE
    assert figures(bench) == {HOUR: 10**15 - 1}


def test_an_identifier_may_have_a_hundred_characters_and_no_more(bench: Bench) -> None:
    taken = bench.provider.report_usage(report_of(bench, identifier="x" * 100))
    assert taken.cause is ProviderCause.TAKEN
    refused = bench.provider.report_usage(report_of(bench, identifier="x" * 101))
    assert refused.cause is ProviderCause.INVALID_REQUEST


def test_a_provider_that_knows_its_customers_takes_no_others(bench: Bench) -> None:
    answer = bench.provider.report_usage(report_of(bench, customer_ref="nobody"))
    expected = ProviderCause.CUSTOMER_MISSING if bench.knows_its_customers else ProviderCause.TAKEN
    assert answer.cause is expected


def test_one_report_sent_by_eight_at_once_is_taken_once(bench: Bench) -> None:
    adapters = [bench.provider, *(bench.again() for _ in range(7))]
    report = report_of(bench)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda adapter: adapter.report_usage(report).cause, adapters))
    assert sorted(answers) == [ProviderCause.DUPLICATE_IDENTIFIER] * 7 + [ProviderCause.TAKEN]
    assert figures(bench) == {HOUR: 1_500_000}


def test_linking_a_customer_twice_gives_the_same_id(bench: Bench) -> None:
    first = bench.provider.link_customer("acme", "Acme")
    assert first
    assert bench.again().link_customer("acme", "Acme") == first
    assert bench.provider.link_customer("globex", "Globex") != first


def test_meters_that_are_there_have_an_id_and_no_differences(bench: Bench) -> None:
    [check] = bench.provider.ensure_meters([METER], dry_run=True)
    assert check.provider_id
    assert not check.created
    assert list(check.differences) == []


def test_an_invoice_is_opened_once_per_key_with_exactly_its_lines(bench: Bench) -> None:
    ref = bench.provider.link_customer("acme", "Acme")
    draft = bench.provider.open_invoice("acme:2026-10", ref, "USD", LINES)
    assert (draft.status, draft.total_minor, draft.lines) == ("draft", 1200, LINES)
    assert bench.again().open_invoice("acme:2026-10", ref, "USD", LINES) == draft
    assert bench.provider.open_invoice("acme:2026-11", ref, "USD", LINES) != draft


def test_a_key_is_never_taken_for_other_lines(bench: Bench) -> None:
    ref = bench.provider.link_customer("acme", "Acme")
    bench.provider.open_invoice("acme:2026-10", ref, "USD", LINES)
    with pytest.raises(AlreadyExists):
        bench.provider.open_invoice("acme:2026-10", ref, "USD", LINES[:1])


def test_a_final_invoice_stays_final_and_keeps_its_lines(bench: Bench) -> None:
    ref = bench.provider.link_customer("acme", "Acme")
    draft = bench.provider.open_invoice("acme:2026-10", ref, "USD", LINES)
    final = bench.provider.finalise_invoice(draft.provider_id)
    assert (final.status, final.lines) == ("open", LINES)
    assert bench.again().finalise_invoice(draft.provider_id) == final
    assert bench.provider.open_invoice("acme:2026-10", ref, "USD", LINES) == final


def test_an_invoice_that_was_never_opened_is_not_found(bench: Bench) -> None:
    with pytest.raises(NotFound):
        bench.provider.finalise_invoice("424242")
