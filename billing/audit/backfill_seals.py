"""Sealing of rows that no application recorded as logged, at an operator's word.

For a log that is older than sealing, once; and for rows that ``billing verify`` found and somebody
has checked. Their seals say that they were adopted.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice

from sqlalchemy.engine import Engine

from billing.audit.month_rows import LiveMonth, snapshots
from billing.audit.row_diff import Record, unlisted
from billing.audit.seal_chain import Leaves, next_seal
from billing.audit.sealer import (
    MOST_ROWS,
    SealingBusyError,
    SealingResult,
    newest_seal,
    write_seal,
)
from billing.audit.verifier import usable
from billing.core.periods import Period
from billing.postgres.locks import AdvisoryLock, session_lock


def backfill_seals(
    engine: Engine, month: Period, now: datetime, *, most_rows: int = MOST_ROWS
) -> SealingResult:
    """Seal every row of a UTC month that is in no seal and no manifest, as it is now.

    Killed anywhere, the next run goes on with the rows that are left.

    Args:
        engine: As the owner of the schema.
        month: In the database.
        now: The present instant.
        most_rows: The most rows under one seal.

    Raises:
        SealingBusyError: Another process is sealing.
    """
    seals = rows = 0
    with session_lock(engine, AdvisoryLock.SEALING) as held:
        if not held:
            raise SealingBusyError
        for hour in LiveMonth(month, snapshots(engine)).hours():
            records = unlisted(hour.rows, usable(hour.lists))
            while leaves := _next(records, most_rows):
                with engine.begin() as connection:
                    head = newest_seal(connection)
                    seal = next_seal(head, leaves, hour=hour.start, sealed_at=now, adopted=True)
                    write_seal(connection, seal, leaves)
                seals, rows = seals + 1, rows + seal.rows
        with engine.connect() as connection:
            return SealingResult(seals, rows, newest_seal(connection))


def _next(records: Iterator[Record], most_rows: int) -> Leaves | None:
    taken = list(islice(records, most_rows))
    if not taken:
        return None
    ids, hashes = zip(*taken, strict=True)
    return Leaves(None, b"".join(ids), b"".join(hashes))
