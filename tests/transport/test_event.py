"""The wire format: what is told is what is read, and each bad thing has its own reason."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import make_event

from billing.core.credits import MAX_MICROCREDITS
from billing.core.errors import InvalidValue
from billing.core.event_ids import event_id
from billing.core.usage_event import (
    MAX_BODY_BYTES,
    DeadReason,
    InvalidEvent,
    Outcome,
    UsageEvent,
    check_dimensions,
    denied_line,
    failed_line,
    usage_line,
)
from billing.core.usage_event_json import from_wire

AMOUNTS = (
    "quantity",
    "amount_microcredits",
    "shortfall_microcredits",
    "held_microcredits",
    "cost_micros",
)
texts = st.text(
    alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=60
)
amounts = st.integers(min_value=0, max_value=MAX_MICROCREDITS)
instants = st.datetimes(
    min_value=datetime(1970, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    max_value=datetime(2100, 1, 1),  # noqa: DTZ001 - as above
    timezones=st.just(UTC),
).map(lambda instant: instant.replace(microsecond=instant.microsecond // 1000 * 1000))


@st.composite
def usage_events(draw: st.DrawFn) -> UsageEvent:
    task_id, line = draw(texts), draw(texts)
    return UsageEvent(
        id=event_id(task_id, line, draw(instants)),
        customer=draw(texts),
        sku=draw(texts),
        line=line,
        outcome=draw(st.sampled_from(Outcome)),
        reason=draw(texts),
        **{name: draw(amounts) for name in AMOUNTS},
        currency=draw(st.sampled_from(["USD", "EUR"])),
        subject=draw(st.none() | texts),
        dimensions=draw(st.dictionaries(texts, texts, max_size=20)),
        task_id=task_id,
        task_name=draw(texts),
        root_id=draw(st.none() | texts),
        parent_id=draw(st.none() | texts),
        group_id=draw(st.none() | texts),
        attempt=draw(amounts),
        worker=draw(texts),
        degraded=draw(st.booleans()),
        quota_epoch=draw(amounts),
        started_at=draw(st.none() | instants),
        finished_at=draw(st.none() | instants),
    )


def wire(**changes: object) -> bytes:
    return json.dumps({**json.loads(make_event().to_wire()), **changes}).encode()


def without(name: str) -> bytes:
    fields = json.loads(make_event().to_wire())
    del fields[name]
    return json.dumps(fields).encode()


def reason_of(body: bytes) -> DeadReason:
    with pytest.raises(InvalidEvent) as refusal:
        from_wire(body)
    assert refusal.value.detail, "a reason without a detail helps nobody"
    assert len(str(refusal.value)) < 500
    return refusal.value.reason


@given(event=usage_events())
def test_what_is_written_is_read_back(event: UsageEvent):
    assert from_wire(event.to_wire()) == event


@given(event=usage_events())
def test_the_wire_format_of_an_event_is_one_text(event: UsageEvent):
    assert from_wire(event.to_wire()).to_wire() == event.to_wire()


@given(body=st.binary(max_size=200))
def test_whatever_the_bytes_reading_them_is_an_event_or_a_reason(body: bytes):
    with pytest.raises(InvalidEvent):
        from_wire(body)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@given(name=st.sampled_from(sorted(json.loads(make_event().to_wire()))), value=values)
def test_whatever_a_field_says_reading_it_is_an_event_or_a_reason(name: str, value: object):
    try:
        event = from_wire(wire(**{name: value}))
    except InvalidEvent:
        return
    assert from_wire(event.to_wire()) == event
    assert len(event.fingerprint()) == 16


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", DeadReason.NOT_JSON),
        (b"hello", DeadReason.NOT_JSON),
        (b'{"schema":1', DeadReason.NOT_JSON),
        (b"\xff\xfe\x00", DeadReason.NOT_JSON),
        (b"[" * 5000, DeadReason.NOT_JSON),
        (wire(subject="\ud800"), DeadReason.NOT_JSON),
        (b"[]", DeadReason.NOT_AN_OBJECT),
        (b'"text"', DeadReason.NOT_AN_OBJECT),
        (b"null", DeadReason.NOT_AN_OBJECT),
        (b"12", DeadReason.NOT_AN_OBJECT),
        (b'{"x":"' + b"x" * MAX_BODY_BYTES + b'"}', DeadReason.TOO_LARGE),
        (wire(schema=2), DeadReason.UNKNOWN_SCHEMA),
        (wire(schema="1"), DeadReason.UNKNOWN_SCHEMA),
        (wire(schema=True), DeadReason.UNKNOWN_SCHEMA),
        (wire(schema=1.0), DeadReason.UNKNOWN_SCHEMA),
        (without("schema"), DeadReason.UNKNOWN_SCHEMA),
        (wire(price=3), DeadReason.UNKNOWN_FIELD),
    ],
)
def test_what_is_not_an_event_has_its_reason(body: bytes, reason: DeadReason):
    assert reason_of(body) is reason


@pytest.mark.parametrize("name", ["id", "customer", "sku", "line", "outcome", "task_id"])
def test_each_required_field_that_is_missing_is_named(name: str):
    with pytest.raises(InvalidEvent, match=name) as refusal:
        from_wire(without(name))
    assert refusal.value.reason is DeadReason.MISSING_FIELD


@pytest.mark.parametrize("name", AMOUNTS)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (-1, DeadReason.AMOUNT_NEGATIVE),
        (-0.5, DeadReason.AMOUNT_NEGATIVE),
        (float("nan"), DeadReason.AMOUNT_NOT_A_NUMBER),
        (float("inf"), DeadReason.AMOUNT_NOT_A_NUMBER),
        (float("-inf"), DeadReason.AMOUNT_NOT_A_NUMBER),
        ("1", DeadReason.AMOUNT_NOT_A_NUMBER),
        (None, DeadReason.AMOUNT_NOT_A_NUMBER),
        (True, DeadReason.AMOUNT_NOT_A_NUMBER),
        ([], DeadReason.AMOUNT_NOT_A_NUMBER),
        (1.5, DeadReason.AMOUNT_FRACTIONAL),
        (1.0, DeadReason.AMOUNT_FRACTIONAL),
        (2**53 + 1, DeadReason.AMOUNT_TOO_LARGE),
        (2**63, DeadReason.AMOUNT_TOO_LARGE),
        (2**200, DeadReason.AMOUNT_TOO_LARGE),
    ],
)
def test_each_impossible_amount_has_its_reason(name: str, value: object, reason: DeadReason):
    assert reason_of(wire(**{name: value})) is reason


@pytest.mark.parametrize("name", AMOUNTS)
@pytest.mark.parametrize("value", [0, 1, MAX_MICROCREDITS])
def test_each_possible_amount_is_taken(name: str, value: int):
    assert getattr(from_wire(wire(**{name: value})), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attempt", -1),
        ("attempt", 1.0),
        ("quota_epoch", True),
        ("quota_epoch", "1"),
        ("customer", 7),
        ("customer", None),
        ("sku", "x" * 501),
        ("task_name", "a\x00b"),
        ("subject", 7),
        ("root_id", []),
        ("outcome", "done"),
        ("outcome", {}),
        ("degraded", "yes"),
        ("degraded", 1),
        ("currency", "usd"),
        ("currency", "USDX"),
        ("currency", None),
        ("dimensions", []),
        ("dimensions", None),
        ("dimensions", {"a": 1}),
        ("dimensions", {"a": "x" * 501}),
        ("dimensions", {"a\x00": "x"}),
        ("dimensions", {str(number): "x" for number in range(21)}),
        ("started_at", "yesterday"),
        ("started_at", "2026-11-21T14:47:36"),
        ("finished_at", 1763736456),
    ],
)
def test_a_field_that_cannot_be_right_is_named(name: str, value: object):
    with pytest.raises(InvalidEvent, match=name) as refusal:
        from_wire(wire(**{name: value}))
    assert refusal.value.reason is DeadReason.INVALID_FIELD


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "",
        "not-a-uuid",
        str(uuid4()),
        str(make_event().id).upper(),
        f"{{{make_event().id}}}",
        make_event().id.hex,
        str(UUID(int=(1 << 128) - 1)),
        "ffffffff-ffff-7fff-bfff-ffffffffffff",
    ],
    # Names that are the same in every process: tests are shared out by them.
    ids=[
        *("none", "number", "empty", "text", "random", "upper-case", "braces", "hex"),
        *("highest", "time-too-late"),
    ],
)
def test_an_id_that_is_no_uuid7_of_a_known_time_is_refused(value: object):
    assert reason_of(wire(id=value)) is DeadReason.INVALID_ID


@pytest.mark.parametrize("name", ["task_id", "line"])
def test_an_id_of_another_task_or_line_is_refused(name: str):
    assert reason_of(wire(**{name: "other"})) is DeadReason.ID_MISMATCH


def test_an_event_without_its_optional_fields_has_their_defaults():
    event = make_event()
    required = {"schema", "id", "customer", "sku", "line", "outcome", "task_id"}
    fields = {n: v for n, v in json.loads(event.to_wire()).items() if n in required}
    read = from_wire(json.dumps(fields).encode())
    assert (read.quantity, read.currency, read.subject, read.dimensions) == (0, "USD", None, {})


def test_an_instant_of_another_offset_is_read_as_the_same_instant():
    berlin = datetime(2026, 11, 21, 15, 0, tzinfo=timezone(timedelta(hours=1)))
    read = from_wire(wire(started_at=berlin.isoformat()))
    assert read.started_at == berlin
    assert read.started_at is not None
    assert read.started_at.tzinfo is UTC


def test_the_usage_belongs_to_the_instant_in_the_id():
    instant = datetime(2026, 3, 29, 1, 30, 0, 123000, tzinfo=UTC)
    assert make_event(metered_at=instant).metered_at == instant


def test_settled_figures_replace_the_asked_ones_and_nothing_else():
    event = make_event(amount_microcredits=9)
    settled = event.settled(amount=5, shortfall=4, quota_epoch=2)
    assert (settled.amount_microcredits, settled.shortfall_microcredits) == (5, 4)
    assert settled.quota_epoch == 2
    assert settled.settled(amount=9, shortfall=0, quota_epoch=0) == event


@pytest.mark.parametrize(
    "changes",
    [
        {"worker": "other@host"},
        {"attempt": 3},
        {"held_microcredits": 7},
        {"shortfall_microcredits": 7},
        {"quota_epoch": 9},
        {"started_at": None},
        {"finished_at": None},
        {"degraded": True},
    ],
)
def test_the_same_fact_told_by_another_run_has_the_same_fingerprint(changes: dict[str, Any]):
    assert make_event(task_id="t", **changes).fingerprint() == make_event(task_id="t").fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {"customer": "other"},
        {"sku": "other"},
        {"line": "other"},
        {"task_id": "other"},
        {"outcome": Outcome.FAILED},
        {"quantity": 2},
        {"amount_microcredits": 2},
        {"cost_micros": 2},
        {"currency": "EUR"},
        {"subject": "other"},
        {"dimensions": {"a": "b"}},
    ],
)
def test_another_fact_has_another_fingerprint(changes: dict[str, Any]):
    base = {"task_id": "t", "line": "page-capture", "sku": "page-capture"}
    assert make_event(**{**base, **changes}).fingerprint() != make_event(**base).fingerprint()


@pytest.mark.parametrize("outcome", [Outcome.DENIED, Outcome.FAILED])
def test_a_free_denial_or_failure_is_the_same_fact_however_often_it_is_told(outcome: Outcome):
    told = {"task_id": "t", "outcome": outcome, "amount_microcredits": 0}
    first = make_event(**told, quantity=1, cost_micros=5, subject="a")
    second = make_event(**told, quantity=2, cost_micros=9, subject="b")
    assert first.fingerprint() == second.fingerprint()


def test_the_lines_of_one_task_are_told_apart():
    lines = {
        usage_line("search"),
        failed_line("search", 1),
        failed_line("search", 2),
        denied_line("search", "insufficient_credits"),
        denied_line("search", "revoked"),
    }
    now = datetime(2026, 11, 21, tzinfo=UTC)
    assert len({event_id("t", line, now) for line in lines}) == 5


def test_dimensions_that_are_right_are_returned_as_they_are():
    dimensions = {"region": "eu", "": ""}
    assert check_dimensions(dimensions) is dimensions


def test_dimensions_that_are_wrong_are_refused_by_name():
    with pytest.raises(InvalidValue, match="region"):
        check_dimensions({"region": 1})
