"""Files for a finance team: one JSON-lines file per UTC day of usage, and the same rows as CSV.

The JSON lines are the record: a figure is taken when its line is on the disk. The CSV file is made
of them, and made anew where a crash left it behind. Several processes on one machine may write.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from billing.core.clock import format_instant, parse_instant
from billing.core.errors import AlreadyExists, NotFound
from billing.providers.builtin_checks import (
    BuiltinProvider,
    line_of,
    lines_as_data,
    refusal,
    total_of,
)
from billing.providers.port import (
    Invoice,
    InvoiceLine,
    ProviderAnswer,
    ProviderCause,
    ProviderUnavailable,
    UsageReport,
)

COLUMNS: Final = ("identifier", "customer", "meter", "hour", "value", "timestamp")
_KEPT_DAYS: Final = 40


@dataclass(slots=True)
class _Day:
    """The content of one day's file as far as it was read."""

    read_up_to: int = 0
    identifiers: set[str] = field(default_factory=set)
    figures: dict[tuple[str, str, datetime], int] = field(default_factory=dict)
    csv_is_whole: bool = False

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in one line."""
        self.identifiers.add(row["identifier"])
        hour = parse_instant(row["hour"], field="hour")
        self.figures[row["customer"], row["meter"], hour] = int(row["value"])


class FileProvider(BuiltinProvider):
    """Figures and invoices as files under a folder.

    Args:
        folder: Made where it is missing.
    """

    name = "file"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._days: dict[date, _Day] = {}
        self._threads = threading.Lock()

    def link_customer(self, customer: str, name: str, *, dry_run: bool = False) -> str:
        """The customer's own id."""
        del name, dry_run
        return customer

    def report_usage(self, report: UsageReport) -> ProviderAnswer:
        """Append a figure to its day's files; see ``port.Provider``."""
        refused = refusal(report)
        if refused is not None:
            return refused
        day = report.hour.astimezone(UTC).date()
        try:
            with self._locked():
                known = self._read(day)
                if report.identifier in known.identifiers:
                    return ProviderAnswer(cause=ProviderCause.DUPLICATE_IDENTIFIER)
                self._append(day, known, _row(report))
        except OSError as error:
            return ProviderAnswer(cause=ProviderCause.SERVER_ERROR, detail=str(error)[:300])
        return ProviderAnswer(cause=ProviderCause.TAKEN)

    def read_back(self, customer_ref: str, meter: str, day: date) -> Mapping[datetime, int]:
        """The figures of a UTC day; see ``port.Provider``."""
        try:
            with self._locked():
                figures = self._read(day).figures
                return {
                    hour: value
                    for (customer, of_meter, hour), value in figures.items()
                    if (customer, of_meter) == (customer_ref, meter)
                }
        except OSError as error:
            raise ProviderUnavailable(str(error)) from error

    def open_invoice(
        self, key: str, customer_ref: str, currency: str, lines: Sequence[InvoiceLine]
    ) -> Invoice:
        """A draft; see ``port.Provider``.

        Raises:
            AlreadyExists: The key is taken by an invoice with other content.
            ProviderUnavailable: The folder could not be written to.
        """
        number = hashlib.sha256(key.encode()).hexdigest()[:32]
        asked = {
            "key": key,
            "customer": customer_ref,
            "currency": currency,
            "status": "draft",
            "lines": lines_as_data(lines),
        }
        try:
            with self._locked():
                path = self._invoice_path(number)
                if not path.exists():
                    _replace(path, orjson.dumps(asked, option=orjson.OPT_INDENT_2))
                found = orjson.loads(path.read_bytes())
        except OSError as error:
            raise ProviderUnavailable(str(error)) from error
        if found | {"status": "draft"} != asked:
            raise AlreadyExists(f"invoice {key!r} is there already, with other content")
        return _invoice(number, found)

    def finalise_invoice(self, provider_id: str) -> Invoice:
        """Make a draft final; see ``port.Provider``.

        Raises:
            NotFound: There is no such invoice.
            ProviderUnavailable: The folder could not be written to.
        """
        if not provider_id.isalnum():
            raise NotFound("invoice", provider_id, "open it first")
        try:
            with self._locked():
                path = self._invoice_path(provider_id)
                if not path.exists():
                    raise NotFound("invoice", provider_id, "open it first")
                found = orjson.loads(path.read_bytes())
                if found["status"] == "draft":
                    found["status"] = "open"
                    _replace(path, orjson.dumps(found, option=orjson.OPT_INDENT_2))
        except OSError as error:
            raise ProviderUnavailable(str(error)) from error
        return _invoice(provider_id, found)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, over threads and processes."""
        with self._threads:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield

    def _jsonl(self, day: date) -> Path:
        return self._folder / f"usage-{day.isoformat()}.jsonl"

    def _csv(self, day: date) -> Path:
        return self._folder / f"usage-{day.isoformat()}.csv"

    def _invoice_path(self, number: str) -> Path:
        return self._folder / f"invoice-{number}.json"

    def _append(self, day: date, known: _Day, row: Mapping[str, Any]) -> None:
        line = orjson.dumps(row) + b"\n"
        # Until the CSV row is there too, the two files may differ.
        known.csv_is_whole = False
        _append(self._jsonl(day), line)
        known.read_up_to += len(line)
        known.add(row)
        path = self._csv(day)
        _append(path, _csv_text([row], header=not path.exists()))
        known.csv_is_whole = True

    def _read(self, day: date) -> _Day:
        """Read what was added to the day's files since the last time."""
        path = self._jsonl(day)
        size = path.stat().st_size if path.exists() else 0
        known = self._days.get(day)
        if known is None or size < known.read_up_to:
            # Not read yet, or somebody put another file in its place.
            known = self._days[day] = _Day()
        if size > known.read_up_to:
            with path.open("rb") as file:
                file.seek(known.read_up_to)
                added = file.read()
            whole = added[: added.rfind(b"\n") + 1]
            if len(whole) < len(added):
                # A line that was not finished was never taken.
                os.truncate(path, known.read_up_to + len(whole))
            for line in whole.splitlines():
                known.add(orjson.loads(line))
            known.read_up_to += len(whole)
            # Another process wrote these lines, and may have died before the CSV row.
            known.csv_is_whole = False
        if known.identifiers and not known.csv_is_whole:
            self._mend_csv(day, len(known.identifiers))
            known.csv_is_whole = True
        while len(self._days) > _KEPT_DAYS:
            self._days.pop(next(other for other in self._days if other != day))
        return known

    def _mend_csv(self, day: date, lines: int) -> None:
        """Make the CSV file anew if it has not one row for each line, below its header."""
        path = self._csv(day)
        text = path.read_bytes() if path.exists() else b""
        if text.endswith(b"\n") and text.count(b"\n") == lines + 1:
            return
        rows = [orjson.loads(line) for line in self._jsonl(day).read_bytes().splitlines()]
        _replace(path, _csv_text(rows, header=True))


def _row(report: UsageReport) -> dict[str, Any]:
    return {
        "identifier": report.identifier,
        "customer": report.customer_ref,
        "meter": report.meter,
        "hour": format_instant(report.hour),
        "value": report.value,
        "timestamp": format_instant(report.timestamp),
    }


def _csv_text(rows: Sequence[Mapping[str, Any]], *, header: bool) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _append(path: Path, content: bytes) -> None:
    """Add to a file; returns when it is on the disk, the file's name too."""
    new = not path.exists()
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if new:
        _sync_folder(path.parent)


def _replace(path: Path, content: bytes) -> None:
    """Put a whole file in the place of another; at no moment is there a part of it."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _invoice(number: str, found: Mapping[str, Any]) -> Invoice:
    lines = tuple(line_of(data) for data in found["lines"])
    return Invoice(
        provider_id=number,
        key=found["key"],
        customer_ref=found["customer"],
        currency=found["currency"],
        status=found["status"],
        total_minor=total_of(lines),
        lines=lines,
    )
