"""Carries accounts from PostgreSQL, which is the truth, to the quota store, a fast opinion."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa

from billing.core.clock import Clock, to_ms
from billing.core.customer import check_customer_id, unknown_customer
from billing.core.errors import InvalidValue, NotFound, QuotaUnavailable
from billing.core.reservation import AccountView, LoadOutcome
from billing.postgres import schema as tables
from billing.postgres.locks import AdvisoryLockClass, lock_name
from billing.quota.account_state import current_state, rebuild
from billing.quota.port import QuotaStore

_LOCK_SECONDS: Final = 5
_TIMES_UNANSWERED: Final = 3
"""Customers in a row that could not be told, after which the server is taken to be away."""


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
        epoch, for the same reason, and is told the new month.

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
                    state = rebuild(connection, customer, now)
                elif to_ms(now) < view.period_end_ms:
                    return LoadOutcome.STALE
                else:
                    state = current_state(connection, customer, now)
            # After the commit: an epoch that Redis knew and PostgreSQL forgot would be given twice.
            outcome = self._quota.load(state)
        if outcome is LoadOutcome.LOADED:
            # What changed between commit and load was told to an account that was not there yet.
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
        """Tell the quota store what changed in PostgreSQL: grants, status, budgets, late usage.

        The figures are absolute, under a version: telling them twice adds nothing. An account of an
        older epoch is forgotten there (its rebuild was never told), so that the next admission
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
        fences = tables.quota_fences
        epoch = connection.execute(
            sa.select(fences.c.epoch).where(fences.c.customer_id == customer).with_for_update()
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
