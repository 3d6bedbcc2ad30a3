"""Sealing of the log: from manifests to seals, and reading both back.

An hour of usage is sealed once it has been over for a while; late rows of it get further seals. One
seal is one transaction: the seal, the leaves under it, and its manifests deleted. Killed anywhere,
the next run goes on with the manifests that are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.audit.seal_chain import Leaves, Seal, gathered, next_seal
from billing.core.errors import WeighbridgeError
from billing.core.failpoints import reach
from billing.core.periods import Period, hour_floor
from billing.postgres.locks import AdvisoryLock, session_lock
from billing.postgres.schema import log_seal_leaves, log_seals

LAG: Final = timedelta(minutes=15)
"""Wait this long after an hour's end: by then most of its usage has arrived."""

MOST_ROWS: Final = 131_072
"""The most rows under one seal: 6 MiB of ids and leaves, about 50 MiB while they are sorted."""


_HOURS: Final = sa.text(
    "SELECT DISTINCT hour FROM log_manifests WHERE hour < :before AND id <= :upto ORDER BY hour"
)
_NEWEST_MANIFEST: Final = sa.text("SELECT coalesce(max(id), 0) FROM log_manifests")
# Whole manifests, as many as have no more rows than `most` together; at least one.
_TAKE: Final = sa.text(
    """
    SELECT id, ids, hashes FROM log_manifests WHERE id IN (
        SELECT id FROM (
            SELECT id, sum(rows) OVER (ORDER BY id) AS so_far, min(id) OVER () AS first
            FROM log_manifests WHERE hour = :hour AND id <= :upto
        ) AS waiting
        WHERE so_far <= :most OR id = first
    )
    """
)
# Late rows of an hour that was sealed before wait since they were logged.
_SINCE: Final = sa.text(
    """
    SELECT min(greatest(hour + interval '1 hour', logged_at)) FROM log_manifests
    WHERE hour + interval '1 hour' <= :now
    """
)
_TAKEN: Final = sa.text("DELETE FROM log_manifests WHERE id = ANY(:ids)")
_WAITING: Final = sa.text("SELECT ids, hashes FROM log_manifests WHERE hour = :hour ORDER BY id")


class SealingBusyError(WeighbridgeError):
    """Another process is sealing at this moment; it seals what is due. Nothing was done here."""


@dataclass(frozen=True, slots=True)
class SealingResult:
    """Counts of a run of sealing; ``head`` is the newest seal, its own or an older one."""

    seals: int
    rows: int
    head: Seal | None


class Sealer:
    """Seals hours that are over.

    Args:
        engine: As the owner of the schema.
        lag: The wait after an hour's end.
        most_rows: The most rows under one seal.
    """

    def __init__(self, engine: Engine, *, lag: timedelta = LAG, most_rows: int = MOST_ROWS) -> None:
        self._engine = engine
        self._lag = lag
        self._most_rows = most_rows

    def seal(self, now: datetime) -> SealingResult:
        """Seal every hour that is over, and late rows of those sealed before.

        May run twice, late or never: a run does whatever is due.

        Args:
            now: The present instant.

        Raises:
            SealingBusyError: Another process is at it.
        """
        with session_lock(self._engine, AdvisoryLock.SEALING) as held:
            if not held:
                raise SealingBusyError
            return self._seal(now)

    def _seal(self, now: datetime) -> SealingResult:
        with self._engine.connect() as connection:
            # Rows logged while this runs wait for the next run, so that there is an end.
            upto = connection.execute(_NEWEST_MANIFEST).scalar_one()
            limits = {"before": hour_floor(now - self._lag), "upto": upto}
            hours = connection.execute(_HOURS, limits).scalars().all()
        seals = rows = 0
        for hour in hours:
            while seal := self._seal_some(hour, upto, now):
                seals, rows = seals + 1, rows + seal.rows
        with self._engine.connect() as connection:
            return SealingResult(seals, rows, newest_seal(connection))

    def _seal_some(self, hour: datetime, upto: int, now: datetime) -> Seal | None:
        limits = {"hour": hour, "upto": upto, "most": self._most_rows}
        with self._engine.begin() as connection:
            taken = connection.execute(_TAKE, limits).all()
            if not taken:
                return None
            leaves = gathered(Leaves(None, row.ids, row.hashes) for row in taken)
            seal = next_seal(newest_seal(connection), leaves, hour=hour, sealed_at=now)
            write_seal(connection, seal, leaves)
            connection.execute(_TAKEN, {"ids": [row.id for row in taken]})
            reach("seal.before_commit")
        reach("seal.after_commit")
        return seal


