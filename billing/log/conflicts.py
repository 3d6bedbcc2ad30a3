"""The same id again: the same fact told twice, or another fact under its id."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.log.screen import Candidate, Dead, dead, storable
from billing.usage.event import DeadReason, UsageEvent

_READ: Final = sa.text(
    """
    SELECT id, fingerprint, customer_id, sku_id, line, task_id, outcome, quantity,
        amount_microcredits, cost_micros, currency, subject, dimensions, quota_epoch
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


def logged(connection: Connection, ids: Collection[UUID]) -> dict[UUID, Mapping[str, Any]]:
    """The rows of the log with these ids, as far as two tellings of a fact are compared."""
    if not ids:
        return {}
    rows = connection.execute(_READ, {"ids": list(ids)}).mappings()
    return {row["id"]: dict(row) for row in rows}


def as_logged(candidate: Candidate) -> Mapping[str, Any]:
    """A candidate in the form of ``logged``; for the one that was logged a moment ago."""
    event = candidate.event
    return {
        "fingerprint": candidate.fingerprint,
        "quota_epoch": event.quota_epoch,
        **_facts(event),
    }


def conflict(candidate: Candidate, row: Mapping[str, Any] | None) -> Dead | None:
    """The dead letter of a candidate that tells another fact than ``row``; None for the same.

    Args:
        candidate: An event whose id was logged before.
        row: That row, of ``logged`` or ``as_logged``.
    """
    if row is None:
        # Its partition was detached between the insert and the look: it cannot be compared.
        detail = "the id was taken, and its row is out of reach"
        return dead(DeadReason.REFUSED_BY_DATABASE, detail, candidate.body)
    if bytes(row["fingerprint"]) == candidate.fingerprint:
        return None
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
