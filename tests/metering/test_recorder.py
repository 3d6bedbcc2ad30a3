"""What a body records, and the events that follow from it: billing/metering/usage_recorder.py."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from meter_fakes import CREDIT, make_facts, make_measured, make_sku
from support import NOW

from billing.core.admission import Admission
from billing.core.credits import MAX_MICROCREDITS
from billing.core.errors import DenialReason, InvalidValue, NotFound
from billing.core.sku import Price, Sku
from billing.core.usage_event import MAX_BODY_BYTES, Outcome, UsageEvent
from billing.core.usage_event_json import from_wire
from billing.metering.usage_recorder import UsageRecorder

FIXED = make_sku()
CRAWL = make_measured(price=250_000)
PROXY = make_measured("proxy-mb", price=10)
UNPRICED = make_sku("unpriced", prices=())
CATALOGUE = {sku.id: sku for sku in (FIXED, CRAWL, PROXY, UNPRICED)}


def find(name: str) -> Sku:
    if name not in CATALOGUE:
        raise NotFound("sku", name, "add it")
    return CATALOGUE[name]


def events_of(recorder: UsageRecorder, sku: Sku = CRAWL, **admission: object) -> list[UsageEvent]:
    return recorder.events(
        Admission(facts=make_facts(), sku=sku, started_at=NOW, number=1, **admission),
        outcome=Outcome.SUCCEEDED,
        reason="",
        currency="EUR",
        finished_at=NOW + timedelta(seconds=2),
    )


def test_a_fixed_sku_is_one_unit_without_recording_anything():
    (event,) = events_of(UsageRecorder(FIXED, find), FIXED)

    assert (event.quantity, event.amount_microcredits) == (1, CREDIT)
    assert event.line == event.sku == "page-capture"


def test_a_measured_sku_without_a_measure_costs_nothing():
    (event,) = events_of(UsageRecorder(CRAWL, find))

    assert (event.quantity, event.amount_microcredits) == (0, 0)


def test_quantities_and_costs_add_up():
    recorder = UsageRecorder(CRAWL, find)

    recorder.record(quantity=3, cost_micros=700)
    recorder.record(quantity=4)
    recorder.record(cost_micros=11)

    (event,) = events_of(recorder)
    assert (event.quantity, event.amount_microcredits, event.cost_micros) == (7, 1_750_000, 711)


def test_the_last_subject_counts_and_dimensions_are_merged():
    recorder = UsageRecorder(CRAWL, find)

    recorder.record(subject="https://a.example/", dimensions={"country": "de", "engine": "x"})
    recorder.record(subject="https://b.example/", dimensions={"engine": "y"})
    recorder.record(quantity=1)

    (event,) = events_of(recorder)
    assert event.subject == "https://b.example/"
    assert event.dimensions == {"country": "de", "engine": "y"}


def test_a_long_subject_is_cut_to_what_an_event_can_carry():
    recorder = UsageRecorder(CRAWL, find)

    recorder.record(subject="u" * 2000)

    (event,) = events_of(recorder)
    assert event.subject == "u" * 500
    assert from_wire(event.to_wire()) == event


def test_several_skus_in_one_run_are_several_lines():
    recorder = UsageRecorder(CRAWL, find)

    recorder.record(quantity=2)
    recorder.record(quantity=30, cost_micros=5, sku="proxy-mb")
    recorder.record(sku="page-capture")

    crawl, proxy, page = events_of(recorder, held_microcredits=900)
    assert (crawl.line, crawl.amount_microcredits, crawl.held_microcredits) == (
        "crawl",
        500_000,
        900,
    )
    assert (proxy.line, proxy.amount_microcredits, proxy.cost_micros) == ("proxy-mb", 300, 5)
    assert (page.line, page.quantity, page.amount_microcredits) == ("page-capture", 1, CREDIT)
    assert proxy.held_microcredits == page.held_microcredits == 0
    assert len({crawl.id, proxy.id, page.id}) == 3


def test_naming_the_tasks_own_sku_is_no_other_line():
    recorder = UsageRecorder(CRAWL, find)

    recorder.record(quantity=1, sku="crawl")
    recorder.record(quantity=1)

    (event,) = events_of(recorder)
    assert event.quantity == 2


@pytest.mark.parametrize("quantity", [0, 2, 10])
def test_a_fixed_sku_refuses_a_quantity_of_its_own(quantity: int):
    recorder = UsageRecorder(FIXED, find)

    with pytest.raises(InvalidValue, match="page-capture is fixed, one unit a task"):
        recorder.record(quantity=quantity)

    assert events_of(recorder, FIXED)[0].quantity == 1


def test_a_fixed_sku_stays_one_unit_however_often_it_is_said():
    recorder = UsageRecorder(FIXED, find)

    recorder.record(quantity=1)
    recorder.record(quantity=1)

    assert events_of(recorder, FIXED)[0].quantity == 1


def test_another_fixed_sku_may_be_used_several_times():
    recorder = UsageRecorder(CRAWL, find)

    recorder.record(quantity=3, sku="page-capture")

    assert events_of(recorder)[1].amount_microcredits == 3 * CREDIT


BAD_RECORDS: list[tuple[str, dict[str, Any], type[Exception]]] = [
    ("a negative quantity", {"quantity": -1}, InvalidValue),
    ("a fractional quantity", {"quantity": 1.5}, InvalidValue),
    ("a quantity that is true", {"quantity": True}, InvalidValue),
    ("a quantity in words", {"quantity": "3"}, InvalidValue),
    ("a quantity that is no number", {"quantity": float("nan")}, InvalidValue),
    ("a quantity past 2^53", {"quantity": MAX_MICROCREDITS + 1}, InvalidValue),
    ("a quantity whose price passes 2^53", {"quantity": MAX_MICROCREDITS // 2}, InvalidValue),
    ("a negative cost", {"cost_micros": -1}, InvalidValue),
    ("a fractional cost", {"cost_micros": 0.5}, InvalidValue),
    ("a cost past 2^53", {"cost_micros": MAX_MICROCREDITS + 1}, InvalidValue),
    ("a cost that is false", {"cost_micros": False}, InvalidValue),
    ("a subject that is no text", {"subject": 5}, InvalidValue),
    ("a subject of bytes", {"subject": b"x"}, InvalidValue),
    ("a subject with a NUL", {"subject": "a\x00b"}, InvalidValue),
    ("a subject that no UTF-8 can say", {"subject": "a\ud800b"}, InvalidValue),
    ("dimensions that are a text", {"dimensions": "country"}, InvalidValue),
    ("dimensions that are a number", {"dimensions": 7}, InvalidValue),
    ("dimensions that are pairs", {"dimensions": [("a", "b")]}, InvalidValue),
    ("a dimension that is a number", {"dimensions": {"depth": 3}}, InvalidValue),
    ("a dimension named by a number", {"dimensions": {3: "depth"}}, InvalidValue),
    ("a dimension with a NUL", {"dimensions": {"a": "\x00"}}, InvalidValue),
    ("a dimension that no UTF-8 can say", {"dimensions": {"a": "\udfff"}}, InvalidValue),
    ("a dimension that is too long", {"dimensions": {"a": "x" * 501}}, InvalidValue),
    ("too many dimensions", {"dimensions": {f"d{i}": "x" for i in range(21)}}, InvalidValue),
    (
        "dimensions that no message has room for",
        {"dimensions": {f"d{i}": "\x01" * 500 for i in range(20)}},
        InvalidValue,
    ),
    ("a SKU that is not there", {"sku": "nothing"}, NotFound),
    ("a SKU without a price", {"sku": "unpriced"}, NotFound),
    ("a SKU without a name", {"sku": ""}, InvalidValue),
    ("a SKU with a colon", {"sku": "failed:crawl:1"}, InvalidValue),
    ("a SKU that is a number", {"sku": 5}, InvalidValue),
]


@pytest.mark.parametrize(
    ("record", "error"),
    [(bad, error) for _, bad, error in BAD_RECORDS],
    ids=[b[0] for b in BAD_RECORDS],
)
def test_a_bad_record_is_refused_and_adds_nothing(record: dict[str, Any], error: type[Exception]):
    recorder = UsageRecorder(CRAWL, find)
    recorder.record(quantity=2, cost_micros=3, subject="s", dimensions={"k": "v"})
    before = events_of(recorder)
    good = {"quantity": 1, "cost_micros": 1, "subject": "t", "dimensions": {"l": "w"}}

    with pytest.raises(error):
        recorder.record(**(good | record))

    assert events_of(recorder) == before


@pytest.mark.parametrize("name", ["quantity", "cost_micros"])
def test_what_passes_2_to_the_53_only_in_sum_is_refused(name: str):
    free = make_measured("free", price=0)
    recorder = UsageRecorder(free, find)
    recorder.record(**{name: MAX_MICROCREDITS})

    with pytest.raises(InvalidValue, match=name):
        recorder.record(**{name: 1})

    (event,) = events_of(recorder, free)
    assert getattr(event, name) == MAX_MICROCREDITS


def test_costs_of_several_skus_must_fit_one_failure_line():
    recorder = UsageRecorder(CRAWL, find)
    recorder.record(cost_micros=MAX_MICROCREDITS)

    with pytest.raises(InvalidValue, match="cost_micros"):
        recorder.record(cost_micros=1, sku="proxy-mb")

    assert [event.sku for event in events_of(recorder)] == ["crawl"]


def test_the_fullest_event_that_can_be_recorded_fits_a_message():
    recorder = UsageRecorder(CRAWL, find)
    recorder.record(subject="\x01" * 500, dimensions={f"d{i:02}": "\x01" * 270 for i in range(20)})

    (event,) = events_of(recorder)

    assert len(event.to_wire()) < MAX_BODY_BYTES
    assert from_wire(event.to_wire()) == event


def test_each_task_is_rated_at_the_price_in_force_when_it_was_metered():
    change = NOW + timedelta(hours=1)
    sku = replace(FIXED, prices=(*FIXED.prices, Price(3 * CREDIT, change)))
    recorder = UsageRecorder(sku, find)

    def amount(metered_at: datetime) -> int:
        admission = Admission(facts=make_facts(metered_at=metered_at), sku=sku, started_at=NOW)
        (event,) = recorder.events(
            admission, outcome=Outcome.SUCCEEDED, reason="", currency="USD", finished_at=NOW
        )
        return event.amount_microcredits

    assert amount(change - timedelta(milliseconds=1)) == CREDIT
    assert amount(change) == 3 * CREDIT


def test_ids_are_the_same_in_every_run_and_differ_between_lines():
    first, second = UsageRecorder(CRAWL, find), UsageRecorder(CRAWL, find)
    for recorder in (first, second):
        recorder.record(quantity=1, sku="proxy-mb")
    second.record(quantity=9, cost_micros=1, subject="another run")
    admission = Admission(facts=make_facts(), sku=CRAWL, started_at=NOW, number=1)
    denial = replace(admission, reason=DenialReason.BUDGET_EXCEEDED).denial(currency="USD")
    other = replace(admission, reason=DenialReason.INSUFFICIENT_CREDITS).denial(currency="USD")
    failures = [
        first.failure(
            replace(admission, number=number), reason="exception", currency="USD", finished_at=NOW
        )
        for number in (1, 1, 2)
    ]

    assert [e.id for e in events_of(first)] == [e.id for e in events_of(second)]
    ids = Counter(e.id for e in (*events_of(first), denial, other, *failures))
    assert sorted(ids.values()) == [1, 1, 1, 1, 1, 2]


def test_an_id_carries_the_instant_the_task_is_metered_at():
    late = make_facts(metered_at=datetime(2026, 2, 28, 23, 59, 59, 999_000, tzinfo=UTC))

    event = late.event(sku="crawl", line="crawl", outcome=Outcome.SUCCEEDED)

    assert event.metered_at == late.metered_at


def test_a_failure_costs_nothing_and_tells_what_all_lines_cost_us():
    recorder = UsageRecorder(CRAWL, find)
    recorder.record(quantity=5, cost_micros=100, subject="s", dimensions={"k": "v"})
    recorder.record(quantity=1, cost_micros=20, sku="proxy-mb")
    admission = Admission(
        facts=make_facts(attempt=2), sku=CRAWL, started_at=NOW, number=3, held_microcredits=77
    )

    event = recorder.failure(admission, reason="exception", currency="EUR", finished_at=NOW)

    assert (event.quantity, event.amount_microcredits, event.cost_micros) == (0, 0, 120)
    assert (event.line, event.outcome, event.reason) == ("failed:crawl:3", "failed", "exception")
    assert (event.subject, event.dimensions, event.held_microcredits) == ("s", {"k": "v"}, 77)
    assert event.attempt == 2


def test_only_a_refused_admission_has_a_denial():
    admission = Admission(facts=make_facts(), sku=CRAWL, started_at=NOW)

    assert admission.admitted
    with pytest.raises(InvalidValue, match="only a refused admission"):
        admission.denial(currency="USD")


def test_a_denial_names_its_reason_and_costs_nothing():
    admission = Admission(
        facts=make_facts(), sku=CRAWL, started_at=NOW, reason=DenialReason.BUDGET_EXCEEDED,
        needed_microcredits=5, held_microcredits=5,
    )  # fmt: skip

    event = admission.denial(currency="EUR")

    assert not admission.admitted
    assert (event.outcome, event.reason) == (Outcome.DENIED, "budget_exceeded")
    assert (event.quantity, event.amount_microcredits, event.cost_micros) == (0, 0, 0)
    assert from_wire(event.to_wire()) == event