def write_seal(connection: Connection, seal: Seal, leaves: Leaves) -> None:
    """Write a seal and the leaves under it."""
    values = {name: getattr(seal, name) for name in _COLUMNS}
    connection.execute(sa.insert(log_seals).values(**values, hash=seal.hash))
    write_leaves(connection, Leaves(seal.number, leaves.ids, leaves.hashes))


def write_leaves(connection: Connection, leaves: Leaves) -> None:
    """Write the leaves under a seal that exists."""
    connection.execute(
        sa.insert(log_seal_leaves).values(
            number=leaves.number, ids=leaves.ids, hashes=leaves.hashes
        )
    )


def newest_seal(connection: Connection) -> Seal | None:
    """Read the head of the chain; None before the first seal."""
    query = sa.select(log_seals).order_by(log_seals.c.number.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else _seal_of(row)


def unsealed_since(connection: Connection, now: datetime) -> datetime | None:
    """Find the instant since which the oldest row due for a seal waits; None where none does.

    Args:
        connection: Any that may read.
        now: The present instant; its own hour is not due yet.
    """
    since: datetime | None = connection.execute(_SINCE, {"now": now}).scalar_one()
    return since


def read_seals(
    connection: Connection, *, after: int = 0, period: Period | None = None
) -> Iterator[tuple[Seal, bytes]]:
    """Read seals by number, each with the hash stored beside it; streamed.

    Args:
        connection: In a transaction.
        after: Only those with a higher number.
        period: Only those of hours that begin in it.
    """
    query = sa.select(log_seals).where(log_seals.c.number > after).order_by(log_seals.c.number)
    if period is not None:
        query = query.where(log_seals.c.hour >= period.start, log_seals.c.hour < period.end)
    for row in connection.execution_options(yield_per=2_000).execute(query):
        yield _seal_of(row), bytes(row.hash)


def seals_of_hour(connection: Connection, hour: datetime) -> list[Seal]:
    """Read the seals of one hour, by number."""
    query = sa.select(log_seals).where(log_seals.c.hour == hour).order_by(log_seals.c.number)
    return [_seal_of(row) for row in connection.execute(query)]


def sealed_leaves(connection: Connection, numbers: Iterable[int]) -> list[Leaves]:
    """Read the leaves under these seals, as far as the database has them, by number."""
    kept = log_seal_leaves.c
    query = sa.select(log_seal_leaves).where(kept.number.in_(list(numbers))).order_by(kept.number)
    return [
        Leaves(row.number, bytes(row.ids), bytes(row.hashes)) for row in connection.execute(query)
    ]


def waiting_leaves(connection: Connection, hour: datetime) -> list[Leaves]:
    """Read the leaves of an hour's rows that wait for their seal."""
    rows = connection.execute(_WAITING, {"hour": hour})
    return [Leaves(None, bytes(row.ids), bytes(row.hashes)) for row in rows]


_COLUMNS: Final = ("number", "hour", "sealed_at", "rows", "adopted", "root", "previous")


def _seal_of(row: sa.Row[Any]) -> Seal:
    values = {name: getattr(row, name) for name in _COLUMNS}
    return Seal(**{**values, "root": bytes(row.root), "previous": bytes(row.previous)})
