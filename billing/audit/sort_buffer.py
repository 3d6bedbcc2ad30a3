"""Sorting of records hour by hour, on disk where they are many: memory stays flat."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from billing.audit.row_diff import Record
from billing.audit.seal_chain import RECORD_BYTES

MOST_BYTES: Final = 67_108_864
"""Records kept in memory before they go to disk."""

_ID_BYTES: Final = 16


class SortBuffer:
    """Takes records in any order, returns an hour's in the order of their ids.

    Args:
        most_bytes: The most kept in memory; the rest is in a temporary folder (``TMPDIR``).
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: defaultdict[datetime, bytearray] = defaultdict(bytearray)
        self._size = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._on_disk: set[datetime] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, hour: datetime, identifier: bytes, leaf: bytes) -> None:
        """Add one record of an hour."""
        kept = self._kept[hour]
        kept += identifier
        kept += leaf
        self._size += RECORD_BYTES
        if self._size >= self._most_bytes:
            self._write()

    def hours(self) -> set[datetime]:
        """List the hours that have records."""
        return self._on_disk | {hour for hour, kept in self._kept.items() if kept}

    def records(self, hour: datetime) -> Iterator[Record]:
        """Read an hour's records, in the order of their ids."""
        whole = bytes(self._kept.get(hour, b""))
        if hour in self._on_disk:
            whole = self._file(hour).read_bytes() + whole
        cuts = range(0, len(whole), RECORD_BYTES)
        for record in sorted(whole[start : start + RECORD_BYTES] for start in cuts):
            yield record[:_ID_BYTES], record[_ID_BYTES:]

    def _write(self) -> None:
        for hour, kept in self._kept.items():
            # Opened anew each time: a month has more hours than a process may have files.
            with self._file(hour).open("ab") as file:
                file.write(kept)
            self._on_disk.add(hour)
        self._kept.clear()
        self._size = 0

    def _file(self, hour: datetime) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="weighbridge-")
        return Path(self._folder.name) / f"{hour:%Y%m%dT%H}"
