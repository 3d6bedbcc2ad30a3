"""What newly logged events add to the rollups, and the upserts that add it.

Rows are upserted in the order of their keys, so that two consumers never wait for each other in a
circle. Distinct subjects come first: many rows, each of a few batches. The sums come last, because
every batch of a customer's hour wants the same one, and whoever changed it keeps it to the COMMIT.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import date
from typing import Final

from sqlalchemy.engine import Connection

from billing.postgres.copy_rows import Fields, driver_cursor
from billing.usage_log import rows
from billing.usage_log.candidate import Candidate, hour_at
from billing.usage_log.distinct_subjects import SubjectIds, first_day, month_number

HourKey = tuple[str, int, str, str, str]
Group = tuple[str, str, int]

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
# One statement, so that the new subjects need not be told to the client and counted there.
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
_UUID_WIDTH: Final = (16).to_bytes(4, "big")
_DATE_WIDTH: Final = (4).to_bytes(4, "big")


class Tally:
    """Adds newly logged events to the hourly rollup and to the distinct subjects."""

    def __init__(self) -> None:
        self._subject_ids = SubjectIds()

    def add(self, connection: Connection, fresh: Iterable[Candidate]) -> None:
        """Add events.

        Args:
            connection: The transaction that logged them.
            fresh: Those of the batch that were new to the log, and no others.
        """
        candidates = list(fresh)
        if candidates:
            _add_subjects(connection, self._subjects_of(candidates))
            _add_hours(connection, candidates)

    def _subjects_of(self, candidates: Iterable[Candidate]) -> dict[bytes, Group]:
        """The rows of ``usage_subjects``: of what was used, so not of denials nor of free failures.

        By id, in no order.
        """
        months: dict[int, int] = {}
        found: dict[bytes, Group] = {}
        id_of = self._subject_ids.id_of
        for candidate in candidates:
            subject = candidate.used_subject
            if subject is not None:
                hour = candidate.hour
                month = months.get(hour)
                if month is None:
                    month = months[hour] = month_number(hour)
                group = (candidate.customer, candidate.sku, month)
                found[id_of(*group, subject)] = group
        return found


def hours_of(candidates: Iterable[Candidate]) -> dict[HourKey, list[int]]:
    """Events, quantity, amount, shortfall and provider cost, per row of ``usage_hourly``."""
    sums: defaultdict[HourKey, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for candidate in candidates:
        _, customer, sku, outcome, reason, hour, quantity, amount, shortfall, cost, *_ = candidate
        row = sums[customer, hour, sku, outcome, reason]
        row[0] += 1
        row[1] += quantity
        row[2] += amount
        row[3] += shortfall
        row[4] += cost
    return sums


def _add_hours(connection: Connection, candidates: Iterable[Candidate]) -> None:
    added = sorted(hours_of(candidates).items())
    customers, hours, skus, outcomes, reasons = zip(*(key for key, _ in added), strict=True)
    at = {hour: rows.instant(hour_at(hour)) for hour in set(hours)}
    arrays = [_texts(customers), Fields("timestamptz", [at[hour] for hour in hours])]
    arrays += map(_texts, (skus, outcomes, reasons))
    arrays += (
        _texts(map(str, figures)) for figures in zip(*(sums for _, sums in added), strict=True)
    )
    with driver_cursor(connection) as cursor:
        cursor.execute(_ADD_HOURS, arrays)


def _add_subjects(connection: Connection, subjects: dict[bytes, Group]) -> None:
    if not subjects:
        return
    fields = {group: _group_fields(group) for group in set(subjects.values())}
    ordered = sorted(subjects)
    groups = [fields[subjects[identifier]] for identifier in ordered]
    arrays = [
        Fields("uuid", [_UUID_WIDTH + identifier for identifier in ordered]),
        Fields("text", [group[0] for group in groups]),
        Fields("text", [group[1] for group in groups]),
        Fields("date", [group[2] for group in groups]),
    ]
    with driver_cursor(connection) as cursor:
        cursor.execute(_ADD_SUBJECTS, arrays)


def _texts(values: Iterable[str]) -> Fields:
    return Fields("text", [rows.text(value) for value in values])


def _group_fields(group: Group) -> tuple[bytes, bytes, bytes]:
    customer, sku, month = group
    days = (first_day(month) - _DAY_ZERO).days
    return rows.text(customer), rows.text(sku), _DATE_WIDTH + days.to_bytes(4, "big", signed=True)


_DAY_ZERO: Final = date(2000, 1, 1)
"""PostgreSQL counts days from here."""
