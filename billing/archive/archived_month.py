"""The files of an archived month: its receipts, a task's lines, and its rows for verification."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy.engine import Engine

from billing.archive.catalog import Archive, ArchiveFile, ArchiveState
from billing.archive.parquet_files import read_rows, read_seals_file, rows_in
from billing.audit.month_rows import HOUR, Bucket, Hour, Row
from billing.audit.seal_chain import Leaves, Seal
from billing.audit.sealer import read_seals, seals_of_hour
from billing.audit.sort_buffer import SortBuffer
from billing.core.clock import from_ms
from billing.core.errors import NotFound
from billing.core.event_ids import hour_of, lowest_id
from billing.core.row_hash import COLUMNS, leaf_of
from billing.postgres.partitions import is_there, partition_name
from billing.usage_log.archived_usage import ArchiveUnreadableError, IdRange
from billing.usage_log.totals import Totals

_CUSTOMER: Final = COLUMNS.index("customer_id")
_ID: Final = COLUMNS.index("id")
_HASHED: Final = 4_194_304


class ArchivedMonth:
    """The rows and seals of one month, read from its files.

    Args:
        archive: Of a month whose files are complete.
        folder: Of the files.
        engine: For the chain of seals, which stays in the database.
    """

    def __init__(self, archive: Archive, folder: Path, engine: Engine) -> None:
        if archive.rows_file is None or archive.seals_file is None:
            raise ValueError(f"{archive.month.label} has no files yet")
        self.period = archive.month
        self._dropped = archive.state is ArchiveState.DROPPED
        self._files = (archive.rows_file, archive.seals_file)
        self._folder = folder
        self._engine = engine

    # -- receipts ------------------------------------------------------------------------------

    def lines(
        self, customer: str, low: UUID, end: UUID, *, limit: int, newest_first: bool = False
    ) -> list[Row]:
        """Read a customer's rows from ``low`` up to, not including, ``end``, by id.

        Reads only the row groups that can have them: the file is sorted by customer and id.

        Args:
            customer: The customer's id.
            low: The first id.
            end: The id to stop before.
            limit: The most rows.
            newest_first: From the end instead.

        Raises:
            NotFound: The file is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        found: list[Row] = []
        with self._rows_file() as file:
            groups = [
                group
                for group in _groups_of(file, customer)
                if _may_have(file, group, _ID, low.bytes, end.bytes)
            ]
            for group in reversed(groups) if newest_first else groups:
                rows = _of_customer(file.read_row_group(group), customer, low, end)
                wanted = limit - len(found)
                if newest_first:
                    found += reversed(list(rows_in(rows.slice(max(0, len(rows) - wanted)))))
                else:
                    found += rows_in(rows.slice(0, wanted))
                if len(found) == limit:
                    break
        return found

    def ranges(self, customer: str, ranges: Sequence[IdRange]) -> list[list[Row]]:
        """Read a customer's rows in each of several ranges of ids; each row group is read once.

        Args:
            customer: The customer's id.
            ranges: First ids, and those to stop before.

        Raises:
            NotFound: The file is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        found: list[list[Row]] = [[] for _ in ranges]
        with self._rows_file() as file:
            for group in _groups_of(file, customer):
                wanted = [
                    (piece, low, end)
                    for piece, (low, end) in zip(found, ranges, strict=True)
                    if _may_have(file, group, _ID, low.bytes, end.bytes)
                ]
                if wanted:
                    table = file.read_row_group(group)
                    for piece, low, end in wanted:
                        piece.extend(rows_in(_of_customer(table, customer, low, end)))
        return found

    def task(self, task_id: str) -> list[Row]:
        """Find every row of a task; reads one column of the whole file.

        Raises:
            NotFound: The file is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        return list(self._where("task_id", lambda column: pc.equal(column, task_id)))

    # -- against the seals (billing.audit.month_rows.MonthOfLog) -----------------------------------

    def faults(self) -> Iterator[str]:
        """Find faults of the files as such, in words."""
        for file in self._files:
            path = self._folder / file.name
            if not path.is_file():
                yield f"the archive's file {file.name} is not there"
            elif path.stat().st_size != file.size or sha256_of(path) != file.sha256:
                yield f"the archive's file {file.name} is not the one that was written"
        if self._dropped:
            name = partition_name(self.period.start)
            with self._engine.connect() as connection:
                if is_there(connection, name):
                    yield f"there is a table {name} although its month was archived"

    def hours(self) -> Iterator[Hour]:
        """Read every hour that has rows or seals, in their order. Reads the whole file once.

        Raises:
            NotFound: A file is not there.
            ArchiveUnreadableError: One cannot be read.
        """
        with SortBuffer() as buffer:
            for row in self.rows():
                identifier: UUID = row["id"]
                buffer.add(hour_of(identifier), identifier.bytes, leaf_of(row))
            lists = _Lists(self._path(1))
            with self._engine.connect() as connection:
                chain = {seal.hour for seal, _ in read_seals(connection, period=self.period)}
            for hour in sorted(buffer.hours() | lists.hours() | chain):
                with self._engine.connect() as connection:
                    seals = seals_of_hour(connection, hour)
                leaves = [leaves for _, _, leaves in lists.of(hour)]
                yield Hour(hour, buffer.records(hour), seals, leaves)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read every row, by customer and id.

        Raises:
            NotFound: The file is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        path = self._path(0)
        with _readable(path):
            yield from read_rows(path)

    def seals(self) -> Iterator[tuple[Seal, bytes, Leaves]]:
        """Read the month's seals from the file, by hour and number.

        Raises:
            NotFound: The file is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        path = self._path(1)
        with _readable(path):
            yield from read_seals_file(path)

    def leaves(self, hour: datetime) -> list[Leaves]:
        """Read the leaves under the seals of an hour.

        Raises:
            NotFound: The file is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        return [leaves for _, _, leaves in _Lists(self._path(1)).of(hour)]

    def named(self, ids: Collection[UUID]) -> dict[UUID, Row]:
        """Read the rows with these ids."""
        if not ids:
            return {}
        wanted = pa.array([each.bytes for each in ids], pa.binary(16))
        rows = self._where("id", lambda column: pc.is_in(_bytes_of(column), value_set=wanted))
        return {row["id"]: row for row in rows}

    def sums(self, hour: datetime) -> dict[Bucket, Totals]:
        """Add up an hour's rows by bucket."""
        low, end = lowest_id(hour).bytes, lowest_id(hour + HOUR).bytes
        sums: defaultdict[Bucket, list[int]] = defaultdict(lambda: [0] * 5)
        names = ("quantity", "amount_microcredits", "shortfall_microcredits", "cost_micros")
        for row in self._where("id", lambda column: _between(column, low, end)):
            bucket = (row["customer_id"], row["sku_id"], row["outcome"], row["reason"])
            for index, value in enumerate((1, *(row[name] for name in names))):
                sums[bucket][index] += value
        return {bucket: Totals(*values) for bucket, values in sums.items()}

    def _where(self, column: str, test: Callable[[Any], Any]) -> Iterator[dict[str, Any]]:
        with self._rows_file() as file:
            for group in range(file.num_row_groups):
                mask = test(file.read_row_group(group, columns=[column]).column(column))
                if pc.any(mask).as_py():
                    yield from rows_in(file.read_row_group(group).filter(mask))

    def _path(self, which: int) -> Path:
        path = self._folder / self._files[which].name
        if not path.is_file():
            raise NotFound(
                "file of the archive",
                str(path),
                f"WEIGHBRIDGE_ARCHIVE_DIR must have the files of {self.period.label}; nothing of "
                "it is in the database",
            )
        return path

    @contextmanager
    def _rows_file(self) -> Iterator[Any]:
        path = self._path(0)
        with _readable(path), pq.ParquetFile(path) as file:
            yield file


