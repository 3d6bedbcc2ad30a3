"""Several events in one message, and each of them again."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import make_event

from billing.core.usage_event import MAX_BODY_BYTES, UsageEvent
from billing.core.usage_event_json import from_wire
from billing.transport.message_batch import MAX_PACK_BYTES, packed, unpacked

CUSTOMERS = st.sampled_from(["acme", "globex", "initech"])
SUBJECTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=400)
EVENTS = st.lists(st.builds(make_event, customer=CUSTOMERS, subject=SUBJECTS), max_size=60)


def by_customer(events: list[UsageEvent]) -> dict[str, list[UsageEvent]]:
    found = defaultdict(list)
    for event in events:
        found[event.customer].append(event)
    return dict(found)


@given(EVENTS)
def test_every_event_is_in_one_message_of_its_customer_in_order(events: list[UsageEvent]):
    packs = packed(events)
    read = [(pack, from_wire(wire)) for pack in packs for wire in unpacked(pack.body)]
    assert all(pack.customer == event.customer for pack, event in read)
    assert by_customer([event for _, event in read]) == by_customer(events)


@given(EVENTS)
def test_a_message_of_several_is_bounded_and_full_before_the_next_begins(events: list[UsageEvent]):
    for pack in packed(events):
        several = len(unpacked(pack.body)) > 1
        assert len(pack.body) <= (MAX_PACK_BYTES if several else MAX_BODY_BYTES)
        assert pack.content_type == f"application/json{'-seq' if several else ''}"
    mean = sum(len(event.to_wire()) for event in events) or 1
    assert len(packed(events)) <= len(by_customer(events)) + 2 * mean / MAX_PACK_BYTES


def test_an_event_alone_is_what_it_always_was():
    event = make_event()
    (pack,) = packed([event])
    assert pack.body == event.to_wire()
    assert unpacked(pack.body) == [event.to_wire()]


def test_one_larger_than_a_pack_goes_alone():
    large = make_event(
        dimensions={f"d{n}": "\U0001f600" * 400 for n in range(20)} | {"e": "\x1e" * 500}
    )
    small = make_event()
    assert len(large.to_wire()) > MAX_PACK_BYTES // 2
    packs = packed([small, large, large, small])
    assert [len(unpacked(pack.body)) for pack in packs] == [2, 2]
    assert b"\x1e\x1e" not in packs[0].body


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"not json", b'{\n"pretty": true\n}\n', b"\n\x1e{}", b"\xff\x1e"]
)
def test_what_is_no_sequence_is_left_whole(body: bytes):
    assert unpacked(body) == [body]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"\x1e", [b""]),
        (b"\x1e{}\n", [b"{}"]),
        (b"\x1e{}\n\x1e", [b"{}", b""]),
        (b"\x1e{}\x1e[1]", [b"{}", b"[1]"]),
        (b"\x1e{}\n\n\x1e1\n", [b"{}\n", b"1"]),
    ],
)
def test_of_a_broken_sequence_nothing_is_dropped(body: bytes, found: list[bytes]):
    assert unpacked(body) == found
