"""What PostgreSQL knows of an account, read for the quota store.

``rebuild`` begins a new epoch: whatever the log gets from then on under another epoch is counted as
late. ``current_state`` only tells what changed within the epoch.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from billing.core.clock import to_ms
from billing.core.errors import NotFound, WeighbridgeError
from billing.core.event_ids import lowest_id
from billing.core.periods import Period, hour_ceiling, hour_floor, month_of
from billing.core.reservation import ALL_SKUS, SYNC_ONLY, AccountState
from billing.postgres.schema import budgets, customers, quota_fences, usage_events, usage_hourly


def rebuild(connection: sa.Connection, customer: str, now: datetime) -> AccountState:
    """Begin a new epoch of the customer's fence and read the account under it.

    Runs in the caller's transaction, which must be READ COMMITTED: the log's totals have to be read
    after the fence is locked, as of then. Send the state to the store only after the commit.

    Args:
        connection: In a transaction; its role may update ``quota_fences``.
        customer: Whose account.
        now: Decides the month.

    Raises:
        NotFound: There is no such customer.
        WeighbridgeError: The transaction is not READ COMMITTED.
    """
    fence = connection.execute(
        sa.update(quota_fences)
        .where(quota_fences.c.customer_id == customer)
        .values(
            epoch=quota_fences.c.epoch + 1,
            version=quota_fences.c.version + 1,
            late_microcredits=0,
            rebuilt_at=now,
        )
        # The update waits for the log writers' FOR SHARE, as SELECT … FOR UPDATE would.
        .returning(*quota_fences.c, sa.func.current_setting("transaction_isolation"))
    ).one_or_none()
    if fence is None:
        raise _no_customer(customer)
    if fence[-1] != "read committed":
        raise WeighbridgeError(
            f"rebuilding {customer} in a {fence[-1]} transaction would read the log as it was "
            "before the fence was locked; use READ COMMITTED"
        )
    return _state(connection, customer, fence, now, is_rebuilt=True)


def current_state(connection: sa.Connection, customer: str, now: datetime) -> AccountState:
    """The account within its present epoch, to be sent after something changed.

    ``settled_microcredits`` is ``SYNC_ONLY``: within an epoch the store counts what is settled by
    itself and is told only what came late. The log's total would be wrong to load: usage which the
    lost balance had counted under this epoch, and which reaches the log later, would never be late.

    Raises:
        NotFound: There is no such customer.
    """
    # The fence first: what is read after it is at least as new as its version says.
    fence = connection.execute(
        sa.select(quota_fences).where(quota_fences.c.customer_id == customer)
    ).one_or_none()
    if fence is None:
        raise _no_customer(customer)
    return _state(connection, customer, fence, now, is_rebuilt=False)


def _state(
    connection: sa.Connection, customer: str, fence: sa.Row[Any], now: datetime, *, is_rebuilt: bool
) -> AccountState:
    status, time_zone = connection.execute(
        sa.select(customers.c.status, customers.c.time_zone).where(customers.c.id == customer)
    ).one()
    limits = connection.execute(
        sa.select(budgets.c.sku_id, budgets.c.limit_microcredits).where(
            budgets.c.customer_id == customer
        )
    )
    period = month_of(now, time_zone)
    settled, had_usage = _logged(connection, customer)
    return AccountState(
        customer=customer,
        epoch=fence.epoch,
        version=fence.version,
        suspended=status == "suspended",
        granted_microcredits=fence.granted_microcredits,
        settled_microcredits=settled if is_rebuilt else SYNC_ONLY,
        late_microcredits=int(fence.late_microcredits),
        period_start_ms=to_ms(period.start),
        period_end_ms=to_ms(period.end),
        budgets={row.sku_id: row.limit_microcredits for row in limits},
        spent=_spent(connection, customer, period),
        had_usage=had_usage,
    )


def _logged(connection: sa.Connection, customer: str) -> tuple[int, bool]:
    """All that was ever charged, and whether anything was ever logged."""
    total, hours = connection.execute(
        sa.select(
            sa.func.coalesce(sa.func.sum(usage_hourly.c.amount_microcredits), 0), sa.func.count()
        ).where(usage_hourly.c.customer_id == customer)
    ).one()
    return int(total), hours > 0


def _spent(connection: sa.Connection, customer: str, period: Period) -> dict[str, int]:
    """What was charged in the period, by SKU and for ``ALL_SKUS``."""
    first, last = hour_ceiling(period.start), hour_floor(period.end)
    parts = [
        sa.select(usage_hourly.c.sku_id, usage_hourly.c.amount_microcredits).where(
            usage_hourly.c.customer_id == customer,
            usage_hourly.c.hour >= first,
            usage_hourly.c.hour < last,
        ),
        *_edges(customer, [(period.start, first), (last, period.end)]),
    ]
    charged = sa.union_all(*parts).subquery()
    amount = sa.func.sum(charged.c.amount_microcredits)
    rows = connection.execute(
        sa.select(charged.c.sku_id, amount).group_by(charged.c.sku_id).having(amount > 0)
    )
    spent = {sku: int(total) for sku, total in rows}
    return {**spent, ALL_SKUS: sum(spent.values())} if spent else {}


def _edges(
    customer: str, spans: list[tuple[datetime, datetime]]
) -> list[sa.Select[tuple[str, int]]]:
    """Parts of hours at a month's edges, in zones off by :30 or :45: from the log itself."""
    return [
        sa.select(usage_events.c.sku_id, usage_events.c.amount_microcredits).where(
            usage_events.c.customer_id == customer,
            usage_events.c.id >= lowest_id(start),
            usage_events.c.id < lowest_id(end),
        )
        for start, end in spans
        if start < end
    ]


def _no_customer(customer: str) -> NotFound:
    return NotFound("customer", customer, f"add it with: billing customers add {customer}")