class _Lists:
    """The seals of a file by hour; reads a row group at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._groups: defaultdict[datetime, set[int]] = defaultdict(set)
        with _readable(path), pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                hours = file.read_row_group(group, columns=["hour"]).column("hour")
                for microseconds in hours.cast(pa.int64()).unique().to_pylist():
                    self._groups[from_ms(microseconds // 1000)].add(group)
        self._read: tuple[int, list[tuple[Seal, bytes, Leaves]]] = (-1, [])

    def hours(self) -> set[datetime]:
        return set(self._groups)

    def of(self, hour: datetime) -> list[tuple[Seal, bytes, Leaves]]:
        found: list[tuple[Seal, bytes, Leaves]] = []
        for group in sorted(self._groups.get(hour, ())):
            if self._read[0] != group:
                with _readable(self._path):
                    self._read = (group, list(read_seals_file(self._path, group)))
            found += [each for each in self._read[1] if each[0].hour == hour]
        return found


def described(path: Path) -> ArchiveFile:
    """Describe a complete file: name, size, SHA-256."""
    return ArchiveFile(path.name, path.stat().st_size, sha256_of(path))


def sha256_of(path: Path) -> bytes:
    """Compute SHA-256 of a whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_HASHED):
            digest.update(part)
    return digest.digest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ValueError, OSError) as error:
        cause = str(error).splitlines()[0][:200]
        raise ArchiveUnreadableError(
            f"{path.name} cannot be read ({cause}); put a copy of it back"
        ) from error


def _groups_of(file: Any, customer: str) -> list[int]:  # noqa: ANN401 - pyarrow has no types
    """Find the row groups that can have rows of a customer, in their order."""
    return [
        group
        for group in range(file.num_row_groups)
        if _may_have(file, group, _CUSTOMER, customer, customer)
    ]


def _may_have(file: Any, group: int, column: int, low: Any, high: Any) -> bool:  # noqa: ANN401 - pyarrow has no types
    found = file.metadata.row_group(group).column(column).statistics
    return found is None or not found.has_min_max or (found.min <= high and found.max >= low)


def _of_customer(table: Any, customer: str, low: UUID, end: UUID) -> Any:  # noqa: ANN401 - as above
    """The customer's rows of a row group, which has them together and in the order of their ids."""
    rows = table.filter(pc.equal(table.column("customer_id"), customer))
    ids: list[bytes] = _bytes_of(rows.column("id")).to_pylist()
    first = bisect_left(ids, low.bytes)
    return rows.slice(first, max(0, bisect_left(ids, end.bytes) - first))


def _between(column: Any, low: bytes, end: bytes) -> Any:  # noqa: ANN401 - as above
    found = [low <= each < end for each in _bytes_of(column).to_pylist()]
    return pa.chunked_array([pa.array(found, pa.bool_())])


def _bytes_of(column: Any) -> Any:  # noqa: ANN401 - as above
    """The 16 bytes behind each UUID of a column."""
    return pa.chunked_array([chunk.storage for chunk in column.chunks], pa.binary(16))
