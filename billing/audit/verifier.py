"""Verifying: the chain of seals, and every row against what was written down when it was logged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.audit import verification_report as findings
from billing.audit.month_rows import Hour, MonthOfLog, snapshots
from billing.audit.row_diff import Differences, LoggedRow, compare
from billing.audit.seal_chain import Leaves, Seal, breaks_of, gathered
from billing.audit.sealer import LAG, read_seals
from billing.audit.verification_report import FindingKind, Gap, VerifyFinding
from billing.core.errors import NotFound
from billing.core.periods import Period, hour_floor, month_of
from billing.usage_log.archived_usage import ArchiveUnreadableError
from billing.usage_log.totals import totals_of

OVERDUE: Final = timedelta(hours=2)
"""How long after it was due a seal is missed."""

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
    """How much was checked."""

    rows: int = 0
    waiting: int = 0
    """Of these: rows that have no seal yet."""
    hours: int = 0
    seals: int = 0


class Verifier:
    """Checks the log against its seals. Changes nothing.

    Args:
        engine: Any that may read.
        open_month: Where a month's rows are: the database, or its archive.
    """

    def __init__(self, engine: Engine, open_month: Callable[[Period], MonthOfLog]) -> None:
        self._engine = engine
        self._open_month = open_month

    def chain(self, anchor: Mapping[int, bytes] | None = None) -> Iterator[VerifyFinding]:
        """Check every seal against the one before it, and against what was written down elsewhere.

        Args:
            anchor: Of ``billing.audit.seal_chain.parse_anchor``.
        """
        with snapshots(self._engine)() as connection:
            for each in breaks_of(read_seals(connection), anchor):
                words = f"seal {each.number}: {each.words}"
                yield findings.broken(words, hour=each.hour, seal=each.number)

    def months(self, known: list[Period]) -> list[Period]:
        """Every UTC month that has rows, seals or an archive, in their order.

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
        """Check every row of a UTC month; what is found comes hour by hour.

        Args:
            period: Which.
            now: The present instant.
            checked: Counted up on the way.
        """
        counts = checked or Checked()
        rows = self._open_month(period)
        for words in rows.faults():
            yield findings.broken(f"{period.label}: {words}")
        try:
            for hour in rows.hours():
                yield from self._hour(rows, hour, counts)
        except (ArchiveUnreadableError, NotFound) as error:
            yield findings.broken(f"{period.label}: {error}")
        yield from self._unsealed(period, now)

    def _hour(self, rows: MonthOfLog, hour: Hour, counts: Checked) -> Iterator[VerifyFinding]:
        found = compare(hour.rows, usable(hour.lists))
        counts.rows += found.rows
        counts.waiting += found.waiting
        counts.hours += 1
        counts.seals += len(hour.seals)
        yield from faults_of(hour.seals, hour.lists)
        if found:
            yield from self._differences(rows, hour.start, found)

    def _differences(
        self, rows: MonthOfLog, hour: datetime, found: Differences
    ) -> Iterator[VerifyFinding]:
        gaps = self._gaps(rows, hour)
        there = rows.named(
            [UUID(bytes=each) for told in (found.changed, found.added) for each, _ in told.named]
        )
        # One that is gone by now is being taken away while we look: the next run tells of it.
        for identifier, seal in _named(found.changed):
            if identifier in there:
                yield findings.changed(identifier, hour, seal, there[identifier], gaps)
        for identifier, seal in _named(found.removed):
            yield findings.removed(identifier, hour, seal, gaps, found.removed.rows)
        for identifier, _ in _named(found.added):
            if identifier in there:
                yield findings.added(identifier, hour, there[identifier], gaps)
        for identifier, seal in _named(found.twice):
            words = f"row {identifier} is under two seals or manifests"
            yield findings.broken(words, hour=hour, seal=seal)
        for kind, told in (
            (FindingKind.CHANGED, found.changed),
            (FindingKind.REMOVED, found.removed),
            (FindingKind.ADDED, found.added),
        ):
            if told.rows > len(told.named):
                yield findings.too_many(kind, hour, told.rows - len(told.named))

    def _gaps(self, rows: MonthOfLog, hour: datetime) -> list[Gap]:
        with self._engine.connect() as connection:
            found = connection.execute(_TOTALS, {"hour": hour}).all()
        totals = {(row[0], row[1], row[2], row[3]): totals_of(row[4:]) for row in found}
        return findings.gaps_of(rows.sums(hour), totals)

    def _unsealed(self, period: Period, now: datetime) -> Iterator[VerifyFinding]:
        late = hour_floor(now - LAG - OVERDUE)
        limits = {"start": period.start, "end": period.end, "late": late}
        with self._engine.connect() as connection:
            overdue = connection.execute(_OVERDUE, limits).all()
        for hour, waiting, since in overdue:
            yield findings.unsealed(hour, int(waiting), since)


def faults_of(seals: list[Seal], lists: list[Leaves]) -> Iterator[VerifyFinding]:
    """What is wrong with the leaves under an hour's seals.

    Args:
        seals: The hour's.
        lists: Under them, and of what waits for a seal.
    """
    by_number = {seal.number: seal for seal in seals}
    for leaves in lists:
        seal = by_number.pop(leaves.number, None) if leaves.number is not None else None
        fault = leaves.fault(seal)
        if fault is not None:
            name = "a manifest" if seal is None else f"seal {seal.number}"
            hour = seal.hour if seal else None
            yield findings.broken(f"{name}: {fault}", hour=hour, seal=leaves.number)
    for seal in by_number.values():
        words = f"seal {seal.number}: its list of leaves is gone, so that none of its "
        words += f"{seal.rows:,} rows can be told from an added one"
        yield findings.broken(words, hour=seal.hour, seal=seal.number)


def usable(lists: list[Leaves]) -> list[Leaves]:
    """The lists in the form in which rows can be compared with them, faulty ones as far as it goes.

    What is wrong with them is for ``faults_of`` to say.
    """
    return [
        leaves if leaves.is_ordered else gathered([leaves], leaves.number)
        for leaves in lists
        if leaves.is_whole
    ]


def _named(told: LoggedRow) -> list[tuple[UUID, int | None]]:
    return [(UUID(bytes=identifier), number) for identifier, number in told.named]
