"""Ids of distinct subjects."""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.usage_log.distinct_subjects import (
    HOUR_MS,
    SubjectIds,
    first_day,
    hour_at,
    month_number,
)

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
subjects = st.tuples(names, names, st.integers(0, 2**16 - 1), names)


def test_an_id_is_the_month_and_a_digest_of_the_names_and_the_subjects_digest() -> None:
    digest = hashlib.sha256("https://example.com/ä".encode()).digest()[:16]
    hashed = hashlib.sha256("6:ältere3:sku".encode() + digest).digest()[:14]
    found = SubjectIds().id_of("ältere", "sku", 682, "https://example.com/ä")
    assert found == (682).to_bytes(2, "big") + hashed


@given(one=subjects, other=subjects)
def test_two_subjects_have_one_id_only_if_everything_is_the_same(
    one: tuple[str, str, int, str], other: tuple[str, str, int, str]
) -> None:
    ids = SubjectIds()
    assert (ids.id_of(*one) == ids.id_of(*other)) == (one == other)
    assert ids.id_of(*one) == SubjectIds().id_of(*one)


@pytest.mark.parametrize(
    ("one", "other"),
    [(("ab", "c"), ("a", "bc")), (("", "1:a"), ("1", ":a")), (("a", ""), ("", "a"))],
)
def test_names_do_not_run_into_each_other(one: tuple[str, str], other: tuple[str, str]) -> None:
    ids = SubjectIds()
    assert ids.id_of(*one, 1, "s") != ids.id_of(*other, 1, "s")


@given(one=subjects, later=st.integers(1, 1000), other=subjects)
def test_ids_of_an_earlier_month_come_first(
    one: tuple[str, str, int, str], later: int, other: tuple[str, str, int, str]
) -> None:
    month = min(one[2], 2**16 - 1 - later)
    ids = SubjectIds()
    early = ids.id_of(one[0], one[1], month, one[3])
    assert early < ids.id_of(other[0], other[1], month + later, other[3])


@given(
    instant=st.datetimes(
        min_value=datetime(1970, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
        max_value=datetime(4000, 1, 1),  # noqa: DTZ001 - as above
        timezones=st.just(UTC),
    )
)
def test_a_month_is_that_of_the_hour_in_utc(instant: datetime) -> None:
    hour = int(instant.timestamp() * 1000) // HOUR_MS
    assert hour_at(hour) == instant.replace(minute=0, second=0, microsecond=0)
    assert first_day(month_number(hour)) == date(instant.year, instant.month, 1)
