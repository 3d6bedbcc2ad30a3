"""Verification of the chain of seals, and of every row against its recorded leaf."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.audit import verification_report as report
from billing.audit.month_rows import Hour, MonthOfLog, snapshots
from billing.audit.row_diff import NamedRows, RowDiff, compare
from billing.audit.seal_chain import Leaves, Seal, breaks_of, gathered
from billing.audit.sealer import LAG, read_seals
from billing.audit.verification_report import FindingKind, Gap, VerifyFinding
from billing.core.errors import NotFound
from billing.core.periods import Period, hour_floor, month_of
from billing.usage_log.archived_usage import ArchiveUnreadableError
from billing.usage_log.totals import totals_of

OVERDUE: Final = timedelta(hours=2)
"""The age at which a due seal is reported as missing."""

_TOTALS: Final = sa.text(
    """
    SELECT customer_id, sku_id, outcome, reason, events, quantity, amount_microcredits,
        shortfall_microcredits, cost_micros
    FROM usage_hourly WHERE hour = :hour
    """
)
_OVERDUE: Final = sa.text(
    """
    SELECT hour, sum(rows), min(logged_at) FROM log_manifests
    WHERE hour >= :start AND hour < LEAST(:end, :late) AND logged_at < :late
    GROUP BY hour ORDER BY hour
    """
)
_MONTHS: Final = sa.text(
    """
    SELECT date_trunc('month', hour AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' FROM log_seals
    UNION SELECT date_trunc('month', hour AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' FROM log_manifests
    """
)


@dataclass(slots=True)
class Checked:
    """Counts of what was checked."""

    rows: int = 0
    waiting: int = 0
    """Rows among these that have no seal yet."""
    hours: int = 0
    seals: int = 0


class Verifier:
    """Checks of the log against its seals. Changes nothing.

    Args:
        engine: Any that may read.
        open_month: Opens a month's rows, in the database or in its archive.
    """

    def __init__(self, engine: Engine, open_month: Callable[[Period], MonthOfLog]) -> None:
        self._engine = engine
        self._open_month = open_month

    def chain(self, anchor: Mapping[int, bytes] | None = None) -> Iterator[VerifyFinding]:
        """Check every seal against the one before it, and against an anchor kept elsewhere.

        Args:
            anchor: Of ``billing.audit.seal_chain.parse_anchor``.
        """
        with snapshots(self._engine)() as connection:
            for each in breaks_of(read_seals(connection), anchor):
                words = f"seal {each.number}: {each.words}"
                yield report.broken(words, hour=each.hour, seal=each.number)

    def months(self, known: list[Period]) -> list[Period]:
        """List every UTC month that has rows, seals or an archive, in their order.

        Args:
            known: Months that have a partition or an archive.
        """
        with self._engine.connect() as connection:
            # A month of which only seals are left has no partition any more.
            sealed = [month_of(start) for start in connection.execute(_MONTHS).scalars()]
        found = {month.start: month for month in [*known, *sealed]}
        return [found[start] for start in sorted(found)]

    def month(
        self, period: Period, now: datetime, checked: Checked | None = None
    ) -> Iterator[VerifyFinding]:
        """Check every row of a UTC month; findings come hour by hour.

        Args:
            period: The month.
            now: The present instant.
            checked: Counted up on the way.
        """
        counts = checked or Checked()
        rows = self._open_month(period)
        for words in rows.faults():
            yield report.broken(f"{period.label}: {words}")
        try:
            for hour in rows.hours():
                yield from self._hour(rows, hour, counts)
        except (ArchiveUnreadableError, NotFound) as error:
            yield report.broken(f"{period.label}: {error}")
        yield from self._unsealed(period, now)

    def _hour(self, rows: MonthOfLog, hour: Hour, counts: Checked) -> Iterator[VerifyFinding]:
        diff = compare(hour.rows, usable(hour.lists))
        counts.rows += diff.rows
        counts.waiting += diff.waiting
        counts.hours += 1
        counts.seals += len(hour.seals)
        yield from faults_of(hour.seals, hour.lists)
        if diff:
            yield from self._row_findings(rows, hour.start, diff)

    def _row_findings(
        self, rows: MonthOfLog, hour: datetime, diff: RowDiff
    ) -> Iterator[VerifyFinding]:
        gaps = self._gaps(rows, hour)
        there = rows.named(
            [UUID(bytes=each) for some in (diff.changed, diff.added) for each, _ in some.named]
        )
        # A row that is gone by now is being removed at this moment: the next run finds it missing.
        for identifier, seal in _named(diff.changed):
            if identifier in there:
                yield report.changed(identifier, hour, seal, there[identifier], gaps)
        for identifier, seal in _named(diff.removed):
            yield report.removed(identifier, hour, seal, gaps, diff.removed.rows)
        for identifier, _ in _named(diff.added):
            if identifier in there:
                yield report.added(identifier, hour, there[identifier], gaps)
        for identifier, seal in _named(diff.twice):
            words = f"row {identifier} is under two seals or manifests"
            yield report.broken(words, hour=hour, seal=seal)
        for kind, some in (
            (FindingKind.CHANGED, diff.changed),
            (FindingKind.REMOVED, diff.removed),
            (FindingKind.ADDED, diff.added),
        ):
            if some.rows > len(some.named):
                yield report.too_many(kind, hour, some.rows - len(some.named))

    def _gaps(self, rows: MonthOfLog, hour: datetime) -> list[Gap]:
        with self._engine.connect() as connection:
            found = connection.execute(_TOTALS, {"hour": hour}).all()
        totals = {(row[0], row[1], row[2], row[3]): totals_of(row[4:]) for row in found}
        return report.gaps_of(rows.sums(hour), totals)

    def _unsealed(self, period: Period, now: datetime) -> Iterator[VerifyFinding]:
        late = hour_floor(now - LAG - OVERDUE)
        limits = {"start": period.start, "end": period.end, "late": late}
        with self._engine.connect() as connection:
            overdue = connection.execute(_OVERDUE, limits).all()
        for hour, waiting, since in overdue:
            yield report.unsealed(hour, int(waiting), since)


def faults_of(seals: list[Seal], lists: list[Leaves]) -> Iterator[VerifyFinding]:
    """Find faults in the leaves under an hour's seals.

    Args:
        seals: The hour's.
        lists: The leaves under them, and of rows that wait for a seal.
    """
    by_number = {seal.number: seal for seal in seals}
    for leaves in lists:
        seal = by_number.pop(leaves.number, None) if leaves.number is not None else None
        fault = leaves.fault(seal)
        if fault is not None:
            name = "a manifest" if seal is None else f"seal {seal.number}"
            hour = seal.hour if seal else None
            yield report.broken(f"{name}: {fault}", hour=hour, seal=leaves.number)
    for seal in by_number.values():
        words = f"seal {seal.number}: its list of leaves is gone, so that none of its "
        words += f"{seal.rows:,} rows can be distinguished from an added one"
        yield report.broken(words, hour=seal.hour, seal=seal.number)


def usable(lists: list[Leaves]) -> list[Leaves]:
    """Bring lists into the form that rows are compared with, faulty ones as far as it goes.

    Their faults are reported by ``faults_of``.
    """
    return [
        leaves if leaves.is_ordered else gathered([leaves], leaves.number)
        for leaves in lists
        if leaves.is_whole
    ]


def _named(rows: NamedRows) -> list[tuple[UUID, int | None]]:
    return [(UUID(bytes=identifier), number) for identifier, number in rows.named]
