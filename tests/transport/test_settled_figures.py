"""Figures put into an event's ready bytes are those of an event decoded, settled and encoded."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import make_event

from billing.core.credits import MAX_MICROCREDITS
from billing.core.usage_event import InvalidEvent, UsageEvent
from billing.core.usage_event_json import from_wire
from billing.transport.outbox import UNREADABLE
from billing.transport.settled_figures import read_settled, settled_wire

TRAPS = (
    ',"quota_epoch":0,"',
    '\\",\\"quota_epoch\\":0,\\"',
    '{"amount_microcredits":1,',
    "quota_epoch",
    ',"shortfall_microcredits":0,"',
    'x","shortfall_microcredits":0,"y',
)
TEXTS = st.one_of(
    st.sampled_from(TRAPS),
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40),
)
NAMES = st.one_of(st.sampled_from(["quota_epoch", "amount_microcredits"]), TEXTS)
AMOUNTS = st.integers(0, MAX_MICROCREDITS)
EVENTS = st.builds(
    make_event,
    customer=TEXTS,
    subject=st.none() | TEXTS,
    dimensions=st.dictionaries(NAMES, TEXTS, max_size=4),
    reason=TEXTS,
    task_id=TEXTS,
    task_name=TEXTS,
    worker=TEXTS,
    root_id=st.none() | TEXTS,
    amount_microcredits=AMOUNTS,
    # Others than zero are nobody's template; they are settled the long way.
    shortfall_microcredits=st.just(0) | AMOUNTS,
    quota_epoch=st.just(0) | AMOUNTS,
    degraded=st.booleans(),
)


@given(EVENTS, AMOUNTS, AMOUNTS, AMOUNTS)
def test_the_bytes_are_those_of_an_event_settled_the_long_way(
    event: UsageEvent, amount: int, shortfall: int, epoch: int
) -> None:
    figures = {"amount": amount, "shortfall": shortfall, "quota_epoch": epoch}
    expected = event.settled(**figures).to_wire()
    assert settled_wire(event.to_wire(), **figures) == expected
    read = read_settled(event.to_wire(), **figures)
    assert (read.to_wire(), read.customer, read.id) == (expected, event.customer, event.id)
    assert read.metered_at == event.metered_at


def _changed(**changes: Any) -> bytes:
    return orjson.dumps(orjson.loads(make_event().to_wire()) | changes)


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"amount_microcredits":1,"quota_epoch":0,"shortfall_microcredits":0,"x":1}',
        make_event().to_wire()[:-1],
        make_event().to_wire() + b"x",
        _changed(extra=1),
        _changed(schema=2),
        _changed(id="no id"),
        _changed(id=7),
        _changed(id=None),
        _changed(id=str(uuid4())),
        _changed(id=str(UUID(int=(2**48 - 1) << 80 | 0x7 << 76 | 0b10 << 62))),
        _changed(customer=7),
        _changed(subject="x" * 70_000),
    ],
)
def test_what_nobody_could_send_is_not_read(wire: bytes) -> None:
    with pytest.raises(UNREADABLE):
        read_settled(wire, amount=1, shortfall=0, quota_epoch=1)


def test_an_event_that_is_encoded_otherwise_is_read_by_every_field() -> None:
    event = make_event()
    names = orjson.loads(event.to_wire())
    spaced = orjson.dumps(dict(reversed(names.items())), option=orjson.OPT_INDENT_2)
    found = read_settled(spaced, amount=5, shortfall=6, quota_epoch=7)
    assert from_wire(found.wire) == event.settled(amount=5, shortfall=6, quota_epoch=7)
    del names["currency"], names["degraded"]
    shorter = read_settled(orjson.dumps(names), amount=5, shortfall=6, quota_epoch=7)
    assert shorter.wire == found.wire
    with pytest.raises(InvalidEvent):
        read_settled(_changed(extra=1), amount=5, shortfall=6, quota_epoch=7)
