"""Summing a bucket of the rollups up again from its lines, while the log is being written."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.core.clock import parse_instant
from billing.core.event_ids import lowest_id
from billing.core.periods import month_of
from billing.postgres.partition_detaching import is_attached
from billing.reconciliation.invariants import Discrepancy

_LOCK_BUCKET: Final = sa.text(
    """
    INSERT INTO usage_hourly AS kept (customer_id, hour, sku_id, outcome, reason, events, quantity,
        amount_microcredits, shortfall_microcredits, cost_micros)
    VALUES (:customer, :hour, :sku, :outcome, :reason, 0, 0, 0, 0, 0)
    ON CONFLICT (customer_id, hour, sku_id, outcome, reason) DO UPDATE SET events = kept.events
    """
)
_ROLL_UP: Final = sa.text(
    """
    UPDATE usage_hourly SET events = s.events, quantity = s.quantity,
        amount_microcredits = s.amount, shortfall_microcredits = s.shortfall, cost_micros = s.cost
    FROM (
        SELECT count(*) AS events, coalesce(sum(quantity), 0) AS quantity,
            coalesce(sum(amount_microcredits), 0) AS amount,
            coalesce(sum(shortfall_microcredits), 0) AS shortfall,
            coalesce(sum(cost_micros), 0) AS cost
        FROM usage_events
        WHERE customer_id = :customer AND id >= :lowest AND id < :end AND sku_id = :sku
            AND outcome = :outcome AND reason = :reason
    ) AS s
    WHERE customer_id = :customer AND hour = :hour AND sku_id = :sku AND outcome = :outcome
        AND reason = :reason
    """
)
_DROP_EMPTY: Final = sa.text(
    """
    DELETE FROM usage_hourly WHERE customer_id = :customer AND hour = :hour AND sku_id = :sku
        AND outcome = :outcome AND reason = :reason AND events = 0
    """
)


def sum_up_again(engine: Engine, discrepancy: Discrepancy) -> bool:
    """Sum a bucket up again; False, and nothing is done, where its month leaves the log.

    Args:
        engine: PostgreSQL, as the owner role.
        discrepancy: Of a rollup; its ``bucket`` says which.
    """
    hour_text, sku, outcome, reason = discrepancy.bucket
    hour = parse_instant(hour_text, field="hour")
    parameters: dict[str, Any] = {
        "customer": discrepancy.customer,
        "hour": hour,
        "sku": sku,
        "outcome": outcome,
        "reason": reason,
        "lowest": lowest_id(hour),
        "end": lowest_id(hour + timedelta(hours=1)),
    }
    month = month_of(hour)
    with engine.connect() as connection, connection.begin() as transaction:
        # A writer that has inserted lines and not yet added them up waits for this row; its
        # lines are not seen by the sum, and it adds them when this has committed.
        was_attached = is_attached(connection, month)
        connection.execute(_LOCK_BUCKET, parameters)
        connection.execute(_ROLL_UP, parameters)
        connection.execute(_DROP_EMPTY, parameters)
        # Without its lines a month sums up to nothing. It may leave at any moment, so it has to
        # be there before and after they were summed up.
        if not (was_attached and is_attached(connection, month)):
            transaction.rollback()
            return False
    return True
