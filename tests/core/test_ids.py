"""Event ids: UUIDv7, the same for the same task, in order of time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import RFC_4122, UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.core.clock import from_ms, to_ms
from billing.core.errors import InvalidValue
from billing.core.event_ids import event_id, hour_of, instant_of, lowest_id
from billing.core.periods import hour_floor

instants = st.datetimes(
    min_value=datetime(1970, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001 - as above
    timezones=st.just(UTC),
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NOW = datetime(2026, 11, 21, 14, 47, 36, 123456, UTC)


@given(task_id=texts, line=texts, instant=instants)
def test_every_id_is_a_uuid7_that_tells_its_instant(task_id: str, line: str, instant: datetime):
    identifier = event_id(task_id, line, instant)
    assert (identifier.version, identifier.variant) == (7, RFC_4122)
    assert instant_of(identifier) == from_ms(to_ms(instant))
    assert UUID(str(identifier)) == identifier


@given(task_id=texts, line=texts, instant=instants)
def test_the_same_task_always_has_the_same_id(task_id: str, line: str, instant: datetime):
    assert event_id(task_id, line, instant) == event_id(task_id, line, instant)


@given(first=instants, second=instants, task_id=texts, other=texts)
def test_ids_sort_by_their_instant(first: datetime, second: datetime, task_id: str, other: str):
    if to_ms(first) < to_ms(second):
        assert event_id(task_id, "a", first) < event_id(other, "b", second)
        assert str(event_id(task_id, "a", first)) < str(event_id(other, "b", second))
        assert event_id(task_id, "a", first).bytes < event_id(other, "b", second).bytes


@given(task_id=texts, line=texts, instant=instants)
def test_an_instants_lowest_id_is_below_all_of_it_and_above_all_before(
    task_id: str, line: str, instant: datetime
):
    assert lowest_id(instant) < event_id(task_id, line, instant)
    if to_ms(instant) > 0:
        before = instant - timedelta(milliseconds=1)
        assert event_id(task_id, line, before) < lowest_id(instant)


def test_a_known_id_never_changes():
    """Ids are in logs and at customers; another way to make them would bill twice."""
    identifier = event_id("3f1f7a52-0b0c-4b0e-9d7e-6f7a1f6f8d11", "page-capture", NOW)
    assert identifier == UUID("01a1fe93-b7bb-7e6a-b500-853449edb347")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (("a", "b"), ("a", "c")),
        (("a", "b"), ("c", "b")),
        (("1:a", ""), ("1", ":a")),
        (("", "a"), ("a", "")),
    ],
)
def test_another_task_or_line_has_another_id(one: tuple[str, str], other: tuple[str, str]):
    assert event_id(*one, NOW) != event_id(*other, NOW)


def test_ten_thousand_tasks_of_one_millisecond_have_as_many_ids():
    assert len({event_id(str(number), "x", NOW) for number in range(10_000)}) == 10_000


def test_microseconds_do_not_make_another_id():
    assert event_id("t", "x", NOW) == event_id("t", "x", NOW.replace(microsecond=123999))
    assert event_id("t", "x", NOW) != event_id("t", "x", NOW.replace(microsecond=124000))


@pytest.mark.parametrize("identifier", [uuid4(), UUID(int=0), UUID(int=2**128 - 1), lowest_id(NOW)])
def test_an_id_of_another_version_has_no_instant(identifier: UUID):
    with pytest.raises(InvalidValue, match="UUIDv7"):
        instant_of(identifier)


@pytest.mark.parametrize("make", [lowest_id, lambda instant: event_id("t", "x", instant)])
def test_an_instant_before_1970_has_no_id(make):  # noqa: ANN001 - either of two functions
    with pytest.raises(InvalidValue, match="metered_at"):
        make(datetime(1969, 12, 31, 23, 59, 59, 999000, UTC))


@given(task_id=texts, instant=instants)
def test_the_hour_of_an_id_is_that_of_its_instant(task_id: str, instant: datetime):
    identifier = event_id(task_id, "line", instant)
    assert hour_of(identifier) == hour_floor(instant)
    # Of an id that is no UUIDv7 too.
    assert hour_of(UUID(int=identifier.int & ~(0xF << 76))) == hour_floor(instant)
