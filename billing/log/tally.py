"""What newly logged events add to the rollups, and the upserts that add it.

Rows are upserted in the order of their keys, so that two consumers never wait for each other in a
circle.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import date, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.core.period import hour_floor
from billing.usage.event import Outcome, UsageEvent

HourKey = tuple[str, datetime, str, str, str]
SubjectKey = tuple[str, str, date, bytes]

_ADD_HOURS = sa.text(
    """
    INSERT INTO usage_hourly AS kept (customer_id, hour, sku_id, outcome, reason, events, quantity,
        amount_microcredits, shortfall_microcredits, cost_micros)
    SELECT customer_id, hour, sku_id, outcome, reason, events, quantity, amount, shortfall, cost
    FROM unnest(
        CAST(:customers AS text[]), CAST(:hours AS timestamptz[]), CAST(:skus AS text[]),
        CAST(:outcomes AS text[]), CAST(:reasons AS text[]), CAST(:events AS bigint[]),
        CAST(:quantities AS numeric[]), CAST(:amounts AS numeric[]),
        CAST(:shortfalls AS numeric[]), CAST(:costs AS numeric[])
    ) WITH ORDINALITY AS added (customer_id, hour, sku_id, outcome, reason, events, quantity,
        amount, shortfall, cost, position)
    ORDER BY position
    ON CONFLICT (customer_id, hour, sku_id, outcome, reason) DO UPDATE SET
        events = kept.events + excluded.events,
        quantity = kept.quantity + excluded.quantity,
        amount_microcredits = kept.amount_microcredits + excluded.amount_microcredits,
        shortfall_microcredits = kept.shortfall_microcredits + excluded.shortfall_microcredits,
        cost_micros = kept.cost_micros + excluded.cost_micros
    """
)
_ADD_SUBJECTS = sa.text(
    """
    INSERT INTO usage_subjects (customer_id, sku_id, month, subject_digest)
    SELECT customer_id, sku_id, month, subject_digest
    FROM unnest(
        CAST(:customers AS text[]), CAST(:skus AS text[]), CAST(:months AS date[]),
        CAST(:digests AS bytea[])
    ) WITH ORDINALITY AS added (customer_id, sku_id, month, subject_digest, position)
    ORDER BY position
    ON CONFLICT DO NOTHING
    RETURNING customer_id, sku_id, month
    """
)
_ADD_COUNTS = sa.text(
    """
    INSERT INTO usage_subject_counts AS kept (customer_id, sku_id, month, subjects)
    SELECT customer_id, sku_id, month, subjects
    FROM unnest(
        CAST(:customers AS text[]), CAST(:skus AS text[]), CAST(:months AS date[]),
        CAST(:subjects AS bigint[])
    ) WITH ORDINALITY AS added (customer_id, sku_id, month, subjects, position)
    ORDER BY position
    ON CONFLICT (customer_id, sku_id, month) DO UPDATE SET
        subjects = kept.subjects + excluded.subjects
    """
)


def hours_of(events: Iterable[UsageEvent]) -> dict[HourKey, tuple[int, int, int, int, int]]:
    """Events, quantity, amount, shortfall and provider cost, per row of ``usage_hourly``."""
    sums: defaultdict[HourKey, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for event in events:
        hour = hour_floor(event.metered_at)
        key = (event.customer, hour, event.sku, event.outcome.value, event.reason)
        row = sums[key]
        row[0] += 1
        row[1] += event.quantity
        row[2] += event.amount_microcredits
        row[3] += event.shortfall_microcredits
        row[4] += event.cost_micros
    return {key: (row[0], row[1], row[2], row[3], row[4]) for key, row in sums.items()}


def subjects_of(events: Iterable[UsageEvent]) -> set[SubjectKey]:
    """The rows of ``usage_subjects``: of what was used, so not of denials nor of free failures."""
    return {
        (
            event.customer,
            event.sku,
            first_of_month(event.metered_at),
            digest_of(event.subject),
        )
        for event in events
        if event.subject is not None
        and (event.outcome is Outcome.SUCCEEDED or event.amount_microcredits)
    }


def first_of_month(instant: datetime) -> date:
    """The day that names the month of an instant in UTC."""
    return instant.date().replace(day=1)


def digest_of(subject: str) -> bytes:
    """What is kept of a subject: enough to tell two apart, not enough to read it back."""
    return hashlib.sha256(subject.encode()).digest()[:16]


def add_to_rollups(connection: Connection, events: Iterable[UsageEvent]) -> None:
    """Add newly logged events to the hourly rollup and the distinct subjects.

    Args:
        connection: The transaction that logged them.
        events: Those of the batch that were new to the log, and no others.
    """
    fresh = list(events)
    if fresh:
        _add_hours(connection, fresh)
        _add_subjects(connection, fresh)


def _add_hours(connection: Connection, events: list[UsageEvent]) -> None:
    rows = sorted(hours_of(events).items())
    keys = [key for key, _ in rows]
    sums = [row for _, row in rows]
    connection.execute(
        _ADD_HOURS,
        {
            "customers": [key[0] for key in keys],
            "hours": [key[1] for key in keys],
            "skus": [key[2] for key in keys],
            "outcomes": [key[3] for key in keys],
            "reasons": [key[4] for key in keys],
            "events": [row[0] for row in sums],
            "quantities": [row[1] for row in sums],
            "amounts": [row[2] for row in sums],
            "shortfalls": [row[3] for row in sums],
            "costs": [row[4] for row in sums],
        },
    )


def _add_subjects(connection: Connection, events: list[UsageEvent]) -> None:
    subjects = sorted(subjects_of(events))
    if not subjects:
        return
    new = connection.execute(
        _ADD_SUBJECTS,
        {
            "customers": [row[0] for row in subjects],
            "skus": [row[1] for row in subjects],
            "months": [row[2] for row in subjects],
            "digests": [row[3] for row in subjects],
        },
    )
    counts = sorted(Counter((row[0], row[1], row[2]) for row in new).items())
    if not counts:
        return
    connection.execute(
        _ADD_COUNTS,
        {
            "customers": [key[0] for key, _ in counts],
            "skus": [key[1] for key, _ in counts],
            "months": [key[2] for key, _ in counts],
            "subjects": [count for _, count in counts],
        },
    )
