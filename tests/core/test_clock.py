"""Instants: UTC, milliseconds, RFC 3339."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.core.clock import (
    EPOCH,
    ManualClock,
    SystemClock,
    format_instant,
    from_ms,
    parse_instant,
    to_ms,
)
from billing.core.errors import InvalidValue

instants = st.datetimes(
    min_value=datetime(1, 1, 2),  # noqa: DTZ001 - hypothesis adds the zone
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001 - as above
    timezones=st.timezones(),
)


@given(milliseconds=st.integers(min_value=-(10**13), max_value=2 * 10**14))
def test_milliseconds_come_back_exactly(milliseconds: int):
    assert to_ms(from_ms(milliseconds)) == milliseconds


@given(instant=instants)
def test_an_instant_is_rounded_down_to_its_millisecond(instant: datetime):
    lost = instant - from_ms(to_ms(instant))
    assert timedelta(0) <= lost < timedelta(milliseconds=1)


@given(instant=instants)
def test_an_instants_text_is_read_back_to_the_millisecond(instant: datetime):
    assert parse_instant(format_instant(instant), field="at") == from_ms(to_ms(instant))


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        (EPOCH, "1970-01-01T00:00:00.000Z"),
        (datetime(2026, 11, 21, 14, 47, 36, 123999, UTC), "2026-11-21T14:47:36.123Z"),
        (
            datetime(2026, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=1))),
            "2025-12-31T23:30:00.000Z",
        ),
    ],
)
def test_an_instant_is_written_in_utc_with_milliseconds(instant: datetime, text: str):
    assert format_instant(instant) == text


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-11-21T14:47:36Z", datetime(2026, 11, 21, 14, 47, 36, tzinfo=UTC)),
        ("2026-11-21T14:47:36.5+02:00", datetime(2026, 11, 21, 12, 47, 36, 500000, UTC)),
    ],
)
def test_any_offset_is_read_as_utc(text: str, utc: datetime):
    read = parse_instant(text, field="at")
    assert read == utc
    assert read.tzinfo is UTC


@pytest.mark.parametrize(
    "text", ["", "now", "2026-11-21T14:47:36", "2026-13-01T00:00:00Z", None, 7]
)
def test_what_is_not_an_instant_with_an_offset_is_refused_by_name(text: str):
    with pytest.raises(InvalidValue, match="settled_at"):
        parse_instant(text, field="settled_at")


def test_an_instant_without_a_zone_has_no_milliseconds():
    with pytest.raises(InvalidValue, match="time zone"):
        to_ms(datetime(2026, 1, 1))  # noqa: DTZ001 - the fault under test


def test_a_manual_clock_stands_still_until_it_is_moved():
    clock = ManualClock(datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=1))))
    assert clock.now() == clock.now() == datetime(2026, 1, 1, 11, tzinfo=UTC)
    clock.advance(timedelta(hours=-1))
    assert clock.now() == datetime(2026, 1, 1, 10, tzinfo=UTC)


def test_the_system_clock_is_in_utc_and_goes_on():
    first = SystemClock().now()
    assert first.tzinfo is UTC
    assert SystemClock().now() >= first
