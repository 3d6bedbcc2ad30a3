"""Reads PostgreSQL and Redis and compares them. Changes nothing."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from billing.archive.catalog import archives
from billing.core.clock import Clock, format_instant, from_ms, to_ms
from billing.core.event_ids import lowest_id
from billing.core.periods import Period, hour_floor
from billing.core.reservation import HoldView
from billing.postgres.schema import customers, grants, quota_fences, usage_events, usage_hourly
from billing.quota.port import QuotaStore
from billing.reconciliation.invariants import (
    CustomerBalances,
    Discrepancy,
    DiscrepancyKind,
    compare,
    compare_rollups,
)

Buckets = dict[tuple[str, ...], tuple[int, ...]]
"""By (customer, hour, SKU, outcome, reason): events, quantity, amount, shortfall, cost."""

SWEEP_GRACE = timedelta(seconds=90)
"""Time after its expiry at which a hold is overdue: beat sweeps every 30 seconds."""


HOUR_MS = 3_600_000
# The first 48 bits of an id are its milliseconds. PostgreSQL groups them: buckets are few.
_SUMS_OF_THE_LOG = sa.text(
    """
    SELECT customer_id,
        CAST(CAST('x' || left(replace(CAST(id AS text), '-', ''), 12) AS bit(48)) AS bigint)
            / 3600000 AS hour,
        sku_id, outcome, reason, count(*) AS events, sum(quantity), sum(amount_microcredits),
        sum(shortfall_microcredits), sum(cost_micros)
    FROM usage_events WHERE usage_events.id >= :lowest GROUP BY 1, 2, 3, 4, 5
    """
)


class InvariantChecks:
    """The checks of every invariant.

    Args:
        engine: PostgreSQL; only read.
        quota: The quota store; only read.
        clock: The time.
    """

    def __init__(self, engine: sa.Engine, quota: QuotaStore, clock: Clock) -> None:
        self._engine = engine
        self._quota = quota
        self._clock = clock

    def run(self, since: datetime) -> list[Discrepancy]:
        """Compare the sides: totals over all time, single lines and buckets from ``since`` on.

        Months that were archived count by their rollups: their lines are not in the log any more.

        Meaningful when drained: usage between outbox and log shows as a difference that the next
        run no longer finds.

        Raises:
            QuotaUnavailable: Redis did not answer.
        """
        holds = self._quota.open_holds()
        with self._engine.connect() as connection:
            # One snapshot, or a row logged between two sums would look like a fault.
            connection.execution_options(isolation_level="REPEATABLE READ")
            found = compare(self._balances(connection, holds, hour_floor(since)))
            found += compare_rollups(*self._buckets(connection, since))
            found += self._duplicates(connection, since)
            found += self._denied_but_ran(connection, since)
        return found + self._overdue(holds)

    def of_customer(self, customer: str, since: datetime) -> list[Discrepancy]:
        """Compare one customer's totals now; as ``run``, for a closer look.

        Raises:
            QuotaUnavailable: Redis did not answer.
        """
        holds = self._quota.open_holds(customer)
        with self._engine.connect() as connection:
            connection.execution_options(isolation_level="REPEATABLE READ")
            return compare(self._balances(connection, holds, hour_floor(since), customer))

    def _balances(
        self,
        connection: sa.Connection,
        holds: list[HoldView],
        start: datetime,
        only: str | None = None,
    ) -> list[CustomerBalances]:
        """Read the totals of all time, of one customer or of all.

        Those of the log before ``start`` and of archived months are its rollups', which were
        compared in their own time: summing every line of every month would cost more each hour.
        """
        archived = _archived(connection)
        held: dict[str, int] = defaultdict(int)
        for hold in holds:
            held[hold.customer] += hold.held_microcredits
        e, h, f, g = usage_events.c, usage_hourly.c, quota_fences.c, grants.c

        def sums(
            whose: sa.Column[str], amount: sa.Column[int], *which: sa.ColumnElement[bool]
        ) -> dict[str, int]:
            own = () if only is None else (whose == only,)
            return _sums(connection, whose, amount, *own, *which)

        granted = sums(g.customer_id, g.amount_microcredits)
        recent = sums(
            e.customer_id,
            e.amount_microcredits,
            e.id >= lowest_id(start),
            *(sa.not_(_lies_in(e.id, each)) for each in archived),
        )
        before = sums(
            h.customer_id,
            h.amount_microcredits,
            sa.or_(h.hour < start, *(_hours_of(h.hour, each) for each in archived)),
        )
        rolled = sums(h.customer_id, h.amount_microcredits)
        fenced = sums(f.customer_id, f.granted_microcredits)
        balances = []
        everybody = sa.select(customers.c.id).order_by("id")
        chosen = everybody if only is None else everybody.where(customers.c.id == only)
        for customer in connection.execute(chosen).scalars():
            account = self._quota.account(customer)
            balances.append(
                CustomerBalances(
                    customer=customer,
                    granted=granted.get(customer, 0),
                    fenced=fenced.get(customer, 0),
                    logged=before.get(customer, 0) + recent.get(customer, 0),
                    rolled_up=rolled.get(customer, 0),
                    account_granted=account.granted_microcredits if account else None,
                    account_settled=account.settled_microcredits if account else None,
                    account_held=account.held_microcredits if account else None,
                    open_holds=held.get(customer, 0),
                )
            )
        return balances

    def _buckets(self, connection: sa.Connection, since: datetime) -> tuple[Buckets, Buckets]:
        start = hour_floor(since)
        logged: Buckets = {
            (row.customer_id, format_instant(from_ms(row.hour * HOUR_MS)), row.sku_id, row.outcome,
             row.reason): (row.events, *map(int, row[6:]))
            for row in connection.execute(_SUMS_OF_THE_LOG, {"lowest": lowest_id(start)})
        }  # fmt: skip
        h = usage_hourly.c
        rolled: Buckets = {
            (row.customer_id, format_instant(row.hour), row.sku_id, row.outcome, row.reason): (
                row.events, int(row.quantity), int(row.amount_microcredits),
                int(row.shortfall_microcredits), int(row.cost_micros),
            )
            for row in connection.execute(sa.select(usage_hourly).where(h.hour >= start))
        }  # fmt: skip
        archived = _archived(connection)
        return _without_archived(archived, logged), _without_archived(archived, rolled)

    def _duplicates(self, connection: sa.Connection, since: datetime) -> list[Discrepancy]:
        e = usage_events.c
        rows = connection.execute(
            sa.select(e.customer_id, e.task_id, e.line, sa.func.count().label("times"))
            .where(e.id >= lowest_id(since))
            .group_by(e.customer_id, e.task_id, e.line)
            .having(sa.func.count() > 1)
        )
        return [
            Discrepancy(
                kind=DiscrepancyKind.DUPLICATE,
                customer=row.customer_id,
                expected=1,
                found=row.times,
                detail=f"task {row.task_id}, line {row.line}",
            )
            for row in rows
        ]

    def _denied_but_ran(self, connection: sa.Connection, since: datetime) -> list[Discrepancy]:
        e = usage_events.c
        rows = connection.execute(
            sa.select(e.customer_id, e.task_id, e.quantity, e.amount_microcredits, e.cost_micros)
            .where(e.id >= lowest_id(since), e.outcome == "denied")
            .where((e.quantity > 0) | (e.amount_microcredits > 0) | (e.cost_micros > 0))
        )
        return [
            Discrepancy(
                kind=DiscrepancyKind.DENIED_BUT_RAN,
                customer=row.customer_id,
                expected=0,
                found=row.quantity or row.amount_microcredits or row.cost_micros,
                detail=f"task {row.task_id}",
            )
            for row in rows
        ]

    def _overdue(self, holds: list[HoldView]) -> list[Discrepancy]:
        latest = to_ms(self._clock.now() - SWEEP_GRACE)
        return [
            Discrepancy(
                kind=DiscrepancyKind.OVERDUE_HOLD,
                customer=hold.customer,
                expected=0,
                found=hold.held_microcredits,
                detail=f"task {hold.task_id}, "
                f"expired {format_instant(from_ms(hold.expires_at_ms))}",
            )
            for hold in holds
            if hold.expires_at_ms < latest
        ]


def _sums(
    connection: sa.Connection,
    customer: sa.Column[str],
    amount: sa.Column[int],
    *which: sa.ColumnElement[bool],
) -> dict[str, int]:
    query = sa.select(customer, sa.func.sum(amount)).where(*which).group_by(customer)
    return {name: int(total) for name, total in connection.execute(query)}


def _archived(connection: sa.Connection) -> list[Period]:
    """Read the UTC months whose lines are in files."""
    return [each.month for each in archives(connection) if each.in_files]


def _lies_in(identifier: sa.Column[UUID], month: Period) -> sa.ColumnElement[bool]:
    return sa.and_(identifier >= lowest_id(month.start), identifier < lowest_id(month.end))


def _hours_of(hour: sa.Column[datetime], month: Period) -> sa.ColumnElement[bool]:
    return sa.and_(hour >= month.start, hour < month.end)


def _without_archived(archived: list[Period], buckets: Buckets) -> Buckets:
    """Leave out the buckets of archived months."""
    if not archived:
        return buckets
    spans = [(format_instant(each.start), format_instant(each.end)) for each in archived]
    return {
        bucket: figures
        for bucket, figures in buckets.items()
        if not any(start <= bucket[1] < end for start, end in spans)
    }
