"""Accounts on their way from PostgreSQL, the truth, to the quota store, a fast opinion.

``begin_epoch`` begins a new epoch of an account: what the log gets from then on under another epoch
is counted as late. ``current_state`` reads what changed within the epoch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from billing.core.clock import Clock, to_ms
from billing.core.customer import check_customer_id, unknown_customer
from billing.core.errors import InvalidValue, NotFound, QuotaUnavailable, WeighbridgeError
from billing.core.event_ids import lowest_id
from billing.core.periods import Period, hour_ceiling, hour_floor, month_of
from billing.core.reservation import (
    ALL_SKUS,
    SYNC_ONLY,
    AccountState,
    AccountView,
    LoadOutcome,
)
from billing.postgres.locks import AdvisoryLockClass, lock_name
from billing.postgres.schema import budgets, customers, quota_fences, usage_events, usage_hourly
from billing.quota.port import QuotaStore

_LOCK_SECONDS: Final = 5
_TIMES_UNANSWERED: Final = 3
"""Customers in a row that could not be synced, after which the server is taken to be away."""


class AccountLoader:
    """Loads and refreshes accounts in the quota store.

    Args:
        engine: PostgreSQL; its role may update ``quota_fences``.
        quota: The quota store.
        clock: The time, for the customer's month.
    """

    def __init__(self, engine: sa.Engine, quota: QuotaStore, clock: Clock) -> None:
        self._engine = engine
        self._quota = quota
        self._clock = clock
        self._threads = threading.Lock()

    def rebuild(self, customer: str, *, force: bool = False) -> LoadOutcome:
        """Load the customer's account under a new epoch of its fence.

        When many tasks miss the same balance, one rebuilds it and the others wait until it is
        loaded: a second rebuild would begin from the log, which has not got yet what the first
        epoch settled, and give those credits out again. An account whose month is over keeps its
        epoch, for the same reason, and gets the new month.

        Args:
            customer: Whose account.
            force: Begin a new epoch even where the account is there; for a repair.

        Raises:
            NotFound: There is no such customer.
            QuotaUnavailable: PostgreSQL or the quota store did not answer.
        """
        _check_name(customer)
        now = self._clock.now()
        with self._one_at_a_time(customer):
            with _answering(customer), self._engine.begin() as connection:
                view = None if force else self._loaded(connection, customer)
                if view is None:
                    state = begin_epoch(connection, customer, now)
                elif to_ms(now) < view.period_end_ms:
                    return LoadOutcome.STALE
                else:
                    state = current_state(connection, customer, now)
            # After the commit: an epoch that Redis knew and PostgreSQL forgot would be given twice.
            outcome = self._quota.load(state)
        if outcome is LoadOutcome.LOADED:
            # What changed between commit and load went to an account that was not there yet.
            self.sync_many([customer])
        return outcome

    @contextmanager
    def _one_at_a_time(self, customer: str) -> Iterator[None]:
        """From the look at the store until the load, past the commit in between.

        A transaction of its own holds an advisory lock (so it works through a pooler as well); a
        lock of this process keeps its threads from taking every connection of the pool to wait.
        """
        if not self._threads.acquire(timeout=_LOCK_SECONDS):
            raise QuotaUnavailable(
                f"the account of {customer} waits for others that are being loaded; PostgreSQL or "
                "the quota store is slow"
            )
        try:
            with _answering(customer), self._engine.begin() as guard:
                guard.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'"))
                lock_name(guard, AdvisoryLockClass.ACCOUNT_LOADING, customer)
                yield
        finally:
            self._threads.release()

    def sync(self, customer: str) -> LoadOutcome:
        """Send the quota store what changed in PostgreSQL: grants, status, budgets, late usage.

        The figures are absolute, under a version: sending them twice adds nothing. An account of an
        older epoch is forgotten there (its rebuild never arrived), so that the next admission
        rebuilds it; nothing is loaded where there is none.

        Raises:
            NotFound: There is no such customer.
            QuotaUnavailable: PostgreSQL or the quota store did not answer.
        """
        _check_name(customer)
        with _answering(customer), self._engine.connect() as connection:
            state = current_state(connection, customer, self._clock.now())
        return self._quota.load(state)

    def sync_many(self, customers: Iterable[str]) -> None:
        """``sync`` each; what Redis does not take, the next balance check brings.

        With a server away the rest is not even tried: the consumer waits for this, and a time-out
        for each of a batch's customers would hold up the log for minutes.
        """
        unanswered = 0
        for customer in customers:
            try:
                self.sync(customer)
            except NotFound:
                continue
            except QuotaUnavailable:
                unanswered += 1
                if unanswered == _TIMES_UNANSWERED:
                    return
            else:
                unanswered = 0

    def _loaded(self, connection: sa.Connection, customer: str) -> AccountView | None:
        """The account, if it is of the fence's epoch; the fence stays locked until the commit."""
        epoch = connection.execute(
            sa.select(quota_fences.c.epoch)
            .where(quota_fences.c.customer_id == customer)
            .with_for_update()
        ).scalar()
        view = self._quota.account(customer)
        return view if epoch is not None and view is not None and view.epoch >= epoch else None


def _check_name(customer: str) -> None:
    try:
        check_customer_id(customer)
    except InvalidValue:
        # Nobody can be called so, and PostgreSQL cannot even be asked for some such names.
        raise unknown_customer(customer) from None


@contextmanager
def _answering(customer: str) -> Iterator[None]:
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        raise QuotaUnavailable(
            f"the account of {customer} was asked of PostgreSQL, which did not give it: {error}"
        ) from error


def begin_epoch(connection: sa.Connection, customer: str, now: datetime) -> AccountState:
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
    itself and is sent only what came late. The log's total would be wrong to load: usage which the
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
