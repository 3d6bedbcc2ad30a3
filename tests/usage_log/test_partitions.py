"""Partitions: one per UTC month, made ahead, by whoever comes first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
import sqlalchemy as sa
from support import NOW

from billing.core.event_ids import event_id, lowest_id
from billing.postgres.engines import writer_engine
from billing.postgres.partitions import (
    ensure_partitions,
    existing_partitions,
    is_partition_name,
    months_back,
    partition_name,
)

FAR = datetime(2031, 1, 31, 23, 59, 59, tzinfo=UTC)
FAR_NAMES = [
    "usage_events_2030_10",
    "usage_events_2030_11",
    "usage_events_2030_12",
    "usage_events_2031_01",
    "usage_events_2031_02",
    "usage_events_2031_03",
    "usage_events_2031_04",
]


def test_a_partition_is_named_after_its_utc_month() -> None:
    assert partition_name(datetime(2026, 11, 30, 23, 59, tzinfo=UTC)) == "usage_events_2026_11"
    late_in_new_york = datetime.fromisoformat("2026-11-30T20:00:00-05:00")
    assert partition_name(late_in_new_york) == "usage_events_2026_12"


def test_names_of_partitions_are_told_from_other_tables() -> None:
    assert is_partition_name("usage_events_2026_11")
    assert not is_partition_name("usage_events")
    assert not is_partition_name("usage_hourly")
    assert not is_partition_name("usage_events_2026_11_pkey")


@pytest.mark.parametrize(
    ("now", "age_days", "back"),
    [("2026-11-21", 90, 3), ("2026-03-01", 90, 3), ("2026-11-21", 0, 0), ("2026-11-21", 400, 13)],
)
def test_months_back_reach_the_oldest_event_that_is_accepted(
    now: str, age_days: int, back: int
) -> None:
    assert months_back(datetime.fromisoformat(f"{now}T00:00:00Z"), timedelta(days=age_days)) == back


def test_migration_makes_three_months_back_and_three_ahead(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        names = [partition.name for partition in existing_partitions(connection)]
    # Around today as the migration makes them, and around the tests' clock, perhaps a month back.
    assert names == sorted({*_around(datetime.now(UTC)), *_around(NOW)})


def _around(now: datetime) -> list[str]:
    first = now.year * 12 + now.month - 1 - 3
    months = range(first, first + 7)
    return [partition_name(datetime(m // 12, m % 12 + 1, 1, tzinfo=UTC)) for m in months]


def test_missing_partitions_are_made_over_the_turn_of_a_year_and_once_only(
    engine: sa.Engine,
) -> None:
    with engine.begin() as connection:
        assert ensure_partitions(connection, FAR) == FAR_NAMES
    with engine.begin() as connection:
        assert ensure_partitions(connection, FAR) == []
        assert ensure_partitions(connection, FAR, ahead_months=4) == ["usage_events_2031_05"]


def test_partitions_meet_without_gap_or_overlap(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        ensure_partitions(connection, FAR)
        far = [p for p in existing_partitions(connection) if p.name in FAR_NAMES]
    assert far[0].lowest == lowest_id(datetime(2030, 10, 1, tzinfo=UTC))
    assert far[-1].end == lowest_id(datetime(2031, 5, 1, tzinfo=UTC))
    assert all(one.end == other.lowest for one, other in pairwise(far))


def test_a_partition_keeps_no_check_of_its_own_and_has_the_logs_indexes(
    engine: sa.Engine,
) -> None:
    with engine.begin() as connection:
        ensure_partitions(connection, FAR)
        checks = connection.execute(
            sa.text(
                "SELECT conname FROM pg_constraint WHERE contype = 'c'"
                " AND conrelid = 'usage_events_2031_01'::regclass ORDER BY 1"
            )
        )
        assert checks.scalars().all() == [
            "usage_events_amounts_check",
            "usage_events_denied_is_free_check",
            "usage_events_outcome_check",
        ]
        indexes = connection.execute(
            sa.text("SELECT count(*) FROM pg_indexes WHERE tablename = 'usage_events_2031_01'")
        )
        assert indexes.scalar_one() == 3


def test_two_at_once_make_each_partition_once(engine: sa.Engine) -> None:
    def make(_: int) -> list[str]:
        with engine.begin() as connection:
            return ensure_partitions(connection, FAR)

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(make, range(4)))
    assert sorted(made, key=len) == [[], [], [], FAR_NAMES]


def test_it_gives_up_rather_than_queue_behind_a_long_lock(engine: sa.Engine) -> None:
    with engine.connect() as holder, engine.connect() as connection:
        holder.execute(sa.text("LOCK TABLE usage_events IN SHARE ROW EXCLUSIVE MODE"))
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
            ensure_partitions(connection, FAR, lock_timeout_ms=50)
    with engine.begin() as connection:
        assert ensure_partitions(connection, FAR) == FAR_NAMES


def test_attaching_waits_for_no_writer(engine: sa.Engine) -> None:
    with engine.connect() as busy, engine.begin() as connection:
        busy.execute(sa.text("LOCK TABLE usage_events IN ROW EXCLUSIVE MODE"))
        assert ensure_partitions(connection, FAR, lock_timeout_ms=500) == FAR_NAMES


def test_new_partitions_belong_to_the_owner_and_the_role_of_the_caller_is_given_back(
    engine: sa.Engine,
) -> None:
    with engine.begin() as connection:
        before = connection.execute(sa.text("SELECT current_user")).scalar_one()
        ensure_partitions(connection, FAR)
        assert connection.execute(sa.text("SELECT current_user")).scalar_one() == before
        owner = sa.text("SELECT tableowner FROM pg_tables WHERE tablename = 'usage_events_2031_01'")
        assert connection.execute(owner).scalar_one() == "weighbridge_owner"


def test_a_negative_number_of_months_is_refused(engine: sa.Engine) -> None:
    with engine.connect() as connection, pytest.raises(ValueError, match="zero or more"):
        ensure_partitions(connection, FAR, back_months=-1)


def test_the_writer_reads_through_the_log_what_the_owner_partitioned(
    engine: sa.Engine, database_url: str
) -> None:
    with engine.begin() as connection:
        ensure_partitions(connection, FAR)
    writing = writer_engine(database_url)
    with writing.connect() as connection:
        query = sa.text("SELECT count(*) FROM usage_events WHERE id = :id")
        found = connection.execute(query, {"id": event_id("task", "line", FAR)})
        assert found.scalar_one() == 0
    writing.dispose()
