"""What newly logged events add to the rollups, and the upserts that add it.

Rows are upserted in the order of their keys, so that two consumers never wait for each other in a
circle. Distinct subjects come first: many rows, each of a few batches. The sums come last, because
every batch of a customer's hour wants the same one, and whoever changed it keeps it to the COMMIT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Final

from sqlalchemy.engine import Connection

from billing.postgres.copy_rows import Fields, driver_cursor
from billing.usage_log.copy_fields import ids_array, instant, text, texts_array
from billing.usage_log.distinct_subjects import SubjectGroup, first_day, hour_at
from billing.usage_log.event_reader import Row

HourKey = tuple[str, int, str, str, str]
"""Customer, hour, SKU, outcome, reason."""

# Figures come as text: the sums of a batch may pass what a bigint holds.
_ADD_HOURS: Final = """
    INSERT INTO usage_hourly AS kept (customer_id, hour, sku_id, outcome, reason, events, quantity,
        amount_microcredits, shortfall_microcredits, cost_micros)
    SELECT customer_id, hour, sku_id, outcome, reason, events::bigint, quantity::numeric,
        amount::numeric, shortfall::numeric, cost::numeric
    FROM unnest(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) WITH ORDINALITY AS added (customer_id, hour,
        sku_id, outcome, reason, events, quantity, amount, shortfall, cost, position)
    ORDER BY position
    ON CONFLICT (customer_id, hour, sku_id, outcome, reason) DO UPDATE SET
        events = kept.events + excluded.events,
        quantity = kept.quantity + excluded.quantity,
        amount_microcredits = kept.amount_microcredits + excluded.amount_microcredits,
        shortfall_microcredits = kept.shortfall_microcredits + excluded.shortfall_microcredits,
        cost_micros = kept.cost_micros + excluded.cost_micros
"""
# One statement, so that the new subjects need not be sent to the client and counted there.
_ADD_SUBJECTS: Final = """
    WITH fresh AS (
        INSERT INTO usage_subjects (id, customer_id, sku_id, month)
        SELECT unnest(%s), unnest(%s), unnest(%s), unnest(%s)
        ON CONFLICT (id) DO NOTHING
        RETURNING customer_id, sku_id, month
    )
    INSERT INTO usage_subject_counts AS kept (customer_id, sku_id, month, subjects)
    SELECT customer_id, sku_id, month, count(*) FROM fresh
    GROUP BY customer_id, sku_id, month
    ORDER BY customer_id COLLATE "C", sku_id COLLATE "C", month
    ON CONFLICT (customer_id, sku_id, month) DO UPDATE SET
        subjects = kept.subjects + excluded.subjects
"""
_DATE_WIDTH: Final = (4).to_bytes(4, "big")
_DAY_ZERO: Final = date(2000, 1, 1)
"""PostgreSQL counts days from here."""


def add_to_rollups(connection: Connection, fresh: Sequence[Row]) -> None:
    """Add events to the distinct subjects and to the hourly sums.

    Args:
        connection: The transaction that logged them.
        fresh: Those of the batch that were new to the log, and no others.
    """
    if fresh:
        _add_subjects(connection, dict(row.subject for row in fresh if row.subject is not None))
        _add_hours(connection, hours_of(fresh))


def hours_of(rows: Sequence[Row]) -> dict[HourKey, list[int]]:
    """Events, quantity, amount, shortfall and provider cost, per row of ``usage_hourly``."""
    sums: dict[HourKey, list[int]] = {}
    for row in rows:
        event = row.event
        key = (event.customer, row.hour, event.sku, event.outcome, event.reason)
        found = sums.get(key)
        if found is None:
            found = sums[key] = [0, 0, 0, 0, 0]
        found[0] += 1
        found[1] += event.quantity
        found[2] += event.amount_microcredits
        found[3] += event.shortfall_microcredits
        found[4] += event.cost_micros
    return sums


def _add_hours(connection: Connection, sums: Mapping[HourKey, list[int]]) -> None:
    added = sorted(sums.items())
    customers, hours, skus, outcomes, reasons = zip(*(key for key, _ in added), strict=True)
    at = {hour: instant(hour_at(hour)) for hour in set(hours)}
    arrays = [texts_array(customers), Fields("timestamptz", [at[hour] for hour in hours])]
    arrays += map(texts_array, (skus, outcomes, reasons))
    arrays += (
        texts_array(map(str, figures))
        for figures in zip(*(figures for _, figures in added), strict=True)
    )
    with driver_cursor(connection) as cursor:
        cursor.execute(_ADD_HOURS, arrays)


def _add_subjects(connection: Connection, subjects: Mapping[bytes, SubjectGroup]) -> None:
    if not subjects:
        return
    fields = {group: _group_fields(group) for group in set(subjects.values())}
    ordered = sorted(subjects)
    customers, skus, months = zip(*[fields[subjects[key]] for key in ordered], strict=True)
    arrays = [
        ids_array(ordered),
        Fields("text", customers),
        Fields("text", skus),
        Fields("date", months),
    ]
    with driver_cursor(connection) as cursor:
        cursor.execute(_ADD_SUBJECTS, arrays)


def _group_fields(group: SubjectGroup) -> tuple[bytes, bytes, bytes]:
    customer, sku, month = group
    days = (first_day(month) - _DAY_ZERO).days
    return text(customer), text(sku), _DATE_WIDTH + days.to_bytes(4, "big", signed=True)
