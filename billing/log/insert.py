"""The insert into the log: one statement per batch, bisected where the database refuses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import orjson
import psycopg
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from billing.log.screen import Candidate, Dead, dead
from billing.usage.event import DeadReason, UsageEvent

# Columns of the log with the type of the array each is sent in. JSON is sent as text: an array of
# jsonb would be escaped twice.
_COLUMNS: Final = {
    "id": "uuid",
    "customer_id": "text",
    "sku_id": "text",
    "line": "text",
    "outcome": "text",
    "reason": "text",
    "quantity": "bigint",
    "amount_microcredits": "bigint",
    "shortfall_microcredits": "bigint",
    "held_microcredits": "bigint",
    "cost_micros": "bigint",
    "currency": "text",
    "subject": "text",
    "dimensions": "text",
    "task_id": "text",
    "task_name": "text",
    "root_id": "text",
    "parent_id": "text",
    "group_id": "text",
    "attempt": "integer",
    "worker": "text",
    "degraded": "boolean",
    "quota_epoch": "bigint",
    "started_at": "timestamptz",
    "finished_at": "timestamptz",
    "fingerprint": "bytea",
}
_VALUES: Final = ", ".join(f"{name}::jsonb" if name == "dimensions" else name for name in _COLUMNS)
# In the order of the ids: two consumers with the same duplicates then wait, and never in a circle.
_INSERT: Final = f"""
    INSERT INTO usage_events ({", ".join(_COLUMNS)})
    SELECT {_VALUES}
    FROM unnest({", ".join(f"%({name})s::{kind}[]" for name, kind in _COLUMNS.items())})
        AS event ({", ".join(_COLUMNS)})
    ORDER BY id
    ON CONFLICT (id) DO NOTHING
    RETURNING id
"""  # noqa: S608 - made of the names above only

_DATA_ERRORS: Final = frozenset({"22", "23", "54"})
"""SQLSTATE classes that are the fault of a row: data exception, constraint, a limit passed."""


def insert_events(
    connection: Connection, candidates: Sequence[Candidate]
) -> tuple[set[UUID], list[Dead]]:
    """Log what is new; find the rows that the database refuses, and log their neighbours.

    Args:
        connection: In a transaction.
        candidates: At most one per id.

    Returns:
        The ids that were new, and the dead letters of those refused. The others were there before.

    Raises:
        DBAPIError: Anything that is not the fault of a row.
    """
    if not candidates:
        return set(), []
    rows = sorted(candidates, key=lambda candidate: candidate.event.id.int)
    try:
        with connection.begin_nested():
            found = connection.exec_driver_sql(_INSERT, _arrays(rows))
            return set(found.scalars()), []
    except DBAPIError as error:
        if not is_fault_of_a_row(error):
            raise
        if len(rows) == 1:
            return set(), [dead(DeadReason.REFUSED_BY_DATABASE, _told(error), rows[0].body)]
    middle = len(rows) // 2
    first, refused_first = insert_events(connection, rows[:middle])
    second, refused_second = insert_events(connection, rows[middle:])
    return first | second, refused_first + refused_second


def is_fault_of_a_row(error: DBAPIError) -> bool:
    """Whether another try with the same rows must fail in the same way."""
    original = error.orig
    if not isinstance(original, psycopg.Error):
        return False
    if original.sqlstate is None:
        return isinstance(original, psycopg.DataError)
    return original.sqlstate[:2] in _DATA_ERRORS


def _told(error: DBAPIError) -> str:
    original = error.orig
    if not isinstance(original, psycopg.Error):
        return str(original)[:500]
    text = f"{original.sqlstate}: {original.diag.message_primary or original}"[:500]
    missing = original.sqlstate == "23514" and original.diag.constraint_name is None
    return f"{text}; run: billing migrate, then replay" if missing else text


def _arrays(rows: Sequence[Candidate]) -> dict[str, list[Any]]:
    columns = zip(*(_values(row.event, row.fingerprint) for row in rows), strict=True)
    return {name: list(values) for name, values in zip(_COLUMNS, columns, strict=True)}


def _values(event: UsageEvent, fingerprint: bytes) -> tuple[object, ...]:
    return (
        event.id,
        event.customer,
        event.sku,
        event.line,
        event.outcome.value,
        event.reason,
        event.quantity,
        event.amount_microcredits,
        event.shortfall_microcredits,
        event.held_microcredits,
        event.cost_micros,
        event.currency,
        event.subject,
        orjson.dumps(event.dimensions, option=orjson.OPT_SORT_KEYS).decode(),
        event.task_id,
        event.task_name,
        event.root_id,
        event.parent_id,
        event.group_id,
        event.attempt,
        event.worker,
        event.degraded,
        event.quota_epoch,
        event.started_at,
        event.finished_at,
        fingerprint,
    )
