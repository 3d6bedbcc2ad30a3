"""What tests of archives share: an old month with rows of two customers, and questions about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sealing import HOUR, Bench, month_before

from billing.archive.archive_reader import ArchiveReader
from billing.archive.archived_month import ArchivedMonth
from billing.archive.catalog import Archive, archive_of
from billing.archive.exporter import MonthExporter
from billing.archive.restorer import MonthRestorer
from billing.audit.month_rows import LiveMonth, MonthOfLog, rows_of, snapshots
from billing.audit.sealer import Sealer
from billing.audit.verification_report import VerifyFinding
from billing.audit.verifier import Checked, Verifier
from billing.core.periods import Period, month_of
from billing.core.usage_event import UsageEvent
from billing.postgres.partitions import existing_partitions, partition_name
from billing.usage_log.receipts import ReceiptLine, Receipts
from billing.usage_log.usage_queries import By, UsageQueries, UsageRow

MAX_AGE = timedelta(days=90)
LONG_AFTER = timedelta(days=250)
"""After this, usage of every month that the tests log can no longer arrive."""


@dataclass
class Attic:
    """One log, an old month of it, and a folder for archives."""

    bench: Bench
    folder: Path

    @property
    def engine(self) -> sa.Engine:
        return self.bench.engine

    @property
    def month(self) -> Period:
        return month_before(month_of(self.bench.now), 2)

    @property
    def name(self) -> str:
        return partition_name(self.month.start)

    @property
    def rows_file(self) -> Path:
        return self.folder / f"{self.name}.parquet"

    @property
    def seals_file(self) -> Path:
        return self.folder / f"{self.name}.seals.parquet"

    @property
    def later(self) -> datetime:
        return self.bench.now + LONG_AFTER

    def fill(self) -> list[UsageEvent]:
        """Rows all over the month, some at its very edges; some in the month after."""
        start, end = self.month.start, self.month.end
        instants = [start, end - timedelta(milliseconds=1)]
        instants += [start + n // 5 * 53 * HOUR + timedelta(minutes=11 * n % 60) for n in range(60)]
        customers = ("acme", "globex")
        events = [
            self.bench.at(
                instant,
                customer=customers[n % 3 == 0],
                subject=None if n % 4 else f"https://example.org/é/{n}",
                dimensions={"region": "eu", "quote": 'a "b" \\ {c}'} if n % 2 else {},
                amount_microcredits=n,
                cost_micros=n * 3,
            )
            for n, instant in enumerate(instants)
        ]
        self.bench.log(*events)
        self.bench.log_some(3, hour=end + HOUR)
        return events

    def archiver(self) -> MonthExporter:
        return MonthExporter(self.engine, self.folder, sealer=Sealer(self.engine), max_age=MAX_AGE)

    def archive(self, **options: Any) -> Archive:
        return self.archiver().archive(self.month, self.later, **options)

    def restore(self, **options: Any) -> Archive:
        return MonthRestorer(self.engine, self.folder).restore(self.month, self.later, **options)

    def state(self) -> str | None:
        with self.engine.connect() as connection:
            archive = archive_of(connection, self.month)
        return archive.state.value if archive else None

    def attached(self) -> bool:
        with self.engine.connect() as connection:
            return self.name in {each.name for each in existing_partitions(connection)}

    def table_rows(self) -> list[dict[str, Any]]:
        """The month's rows in the database."""
        with self.engine.connect() as connection:
            return list(rows_of(connection, self.month))

    def open_month(self, month: Period) -> MonthOfLog:
        with self.engine.connect() as connection:
            archive = archive_of(connection, month)
        if archive is not None and archive.in_files:
            return ArchivedMonth(archive, self.folder, self.engine)
        return LiveMonth(month, snapshots(self.engine))

    def verify(self, checked: Checked | None = None) -> list[VerifyFinding]:
        """What verifying the month finds, wherever it is."""
        verifier = Verifier(self.engine, self.open_month)
        found = list(verifier.chain())
        # As of long after: nothing may be left waiting for a seal either.
        return found + list(verifier.month(self.month, self.later, checked))

    @property
    def archived_usage(self) -> ArchiveReader:
        return ArchiveReader(
            self.engine, lambda archive: ArchivedMonth(archive, self.folder, self.engine)
        )

    @property
    def receipts(self) -> Receipts:
        return Receipts(self.engine, self.archived_usage)

    def answers(self) -> Answers:
        """What customers are told of that month and the time around it."""
        around = Period("around", self.month.start - 24 * HOUR, self.month.end + 24 * HOUR)
        usage = UsageQueries(self.engine, self.archived_usage)
        return Answers(
            lines={name: list(self.pages(name, around)) for name in ("acme", "globex", "nobody")},
            latest={name: self.receipts.latest(name, limit=7) for name in ("acme", "globex")},
            usage=[usage.by(name, around, by) for name in ("acme", "globex") for by in By],
        )

    def pages(self, customer: str, period: Period, limit: int = 7) -> Iterator[ReceiptLine]:
        """Every line, a page at a time."""
        page = self.receipts.lines(customer, period, limit=limit)
        while page:
            assert len(page) <= limit
            yield from page
            page = self.receipts.lines(customer, period, after_id=page[-1].id, limit=limit)


@dataclass
class Answers:
    """Equal before and after a month was archived, and at every moment between."""

    lines: dict[str, list[ReceiptLine]]
    latest: dict[str, list[ReceiptLine]]
    usage: list[list[UsageRow]]


@contextmanager
def holding(engine: sa.Engine, statement: str) -> Iterator[sa.Connection]:
    """A transaction of somebody else, open while the block runs."""
    with engine.connect() as connection:
        connection.execute(sa.text(statement))
        yield connection


def by_id(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the order in which the log has them."""
    return sorted(rows, key=lambda row: row["id"].bytes)
