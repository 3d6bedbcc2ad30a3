"""The quick pass over a message says what the explaining one says, or nothing."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs
from ordinary import ordinary_events
from support import NOW, make_event

from billing.core.clock import format_instant
from billing.core.usage_event import MAX_BODY_BYTES, DeadReason, Outcome, UsageEvent, denied_line
from billing.core.usage_event_json import as_decoded
from billing.transport.message_batch import MAX_MESSAGE_BYTES, MAX_PARTS, unpacked
from billing.usage_log.copy_fields import Labels
from billing.usage_log.event_reader import Dead, EventReader, Row, Rules

RULES = Rules(max_age=timedelta(days=90), max_ahead=timedelta(seconds=300), currency="USD")
READER = EventReader(RULES)
"""One for all examples, as a consumer has one for all messages: what it keeps must not matter."""
LIMITS = READER.limits(NOW)


def agrees(body: bytes) -> Row | None:
    """What the quick way says; fails where the thorough way says something else."""
    found = READER.quick(body, LIMITS)
    if found is not None:
        told = READER.explain(body, NOW)
        assert isinstance(told, Row)
        assert comparable(found) == comparable(told)
    return found


def comparable(row: Row) -> dict[str, Any]:
    """All that a row says; a raw JSON text is not equal to another of the same bytes."""
    fields = structs.asdict(row.event) | {"dimensions": bytes(row.event.dimensions)}
    return {**structs.asdict(row), "event": fields}


def changed(event: UsageEvent, **fields: object) -> bytes:
    return json.dumps({**json.loads(event.to_wire()), **fields}, sort_keys=True).encode()


@given(event=ordinary_events())
def test_the_quick_way_takes_what_a_publisher_writes_and_says_what_the_thorough_way_says(
    event: UsageEvent,
) -> None:
    assert agrees(event.to_wire()) is not None


TEXTS_OF_ALL_KINDS = [
    *("", "a\x00b", "\x00", "x" * 500, "x" * 501, "ä" * 500, "USD", "usd", "EUR", "12", "NaN"),
    *("succeeded", "failed", "denied", "Succeeded", "true", "\u2028", "\U0001f600" * 500),
]
INSTANTS_OF_ALL_KINDS = [
    *(format_instant(NOW + timedelta(seconds=s)) for s in (-1e9, 0, 299, 300, 300.001, 301, 1e9)),
    "2026-11-21T14:47:36",
    "2026-11-21T14:47:36+00:00",
    "2026-11-21T14:47:36-00:00",
    "2026-11-21T14:47:36.123456789Z",
    "2026-11-21 14:47:36Z",
    "20261121T144736Z",
    "2026-11-21T15:47:36+01:00",
    "2026-11-21",
    "0001-01-01T00:00:00+10:00",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999-10:00",
    "2026-W47-6T14:47:36Z",
]
FLOATS = [-1.0, -0.0, 0.0, 0.5, 1.0, 2.0**31, 2.0**53, 1e300, float("inf"), float("nan")]
INTEGERS = [-(2**63), -1, 0, 1, 2, 2**31 - 1, 2**31, 2**53 - 1, 2**53, 2**53 + 1, 2**63, 2**64]
DIMENSIONS: list[Any] = [
    *({}, {"a": "b"}, {"b": "1", "a": "2"}, {"a": None}, {"a": 1}, {"a": True}, {"a": {"b": "c"}}),
    *({"a": []}, {"a\x00": "b"}, {"a": "\x00"}, {"": ""}, {"ä": "ö"}),
    *({"x" * 500: "y" * 500}, {"x" * 501: "y"}, {"x": "y" * 501}),
    *({str(number): "x" for number in range(count)} for count in (19, 20, 21)),
]
ODD: list[Any] = [
    *(None, True, False, [], ["a"], [1], 10**30),
    *(*TEXTS_OF_ALL_KINDS, *INSTANTS_OF_ALL_KINDS, *FLOATS, *INTEGERS, *DIMENSIONS),
]
BASES = {
    "usage": make_event(subject="s", finished_at=None, attempt=1),
    "nothing used": make_event(amount_microcredits=0, quantity=0),
    "denied": make_event(
        line=denied_line("page-capture", "budget_exceeded"),
        outcome=Outcome.DENIED,
        amount_microcredits=0,
    ),
}
odd_texts, odd_values = st.sampled_from(TEXTS_OF_ALL_KINDS), st.sampled_from(ODD)


@pytest.mark.parametrize("name", sorted(json.loads(BASES["usage"].to_wire())))
@pytest.mark.parametrize("base", BASES)
def test_whatever_one_field_says_the_quick_way_agrees_or_leaves_it(name: str, base: str) -> None:
    for value in ODD:
        agrees(changed(BASES[base], **{name: value}))


@given(event=ordinary_events(), changes=st.data())
def test_whatever_some_fields_say_the_quick_way_agrees_or_leaves_it(
    event: UsageEvent, changes: st.DataObject
) -> None:
    wire = json.loads(event.to_wire())
    for name in changes.draw(st.lists(st.sampled_from(sorted(wire)), min_size=1, max_size=3)):
        wire[name] = changes.draw(odd_values)
    agrees(json.dumps(wire, sort_keys=True).encode())


@given(event=ordinary_events(), shape=st.data())
def test_whatever_its_shape_the_quick_way_agrees_or_leaves_it(
    event: UsageEvent, shape: st.DataObject
) -> None:
    pairs = list(json.loads(event.to_wire()).items())
    for change in shape.draw(st.lists(st.sampled_from(["drop", "add", "twice", "shuffle"]))):
        position = shape.draw(st.integers(0, max(0, len(pairs) - 1)))
        if change == "shuffle":
            random.Random(position).shuffle(pairs)
        elif change == "add":
            pairs.insert(position, (shape.draw(odd_texts), shape.draw(odd_values)))
        elif pairs and change == "drop":
            del pairs[position]
        elif pairs:
            pairs.insert(position, (pairs[position][0], shape.draw(odd_values)))
    members = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs)
    agrees(f"{{{', '.join(members)}}}".encode("utf-8", "surrogatepass"))


@given(event=ordinary_events(), cut=st.data())
def test_whatever_its_bytes_the_quick_way_agrees_or_leaves_it(
    event: UsageEvent, cut: st.DataObject
) -> None:
    body = bytearray(event.to_wire())
    for _ in range(cut.draw(st.integers(1, 3))):
        start = cut.draw(st.integers(0, len(body)))
        end = start + cut.draw(st.integers(0, 3))
        body[start:end] = cut.draw(
            st.binary(max_size=3) | st.sampled_from([b"\\u0000", b"0", b" "])
        )
    agrees(bytes(body))


def other_ids(identifier: str) -> list[str]:
    digits = identifier.replace("-", "")
    return [
        identifier.upper(),
        digits,
        f"{{{identifier}}}",
        f"urn:uuid:{identifier}",
        identifier[:14] + "4" + identifier[15:],
        identifier[:19] + "f" + identifier[20:],
        " " + identifier[1:],
        "+" + identifier[1:],
        identifier[:3] + "_" + identifier[4:],
        identifier[:8] + digits[8] + identifier[9:],
        "0x" + identifier[2:],
        identifier[:-1],
        identifier + "0",
        "ffffffff-ffff" + identifier[13:],
    ]


@given(event=ordinary_events(), number=st.integers(0, 13))
def test_an_id_in_another_form_is_left_to_the_thorough_way(event: UsageEvent, number: int) -> None:
    identifier = str(event.id)
    other = other_ids(identifier)[number]
    if other != identifier:
        assert agrees(changed(event, id=other)) is None


@pytest.mark.parametrize(
    ("offset", "taken"),
    [
        (-RULES.max_age, True),
        (-RULES.max_age - timedelta(milliseconds=1), False),
        (RULES.max_ahead, True),
        (RULES.max_ahead + timedelta(milliseconds=1), False),
    ],
)
@pytest.mark.parametrize("microseconds", [0, 1, 500, 999])
def test_the_limits_of_age_are_those_of_the_thorough_way_to_the_millisecond(
    offset: timedelta, taken: bool, microseconds: int
) -> None:
    now = NOW + timedelta(microseconds=microseconds)
    limits = READER.limits(now)
    event = make_event(metered_at=NOW + offset, started_at=None, finished_at=None)
    found = READER.quick(event.to_wire(), limits)
    told = READER.explain(event.to_wire(), now)
    assert (found is not None) == isinstance(told, Row)
    if microseconds == 0:
        assert (found is not None) is taken


@given(event=ordinary_events(), seconds=st.integers(299, 301), ms=st.integers(0, 999))
def test_an_end_in_the_future_is_left_to_the_thorough_way(
    event: UsageEvent, seconds: int, ms: int
) -> None:
    ended = NOW + timedelta(seconds=seconds, milliseconds=ms)
    taken = agrees(changed(event, finished_at=format_instant(ended))) is not None
    assert taken == (ended <= NOW + RULES.max_ahead)


def test_a_message_beyond_the_size_limit_is_left_to_the_thorough_way() -> None:
    body = make_event().to_wire()
    padded = body[:-1] + b" " * (MAX_BODY_BYTES - len(body)) + b"}"
    assert len(padded) == MAX_BODY_BYTES
    assert agrees(padded) is not None
    assert agrees(padded + b" ") is None


@example(bodies=[b"{", make_event().to_wire(), b"{"])
@given(bodies=st.lists(st.binary(max_size=5) | ordinary_events().map(UsageEvent.to_wire)))
def test_a_reader_says_of_each_message_what_the_thorough_way_says(bodies: list[bytes]) -> None:
    found = EventReader(RULES).read(bodies, NOW)
    for each, told in zip(found, [READER.explain(body, NOW) for body in bodies], strict=True):
        if isinstance(each, Dead):
            assert each == told
        else:
            assert isinstance(told, Row)
            assert comparable(each) == comparable(told)


def test_a_row_has_all_of_its_event() -> None:
    event = make_event(started_at=datetime(2026, 11, 20, tzinfo=UTC))
    found = agrees(event.to_wire())
    assert found is not None
    dimensions = json.loads(bytes(found.event.dimensions))
    expected = structs.asdict(as_decoded(event))
    assert {**structs.asdict(found.event), "dimensions": dimensions} == {
        **expected,
        "dimensions": event.dimensions,
    }
    assert found.key == event.id.bytes


def test_texts_that_come_again_are_kept_up_to_a_limit() -> None:
    labels = Labels()
    assert labels["acme", None, ""] == b"\x00\x00\x00\x04acme\xff\xff\xff\xff\x00\x00\x00\x00"
    assert ("acme", None, "") in labels
    for number in range(10_000):
        assert labels[str(number) * 500,].endswith(str(number).encode())
    assert sum(map(len, labels.values())) < 16_777_216


NUMBERS = ["1e0", "1.0", "-0", "-0.0", "01", "1E400", "9007199254740993", "NaN", "Infinity", "true"]
ESCAPES = ['"\\u0000"', '"\\\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"', '"\t"', '{"a": "\\u0041"}']
literals = st.sampled_from([*NUMBERS, *ESCAPES, "[" * 3000 + "]" * 3000, '{"a":"b","a":"c"}'])


@given(event=ordinary_events(), changes=st.data())
def test_whatever_json_says_in_a_way_of_its_own_the_quick_way_agrees_or_leaves_it(
    event: UsageEvent, changes: st.DataObject
) -> None:
    members = {name: json.dumps(value) for name, value in json.loads(event.to_wire()).items()}
    members[changes.draw(st.sampled_from(sorted(members)))] = changes.draw(literals)
    body = ",".join(f"{json.dumps(name)}:{value}" for name, value in members.items())
    agrees(f"{{{body}}}".encode())


@pytest.mark.parametrize("dimensions", ['{"b":"1", "a":"2"}', '{"a":"2","b":"0","b":"1"}'])
def test_dimensions_in_another_form_are_logged_in_the_one_form(dimensions: str) -> None:
    wire = make_event(dimensions={}).to_wire()
    found = agrees(wire.replace(b'"dimensions":{}', b'"dimensions":' + dimensions.encode()))
    assert found is not None
    assert bytes(found.event.dimensions) == b'{"a":"2","b":"1"}'


def test_a_fraction_beyond_microseconds_is_cut_not_rounded() -> None:
    found = agrees(changed(make_event(), started_at="2026-11-21T14:47:36.1234569Z"))
    assert found is not None
    assert found.event.started_at.microsecond == 123_456


@pytest.mark.parametrize(
    "body",
    [
        b"\x1e" * 15_000_000,
        b"\x1e" * (MAX_PARTS + 1),
        b"\x1e{}" + b" " * MAX_MESSAGE_BYTES,
        b"x" * 15_000_000,
    ],
    ids=["separators", "parts", "bytes", "no sequence"],
)
def test_a_message_beyond_the_bounds_is_one_dead_letter_and_is_not_split(body: bytes) -> None:
    assert unpacked(body) == [body]
    (letter,) = READER.read(unpacked(body), NOW)
    assert isinstance(letter, Dead)
    assert letter.reason is DeadReason.TOO_LARGE
    assert letter.body == body


def test_a_message_within_the_bounds_is_split() -> None:
    assert len(unpacked(b"\x1e" * MAX_PARTS)) == MAX_PARTS
