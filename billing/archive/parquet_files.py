"""Archives as Parquet files: their columns, writing them, reading rows back exactly.

This and ``billing.archive.archived_month`` are the only modules that load pyarrow (60 MB);
the container imports them when an archive is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from billing.audit.seal_chain import Leaves, Seal
from billing.core.clock import EPOCH
from billing.core.event_columns import ALL, NAMES
from billing.usage_log.totals import Totals

FORM: Final = "1"
PREFIX: Final = "weighbridge."
"""The prefix of our metadata's names."""

GROUP_ROWS: Final = 65_536
"""Rows of one row group, the least that a page of a receipt reads: some 6 MB on disk."""

_READ_ROWS: Final = 8_192
_SEALS_BYTES: Final = 16_777_216
"""Leaves in one row group of a seals file, but for what one seal has more."""

_INSTANT: Final = pa.timestamp("us", tz="UTC")
_SUMMED: Final = ("quantity", "amount_microcredits", "shortfall_microcredits", "cost_micros")
_INSTANTS: Final = frozenset(column.name for column in ALL if column.kind == "timestamptz")
_REPEATED: Final = [column.name for column in ALL if column.repeats or column.name == "subject"]
_TYPES: Final = {
    "uuid": pa.uuid(),
    "bytea": pa.binary(16),
    "int8": pa.int64(),
    "int4": pa.int32(),
    "bool": pa.bool_(),
    "timestamptz": _INSTANT,
}

ROWS: Final = pa.schema(
    [
        pa.field(column.name, _TYPES.get(column.kind, pa.string()), nullable=column.nullable)
        for column in ALL
    ]
)
"""The rows: every column of the log; ``dimensions`` is a JSON text."""

SEALS: Final = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("hour", _INSTANT, nullable=False),
        pa.field("sealed_at", _INSTANT, nullable=False),
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("adopted", pa.bool_(), nullable=False),
        pa.field("root", pa.binary(32), nullable=False),
        pa.field("previous", pa.binary(32), nullable=False),
        pa.field("hash", pa.binary(32), nullable=False),
        pa.field("ids", pa.binary(), nullable=False),
        pa.field("hashes", pa.binary(), nullable=False),
    ]
)
"""The seals of a month by hour and number, with the leaves under each."""

SealedLeaves = tuple[Seal, bytes, Leaves]
"""A seal, the hash kept beside it, and its leaves."""


