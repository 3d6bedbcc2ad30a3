"""Months on a customer's wall clock, across clock changes, leap years and the end of a year."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.core.errors import InvalidValue
from billing.core.periods import (
    hour_ceiling,
    hour_floor,
    month_labelled,
    month_of,
    next_month,
    zone,
)

instants = st.datetimes(
    min_value=datetime(1971, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    max_value=datetime(2200, 1, 1),  # noqa: DTZ001 - as above
    timezones=st.just(UTC),
)
zones = st.sampled_from(sorted(available_timezones() - {"localtime"}))


@given(instant=instants, name=zones)
def test_every_instant_is_in_its_month_and_in_no_neighbour(instant: datetime, name: str):
    month = month_of(instant, name)
    assert instant in month
    assert instant not in next_month(month, name)


@given(instant=instants, name=zones)
def test_months_follow_each_other_without_gap_or_overlap(instant: datetime, name: str):
    month = month_of(instant, name)
    following = next_month(month, name)
    assert following.start == month.end
    assert following.label > month.label
    assert month_of(month.end - timedelta(microseconds=1), name) == month


@given(instant=instants, name=zones)
def test_a_months_label_names_the_same_month(instant: datetime, name: str):
    month = month_of(instant, name)
    assert month_labelled(month.label, name) == month


@pytest.mark.parametrize(
    ("label", "time_zone", "start", "hours"),
    [
        ("2026-11", "UTC", datetime(2026, 11, 1, tzinfo=UTC), 30 * 24),
        ("2024-02", "UTC", datetime(2024, 2, 1, tzinfo=UTC), 29 * 24),
        ("2026-02", "UTC", datetime(2026, 2, 1, tzinfo=UTC), 28 * 24),
        ("2000-02", "UTC", datetime(2000, 2, 1, tzinfo=UTC), 29 * 24),
        ("2100-02", "UTC", datetime(2100, 2, 1, tzinfo=UTC), 28 * 24),
        ("2026-12", "UTC", datetime(2026, 12, 1, tzinfo=UTC), 31 * 24),
        # Clocks go forward on 29 March and back on 25 October.
        ("2026-03", "Europe/Berlin", datetime(2026, 2, 28, 23, tzinfo=UTC), 31 * 24 - 1),
        ("2026-10", "Europe/Berlin", datetime(2026, 9, 30, 22, tzinfo=UTC), 31 * 24 + 1),
        # Clocks go back on 1 November, an hour after the month began.
        ("2026-11", "America/New_York", datetime(2026, 11, 1, 4, tzinfo=UTC), 30 * 24 + 1),
        ("2026-11", "Asia/Kolkata", datetime(2026, 10, 31, 18, 30, tzinfo=UTC), 30 * 24),
        # Samoa had no 30 December 2011.
        ("2011-12", "Pacific/Apia", datetime(2011, 12, 1, 10, tzinfo=UTC), 30 * 24),
    ],
)
def test_a_month_is_as_long_as_on_the_wall_clock(
    label: str, time_zone: str, start: datetime, hours: int
):
    month = month_labelled(label, time_zone)
    assert month.start == start
    assert month.end - month.start == timedelta(hours=hours)
    assert month.start.tzinfo is UTC


def test_the_same_instant_is_in_other_months_in_other_zones():
    instant = datetime(2026, 12, 31, 23, 30, tzinfo=UTC)
    assert month_of(instant, "UTC").label == "2026-12"
    assert month_of(instant, "Europe/Berlin").label == "2027-01"
    assert month_of(instant.astimezone(ZoneInfo("Asia/Tokyo")), "UTC").label == "2026-12"


def test_a_month_contains_its_start_and_not_its_end():
    month = month_labelled("2026-11")
    assert month.start in month
    assert month.end not in month


@pytest.mark.parametrize(
    "label",
    ["", "2026", "2026-13", "2026-00", "2026-1", "26-11", "2026-11-01", "1969-12", "9999-01"],
)
def test_what_is_no_month_is_refused(label: str):
    with pytest.raises(InvalidValue, match="month"):
        month_labelled(label)


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../etc/passwd", "/etc/passwd", "a\x00b"])
def test_what_is_no_time_zone_is_refused(name: str):
    with pytest.raises(InvalidValue, match="time_zone"):
        zone(name)


@given(instant=instants)
def test_an_instant_is_in_its_utc_hour(instant: datetime):
    floor = hour_floor(instant)
    assert floor <= instant < floor + timedelta(hours=1)
    assert (floor.minute, floor.second, floor.microsecond) == (0, 0, 0)


@given(instant=instants)
def test_the_next_hour_is_not_before_the_instant_and_less_than_an_hour_away(instant: datetime):
    ceiling = hour_ceiling(instant)
    assert timedelta(0) <= ceiling - instant < timedelta(hours=1)
    assert hour_floor(ceiling) == ceiling


def test_hours_are_utcs_also_where_the_clock_is_half_an_hour_off():
    instant = datetime(2026, 11, 21, 12, 10, tzinfo=ZoneInfo("Asia/Kolkata"))
    assert hour_floor(instant) == datetime(2026, 11, 21, 6, tzinfo=UTC)
