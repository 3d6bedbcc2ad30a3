"""The table of discrepancies: one row for as long as each lasts, with its cause and repair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.reconciliation.invariants import Discrepancy, DiscrepancyKind
from billing.reconciliation.remedies import DiscrepancyCause, Remedy


class DiscrepancyState(StrEnum):
    """The state of a discrepancy."""

    FOUND = "found"
    """Nothing was tried: repairs were not asked for, or a person has to decide."""
    WAITING = "waiting"
    """Its repair waits until what is on the way has arrived."""
    FAILED = "failed"
    """It was repaired and is there still, or the repair could not be done."""
    REPAIRED = "repaired"
    GONE = "gone"
    """It was not found any more, without a repair of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDiscrepancy:
    """A discrepancy with its cause, its remedy and its state."""

    discrepancy: Discrepancy
    cause: DiscrepancyCause
    remedy: Remedy
    state: DiscrepancyState
    note: str = ""

    def as_dict(self) -> dict[str, object]:
        """Convert to values that JSON can hold."""
        return {
            **self.discrepancy.as_dict(),
            "cause": self.cause.value,
            "remedy": self.remedy.value,
            "state": self.state.value,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscrepancyRow:
    """A row of ``discrepancies``."""

    id: int
    kind: DiscrepancyKind
    customer: str
    expected: int
    found: int
    detail: str
    cause: str
    remedy: str
    state: DiscrepancyState
    note: str
    times_seen: int
    first_seen_at: datetime
    last_seen_at: datetime
    ended_at: datetime | None

    def as_dict(self) -> dict[str, object]:
        """Convert to values that JSON can hold, but for the instants."""
        return asdict(self)


# An open row is updated. Only an open one can conflict, so what is repaired at once is inserted.
_WRITE: Final = sa.text(
    """
    WITH known AS (
        UPDATE discrepancies SET expected = :expected, found = :found, cause = :cause,
            remedy = :remedy, state = :state, note = :note, times_seen = times_seen + 1,
            last_seen_at = :now,
            ended_at = CASE WHEN :state = 'repaired' THEN CAST(:now AS timestamptz) END
        WHERE kind = :kind AND customer_id = :customer AND md5(detail) = md5(:detail)
            AND ended_at IS NULL
        RETURNING id
    ), new AS (
        INSERT INTO discrepancies AS d (kind, customer_id, expected, found, detail, cause, remedy,
            state, note, first_seen_at, last_seen_at, ended_at)
        SELECT :kind, :customer, :expected, :found, :detail, :cause, :remedy, :state, :note, :now,
            :now, CASE WHEN :state = 'repaired' THEN CAST(:now AS timestamptz) END
        WHERE NOT EXISTS (SELECT FROM known)
        ON CONFLICT (kind, customer_id, md5(detail)) WHERE ended_at IS NULL DO UPDATE SET
            times_seen = d.times_seen + 1, last_seen_at = excluded.last_seen_at
        RETURNING id
    )
    SELECT id FROM known UNION ALL SELECT id FROM new
    """
)
_GONE: Final = sa.text(
    """
    UPDATE discrepancies SET state = 'gone', ended_at = :now
    WHERE ended_at IS NULL AND id <> ALL(CAST(:seen AS bigint[]))
    """
)
_LIST: Final = sa.text(
    """
    SELECT id, kind, customer_id AS customer, expected, found, detail, cause, remedy, state, note,
        times_seen, first_seen_at, last_seen_at, ended_at
    FROM discrepancies WHERE :ended OR ended_at IS NULL
    ORDER BY last_seen_at DESC, id DESC LIMIT :limit
    """
)
_OPEN: Final = sa.text("SELECT kind, count(*) FROM discrepancies WHERE ended_at IS NULL GROUP BY 1")
_EVER: Final = sa.text("SELECT kind, count(*) FROM discrepancies GROUP BY 1")
_OLDEST: Final = sa.text("SELECT min(first_seen_at) FROM discrepancies WHERE ended_at IS NULL")


class DiscrepancyStore:
    """The table of discrepancies.

    Args:
        engine: PostgreSQL, as the owner role.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def write(self, records: Iterable[RecordedDiscrepancy], now: datetime) -> None:
        """Record a complete run: its discrepancies, and that open ones it did not find are gone."""
        with self._engine.begin() as connection:
            seen = [
                connection.execute(_WRITE, _parameters(record, now)).scalar_one()
                for record in records
            ]
            connection.execute(_GONE, {"seen": seen, "now": now})

    def list(self, *, ended: bool = False, limit: int = 100) -> Sequence[DiscrepancyRow]:
        """List discrepancies, newest first; ended ones only if asked for."""
        with self._engine.connect() as connection:
            rows = connection.execute(_LIST, {"ended": ended, "limit": limit}).mappings().all()
        return [DiscrepancyRow(**{**row, **_types(row)}) for row in rows]

    def open(self) -> dict[DiscrepancyKind, int]:
        """Count the open ones by kind, for a metric."""
        with self._engine.connect() as connection:
            return {DiscrepancyKind(kind): count for kind, count in connection.execute(_OPEN)}

    def ever(self) -> dict[DiscrepancyKind, int]:
        """Count all that ever were by kind, for a metric that only grows."""
        with self._engine.connect() as connection:
            return {DiscrepancyKind(kind): count for kind, count in connection.execute(_EVER)}

    def oldest_open(self) -> datetime | None:
        """Find the instant at which the oldest open one was first seen; None where none is open."""
        with self._engine.connect() as connection:
            first: datetime | None = connection.execute(_OLDEST).scalar_one()
        return first


def _types(row: sa.RowMapping) -> dict[str, object]:
    """Convert the columns that the driver gives in another type."""
    return {
        "kind": DiscrepancyKind(row["kind"]),
        "state": DiscrepancyState(row["state"]),
        "expected": int(row["expected"]),
        "found": int(row["found"]),
    }


def _parameters(record: RecordedDiscrepancy, now: datetime) -> dict[str, object]:
    discrepancy = record.discrepancy
    return {
        "kind": discrepancy.kind.value,
        "customer": discrepancy.customer,
        "expected": discrepancy.expected,
        "found": discrepancy.found,
        "detail": discrepancy.detail,
        "cause": record.cause.value,
        "remedy": record.remedy.value,
        "state": record.state.value,
        "note": record.note[:1000],
        "now": now,
    }
