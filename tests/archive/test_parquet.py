"""Files of archives: what is read back is what was written, and a page reads little."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sealing import HOUR
from support import NOW, make_event, row_of

from billing.archive.archived_month import ArchivedMonth
from billing.archive.catalog import (
    Archive,
    ArchiveFile,
    ArchiveState,
)
from billing.archive.parquet_files import RowsFile, metadata_of, read_rows, totals_in
from billing.audit.sort_buffer import SortBuffer
from billing.core.clock import EPOCH
from billing.core.periods import Period, month_of
from billing.core.row_hash import canonical
from billing.usage_log.archived_usage import ArchiveUnreadableError, split_at_months

texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
instants = st.integers(0, 4 * 10**15).map(lambda each: EPOCH + timedelta(microseconds=each))


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "customer": texts,
                "subject": st.none() | texts,
                "dimensions": st.dictionaries(texts, texts, max_size=3),
                "amount_microcredits": st.integers(0, 2**53),
                "quota_epoch": st.integers(0, 2**53),
                "degraded": st.booleans(),
                "started_at": st.none() | instants,
                "finished_at": st.none() | instants,
            }
        ),
        max_size=9,
    )
)
@hypothesis_settings(max_examples=40, deadline=None)
def test_what_is_read_back_is_exactly_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
):
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    events = [make_event(metered_at=NOW, **fields) for fields in rows]
    written = [row_of(event, event.fingerprint()) | {"logged_at": NOW} for event in events]
    with RowsFile(path, group_rows=4) as file:
        for row in written:
            file.write(row)
        file.finish({"month": "2026-01"})
    assert [canonical(row) for row in read_rows(path)] == [canonical(row) for row in written]
    assert metadata_of(path) == {"form": "1", "month": "2026-01"}
    assert totals_in(path).amount_microcredits == sum(e.amount_microcredits for e in events)
    assert totals_in(path).events == len(events)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.binary(min_size=16, max_size=16)), max_size=60),
    st.integers(1, 500),
)
def test_a_sort_buffer_gives_back_every_record_in_order_however_little_it_may_keep(
    records: list[tuple[int, bytes]], most_bytes: int
):
    hours = [NOW + n * HOUR for n in range(6)]
    with SortBuffer(most_bytes) as buffer:
        for hour, identifier in records:
            buffer.add(hours[hour], identifier, identifier * 2)
        assert buffer.hours() == {hours[hour] for hour, _ in records}
        for n, hour in enumerate(hours):
            wanted = sorted(identifier for found, identifier in records if found == n)
            assert list(buffer.records(hour)) == [(each, each * 2) for each in wanted]


def opened(path: Path, engine: sa.Engine) -> ArchivedMonth:
    file = ArchiveFile(path.name, 0, b"")
    archive = Archive(
        month=month_of(NOW), state=ArchiveState.VERIFIED, begun_at=NOW,
        rows_file=file, seals_file=file,
    )  # fmt: skip
    return ArchivedMonth(archive, path.parent, engine)


def test_a_page_reads_only_the_row_groups_of_its_customer(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    events = [
        make_event(
            metered_at=month_of(NOW).start + timedelta(minutes=n), customer=f"c{n % 10}",
            started_at=None, finished_at=None,
        )
        for n in range(1000)
    ]  # fmt: skip
    rows = [row_of(event, event.fingerprint()) | {"logged_at": NOW} for event in events]
    rows.sort(key=lambda row: (row["customer_id"], row["id"].bytes))
    with RowsFile(path, group_rows=30) as file:
        for row in rows:
            file.write(row)
        file.finish({})
    # Every row group but those of customer c4 is made unreadable.
    groups = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    for number in range(groups.num_row_groups):
        group = groups.row_group(number)
        low, high = (getattr(group.column(1).statistics, name) for name in ("min", "max"))
        if not low <= "c4" <= high:
            size = sum(group.column(n).total_compressed_size for n in range(group.num_columns))
            start = group.column(0).dictionary_page_offset or group.column(0).data_page_offset
            content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    month = opened(path, sa.create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none"))
    wanted = [row for row in rows if row["customer_id"] == "c4"]
    ends = (wanted[0]["id"], wanted[-1]["id"])
    assert month.lines("c4", *ends, limit=1000) == wanted[:-1]
    assert month.lines("c4", wanted[37]["id"], ends[1], limit=20) == wanted[37:57]
    newest = month.lines("c4", *ends, limit=45, newest_first=True)
    assert newest == wanted[-2:-47:-1]
    assert month.lines("c4", ends[1], ends[0], limit=9) == []
    with pytest.raises(ArchiveUnreadableError, match="put a copy of it back"):
        month.lines("c9", *ends, limit=1000)


@pytest.mark.parametrize(
    ("archived", "parts"),
    [
        ([], ["0-10 -"]),
        ([(0, 10)], ["0-10 0"]),
        ([(-5, 3)], ["0-3 -5", "3-10 -"]),
        ([(3, 6)], ["0-3 -", "3-6 3", "6-10 -"]),
        ([(6, 20)], ["0-6 -", "6-10 6"]),
        ([(2, 4), (4, 6), (8, 9)], ["0-2 -", "2-4 2", "4-6 4", "6-8 -", "8-9 8", "9-10 -"]),
        ([(-5, 0), (10, 12)], ["0-10 -"]),
    ],
)
def test_a_period_is_cut_at_archived_months(archived: list[tuple[int, int]], parts: list[str]):
    def period(start: int, end: int) -> Period:
        return Period("", NOW + start * HOUR, NOW + end * HOUR)

    def hours(instant: datetime) -> int:
        return (instant - NOW) // HOUR

    found = split_at_months(period(0, 10), [period(*each) for each in archived])
    assert [
        f"{hours(part.start)}-{hours(part.end)} {hours(month.start) if month else '-'}"
        for part, month in found
    ] == parts
