"""Carries accounts from PostgreSQL, which is the truth, to the quota store, which is a fast opinion."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from billing import tables
from billing.core.clock import Clock, to_ms
from billing.core.errors import NotFound, QuotaUnavailable
from billing.quota.hold import LoadOutcome, Quota
from billing.quota.rebuild import current_state, rebuild


class AccountSync:
    """Loads and refreshes accounts in the quota store.

    Args:
        engine: PostgreSQL; its role may update ``quota_fences``.
        quota: The quota store.
        clock: The time, for the customer's month.
    """

    def __init__(self, engine: sa.Engine, quota: Quota, clock: Clock) -> None:
        self._engine = engine
        self._quota = quota
        self._clock = clock

    def rebuild(self, customer: str, *, force: bool = False) -> LoadOutcome:
        """Load the customer's account under a new epoch of its fence.

        When many tasks miss the same balance, the first to get the fence's lock rebuilds it and the
        others find it there; ``force`` rebuilds all the same, for a repair.

        Raises:
            NotFound: There is no such customer.
            QuotaUnavailable: PostgreSQL or the quota store did not answer.
        """
        try:
            with self._engine.begin() as connection:
                if not force and self._is_loaded(connection, customer):
                    return LoadOutcome.STALE
                state = rebuild(connection, customer, self._clock.now())
        except sa.exc.DBAPIError as error:
            raise QuotaUnavailable(
                f"the balance of {customer} is not in Redis and PostgreSQL did not give it: "
                f"{error.orig}"
            ) from error
        # After the commit: an epoch that Redis knew and PostgreSQL then forgot would be given twice.
        return self._quota.load(state)

    def sync(self, customer: str) -> LoadOutcome:
        """Tell the quota store what changed in PostgreSQL: grants, status, budgets, late usage.

        The figures are absolute, under a version: telling them twice adds nothing.

        Raises:
            NotFound: There is no such customer.
            QuotaUnavailable: The quota store did not answer.
        """
        with self._engine.connect() as connection:
            state = current_state(connection, customer, self._clock.now())
        view = self._quota.account(customer)
        if view is None or view.epoch != state.epoch:
            # Never loaded, or of another epoch: the next admission rebuilds it under the fence.
            return LoadOutcome.STALE
        return self._quota.load(state)

    def sync_many(self, customers: Iterable[str]) -> None:
        """``sync`` each; what Redis does not take, the next balance check brings."""
        for customer in customers:
            try:
                self.sync(customer)
            except (NotFound, QuotaUnavailable):
                continue

    def _is_loaded(self, connection: sa.Connection, customer: str) -> bool:
        fences = tables.quota_fences
        epoch = connection.execute(
            sa.select(fences.c.epoch).where(fences.c.customer_id == customer).with_for_update()
        ).scalar()
        view = self._quota.account(customer)
        return (
            epoch is not None
            and view is not None
            and view.epoch >= epoch
            and to_ms(self._clock.now()) < view.period_end_ms
        )