class RowsFile:
    """Writes a month's rows, which come in the order of customer and id.

    Args:
        path: The file; overwritten.
        group_rows: Rows of one row group.
    """

    def __init__(self, path: Path, *, group_rows: int = GROUP_ROWS) -> None:
        self._writer = pq.ParquetWriter(
            path,
            ROWS,
            compression="zstd",
            compression_level=3,
            use_dictionary=_REPEATED,
            column_encoding=dict.fromkeys(sorted(_INSTANTS), "DELTA_BINARY_PACKED"),
            sorting_columns=[pq.SortingColumn(NAMES.index(name)) for name in ("customer_id", "id")],
        )
        self._group_rows = group_rows
        self._waiting: list[tuple[Any, ...]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row."""
        self._waiting.append(_VALUES(row))
        if len(self._waiting) == self._group_rows:
            self._flush()

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the remaining rows, and metadata of the whole file."""
        self._flush()
        self._writer.add_key_value_metadata(_named(metadata))

    def _flush(self) -> None:
        if self._waiting:
            columns = zip(*self._waiting, strict=True)
            arrays = [_array(*column) for column in zip(NAMES, columns, strict=True)]
            self._writer.write_table(pa.table(arrays, schema=ROWS), row_group_size=self._group_rows)
            self._waiting = []


_VALUES: Final = itemgetter(*NAMES)


def _array(column: str, values: tuple[Any, ...]) -> pa.Array:
    if column == "id":
        stored = pa.array([each.bytes for each in values], pa.binary(16))
        return pa.ExtensionArray.from_storage(pa.uuid(), stored)
    if column == "dimensions":
        return pa.array([_json(each) for each in values], pa.string())
    return pa.array(values, ROWS.field(column).type)


def _json(dimensions: dict[str, str]) -> str:
    return orjson.dumps(dimensions, option=orjson.OPT_SORT_KEYS).decode()


def write_seals(path: Path, seals: Iterable[SealedLeaves], metadata: Mapping[str, str]) -> None:
    """Write a month's seals with their leaves.

    Args:
        path: The file; overwritten.
        seals: By hour and number.
        metadata: Names and values for the whole file.
    """
    with pq.ParquetWriter(path, SEALS, compression="zstd", use_dictionary=False) as writer:
        waiting: list[dict[str, object]] = []
        size = 0
        for seal, kept, leaves in seals:
            waiting.append(_seal_values(seal, kept, leaves))
            size += len(leaves.ids) + len(leaves.hashes)
            if size >= _SEALS_BYTES:
                writer.write_table(pa.Table.from_pylist(waiting, SEALS))
                waiting, size = [], 0
        if waiting:
            writer.write_table(pa.Table.from_pylist(waiting, SEALS))
        writer.add_key_value_metadata(_named(metadata))


def _seal_values(seal: Seal, kept: bytes, leaves: Leaves) -> dict[str, object]:
    values = {name: getattr(seal, name) for name in _OF_SEAL}
    return {**values, "hash": kept, "ids": leaves.ids, "hashes": leaves.hashes}


_OF_SEAL: Final = ("number", "hour", "sealed_at", "rows", "adopted", "root", "previous")


def read_seals_file(path: Path, only: int | None = None) -> Iterator[SealedLeaves]:
    """Read the seals of a month by hour and number, with the leaves under each; streamed.

    Args:
        path: The file.
        only: One row group instead of all.

    Raises:
        pyarrow.ArrowException: It cannot be read.
    """
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups) if only is None else [only]:
            for values in file.read_row_group(group).to_pylist():
                seal = Seal(**{name: _utc(values[name]) for name in _OF_SEAL})
                yield seal, values["hash"], Leaves(seal.number, values["ids"], values["hashes"])


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read every row as the driver would give it; streamed in the order of the file.

    Raises:
        pyarrow.ArrowException: It cannot be read.
    """
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_READ_ROWS):
            yield from rows_in(batch)


def rows_in(batch: pa.RecordBatch | pa.Table) -> Iterator[dict[str, Any]]:
    """Read the rows of a part of a file as the driver would give them."""
    columns = [_values(name, batch.column(name)) for name in NAMES]
    for values in zip(*columns, strict=True):
        yield dict(zip(NAMES, values, strict=True))


def totals_in(path: Path) -> Totals:
    """Add up the rows of a file.

    Raises:
        pyarrow.ArrowException: It cannot be read.
    """
    sums = dict.fromkeys(_SUMMED, 0)
    events = 0
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=list(_SUMMED))
            events += len(table)
            for name in _SUMMED:
                # As decimals: the sum of a row group may pass 2^63.
                found = pc.sum(table.column(name).cast(pa.decimal128(38, 0))).as_py()
                sums[name] += int(found or 0)
    return Totals(events, *sums.values())


def metadata_of(path: Path) -> dict[str, str]:
    """Read our metadata of a file, without its prefix.

    Raises:
        pyarrow.ArrowException: It cannot be read.
    """
    found = pq.read_metadata(path).metadata or {}
    names = {key.decode(): value.decode() for key, value in found.items() if key != b"ARROW:schema"}
    return {
        name.removeprefix(PREFIX): value for name, value in names.items() if name.startswith(PREFIX)
    }


def _values(column: str, array: Any) -> list[Any]:  # noqa: ANN401 - pyarrow has no types
    if column == "id":
        return [UUID(bytes=each) for each in _storage(array).to_pylist()]
    if column in _INSTANTS:
        # Far faster than pyarrow's own instants, each of which looks up its time zone.
        return [
            None if each is None else EPOCH + timedelta(microseconds=each)
            for each in array.cast(pa.int64()).to_pylist()
        ]
    found: list[Any] = array.to_pylist()
    if column == "dimensions":
        return [orjson.loads(each) for each in found]
    return found


def _storage(array: Any) -> Any:  # noqa: ANN401 - as above
    if isinstance(array, pa.ChunkedArray):
        return pa.chunked_array([chunk.storage for chunk in array.chunks], pa.binary(16))
    return array.storage


def _utc(value: Any) -> Any:  # noqa: ANN401 - a value of any column
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _named(metadata: Mapping[str, str]) -> dict[str, str]:
    return {f"{PREFIX}{name}": value for name, value in {"form": FORM, **metadata}.items()}
