"""The same id again: the same fact told twice, or another fact under its id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.core.usage_event import DeadReason, UsageEvent
from billing.postgres.copy_rows import Fields, driver_cursor
from billing.usage_log.candidate import Candidate
from billing.usage_log.screen import Dead, dead, storable

_FIND: Final = """
    SELECT uuid_send(id), fingerprint, quota_epoch FROM usage_events WHERE id = ANY(%s)
"""
_READ: Final = sa.text(
    """
    SELECT id, customer_id, sku_id, line, task_id, outcome, quantity,
        amount_microcredits, cost_micros, currency, subject, dimensions
    FROM usage_events WHERE id = ANY(CAST(:ids AS uuid[]))
    """
)
_COMPARED: Final = (
    "customer_id",
    "sku_id",
    "line",
    "task_id",
    "outcome",
    "quantity",
    "amount_microcredits",
    "cost_micros",
    "currency",
    "subject",
    "dimensions",
)
_WIDTH: Final = (16).to_bytes(4, "big")


class Logged(NamedTuple):
    """What a telling is compared with."""

    fingerprint: bytes
    epoch: int


def logged(connection: Connection, keys: Iterable[bytes]) -> dict[bytes, Logged]:
    """Those of some ids that the log has."""
    fields = [_WIDTH + key for key in keys]
    if not fields:
        return {}
    with driver_cursor(connection) as cursor:
        found = cursor.execute(_FIND, [Fields("uuid", fields)]).fetchall()
    return {key: Logged(fingerprint, epoch) for key, fingerprint, epoch in found}


def conflicts(connection: Connection, candidates: Sequence[Candidate]) -> list[Dead]:
    """The dead letters of candidates whose id the log has with another fingerprint.

    Args:
        connection: The transaction in which that was seen.
        candidates: In any order.
    """
    if not candidates:
        return []
    ids = list({UUID(bytes=candidate.key) for candidate in candidates})
    rows = {row["id"].bytes: row for row in connection.execute(_READ, {"ids": ids}).mappings()}
    return [_conflict(candidate, rows.get(candidate.key)) for candidate in candidates]


def out_of_reach(candidate: Candidate) -> Dead:
    """The dead letter of a candidate whose id is taken by a row that cannot be read.

    Its partition was detached between the insert and the look: it cannot be compared.
    """
    detail = "the id was taken, and its row is out of reach"
    return dead(DeadReason.REFUSED_BY_DATABASE, detail, candidate.body)


def _conflict(candidate: Candidate, row: Any) -> Dead:  # noqa: ANN401 - SQLAlchemy's mapping
    if row is None:
        return out_of_reach(candidate)
    facts = _facts(candidate.event)
    differ = [
        f"{name} (logged {row[name]!r:.60}, here {facts[name]!r:.60})"
        for name in _COMPARED
        if row[name] != facts[name]
    ]
    detail = "logged before with another " + (", ".join(differ) or "fingerprint")
    return dead(DeadReason.CONFLICT, storable(detail), candidate.body)


def _facts(event: UsageEvent) -> dict[str, Any]:
    return {
        "customer_id": event.customer,
        "sku_id": event.sku,
        "line": event.line,
        "task_id": event.task_id,
        "outcome": event.outcome.value,
        "quantity": event.quantity,
        "amount_microcredits": event.amount_microcredits,
        "cost_micros": event.cost_micros,
        "currency": event.currency,
        "subject": event.subject,
        "dimensions": event.dimensions,
    }
