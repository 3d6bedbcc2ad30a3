"""Customers and their budgets in PostgreSQL.

Every change of what the quota store must know bumps ``quota_fences.version`` in the same
transaction. The fence row is locked first by everybody (here, grants, the log's writer and the
rebuild), so that two of them wait for each other and never deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from billing.core.customer import (
    EVERY_SKU,
    Budget,
    Customer,
    CustomerStatus,
    check_customer_id,
    check_limit,
    check_status,
    check_text,
    unknown_customer,
)
from billing.core.errors import AlreadyExists, NotFound
from billing.core.periods import zone
from billing.postgres.schema import budgets, customers, quota_fences, skus


class CustomerStore:
    """The table of customers and their budgets. Each method is one transaction.

    Args:
        engine: PostgreSQL, as the owner role.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(
        self,
        customer_id: str,
        name: str,
        time_zone: str = "UTC",
        stripe_customer_id: str | None = None,
    ) -> Customer:
        """Add a customer; adding the same again changes nothing.

        Args:
            customer_id: The id in every event and key, for good.
            name: For people.
            time_zone: IANA name of where the customer's months begin.
            stripe_customer_id: The customer's id at Stripe, if any. Where it is not given it is not
                compared either: customers are linked later, too (``link_stripe``).

        Raises:
            InvalidValue: One of them cannot be right.
            AlreadyExists: The id is taken with other content, or the Stripe customer is another's.
        """
        values = {
            "id": check_customer_id(customer_id),
            "name": check_text(name, field="name"),
            "time_zone": zone(time_zone).key,
            "stripe_customer_id": stripe_customer_id
            and check_text(stripe_customer_id, field="stripe_customer_id"),
        }
        new = insert(customers).values(values).on_conflict_do_nothing(index_elements=["id"])
        fence = insert(quota_fences).values(customer_id=customer_id).on_conflict_do_nothing()
        try:
            with self._engine.begin() as connection:
                connection.execute(new)
                connection.execute(fence)
                customer = _read(connection, customer_id)
        except sa.exc.IntegrityError as error:
            if "stripe_customer_id" not in str(error.orig):
                raise
            raise _linked_to_another(stripe_customer_id) from None
        for field, value in values.items():
            if value is not None and getattr(customer, field) != value:
                raise AlreadyExists(
                    f"customer {customer_id!r} is there with {field}={getattr(customer, field)!r}, "
                    f"not {value!r}: use another id, or the same content"
                )
        return customer

    def get(self, customer_id: str) -> Customer:
        """Read the customer of that id.

        Raises:
            NotFound: There is none.
        """
        with self._engine.connect() as connection:
            return _read(connection, customer_id)

    def list(self) -> list[Customer]:
        """List every customer, by id."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(customers).order_by(customers.c.id)).mappings()
            return [_customer(row) for row in rows]

    def set_status(self, customer_id: str, status: str) -> Customer:
        """Suspend or resume; the version of the account grows only if that changes something.

        Raises:
            NotFound: There is no such customer.
            InvalidValue: There is no such status.
        """
        wanted = check_status(status)
        change = (
            sa.update(customers)
            .where(customers.c.id == customer_id, customers.c.status != wanted.value)
            .values(status=wanted.value)
        )
        with self._engine.begin() as connection:
            _lock_fence(connection, customer_id)
            if connection.execute(change).rowcount:
                _bump_version(connection, customer_id)
            return _read(connection, customer_id)

    def link_stripe(
        self, customer_id: str, stripe_customer_id: str | None, *, replace: bool = True
    ) -> Customer:
        """Link a customer to one at Stripe, or with None to nobody; linking again changes nothing.

        Args:
            customer_id: The customer's id.
            stripe_customer_id: The id at Stripe. Forgets that an earlier one was deleted.
            replace: False leaves a customer as it is who is linked, or was deleted at Stripe.

        Returns:
            The customer as it stands, which with ``replace=False`` may have another one linked.

        Raises:
            NotFound: There is no such customer.
            InvalidValue: No id can look like that.
            AlreadyExists: The Stripe customer is another customer's.
        """
        change = sa.update(customers).where(customers.c.id == customer_id)
        if stripe_customer_id is None:
            change = change.values(stripe_customer_id=None)
        else:
            check_text(stripe_customer_id, field="stripe_customer_id")
            change = change.values(stripe_customer_id=stripe_customer_id, stripe_deleted_at=None)
        if not replace:
            change = change.where(
                customers.c.stripe_customer_id.is_(None), customers.c.stripe_deleted_at.is_(None)
            )
        try:
            with self._engine.begin() as connection:
                _read(connection, customer_id)
                connection.execute(change)
                return _read(connection, customer_id)
        except sa.exc.IntegrityError as error:
            if "stripe_customer_id" not in str(error.orig):
                raise
            raise _linked_to_another(stripe_customer_id) from None

    def set_budget(
        self, customer_id: str, sku: str, limit_microcredits: int | None
    ) -> Budget | None:
        """Set a monthly ceiling, or with None take it away.

        Args:
            customer_id: The customer's id.
            sku: One SKU, or ``*`` for all of them together.
            limit_microcredits: Zero to 2^53; None for no ceiling.

        Returns:
            The budget as it stands, None if there is none.

        Raises:
            NotFound: There is no such customer or SKU.
            InvalidValue: The limit is not an integer from 0 to 2^53.
        """
        if limit_microcredits is not None:
            check_limit(limit_microcredits)
        with self._engine.begin() as connection:
            _lock_fence(connection, customer_id)
            _check_sku(connection, sku)
            if _write_budget(connection, customer_id, sku, limit_microcredits):
                _bump_version(connection, customer_id)
        if limit_microcredits is None:
            return None
        return Budget(customer=customer_id, sku=sku, limit_microcredits=limit_microcredits)

    def budgets(self, customer_id: str) -> Sequence[Budget]:
        """List the customer's budgets, by SKU (``*`` first).

        Raises:
            NotFound: There is no such customer.
        """
        query = (
            sa.select(budgets.c.sku_id, budgets.c.limit_microcredits)
            .where(budgets.c.customer_id == customer_id)
            .order_by(budgets.c.sku_id != EVERY_SKU, budgets.c.sku_id)
        )
        with self._engine.connect() as connection:
            _read(connection, customer_id)
            return [
                Budget(
                    customer=customer_id, sku=row.sku_id, limit_microcredits=row.limit_microcredits
                )
                for row in connection.execute(query)
            ]


def _linked_to_another(stripe_customer_id: str | None) -> AlreadyExists:
    return AlreadyExists(
        f"stripe_customer_id={stripe_customer_id!r} belongs to another customer: "
        "see billing customers list --json"
    )


def _read(connection: sa.Connection, customer_id: str) -> Customer:
    query = sa.select(customers).where(customers.c.id == customer_id)
    # PostgreSQL cannot even compare with a NUL; no customer has one.
    row = None if "\x00" in customer_id else connection.execute(query).mappings().one_or_none()
    if row is None:
        raise unknown_customer(customer_id)
    return _customer(row)


def _customer(row: sa.RowMapping) -> Customer:
    return Customer(**{**row, "status": CustomerStatus(row["status"])})


def _lock_fence(connection: sa.Connection, customer_id: str) -> None:
    _read(connection, customer_id)
    connection.execute(
        sa.select(quota_fences.c.version)
        .where(quota_fences.c.customer_id == customer_id)
        .with_for_update()
    )


def _bump_version(connection: sa.Connection, customer_id: str) -> None:
    connection.execute(
        sa.update(quota_fences)
        .where(quota_fences.c.customer_id == customer_id)
        .values(version=quota_fences.c.version + 1)
    )


def _check_sku(connection: sa.Connection, sku: str) -> None:
    if sku == EVERY_SKU:
        return
    found = "\x00" not in sku and connection.scalar(sa.select(skus.c.id).where(skus.c.id == sku))
    if not found:
        raise NotFound("SKU", sku, "see billing skus list, or use '*' for all SKUs together")


def _write_budget(
    connection: sa.Connection, customer_id: str, sku: str, limit_microcredits: int | None
) -> bool:
    """Write the budget; returns whether anything changed."""
    if limit_microcredits is None:
        gone = sa.delete(budgets).where(
            budgets.c.customer_id == customer_id, budgets.c.sku_id == sku
        )
        return connection.execute(gone).rowcount > 0
    new = insert(budgets).values(
        customer_id=customer_id, sku_id=sku, limit_microcredits=limit_microcredits
    )
    upsert = new.on_conflict_do_update(
        index_elements=["customer_id", "sku_id"],
        set_={"limit_microcredits": new.excluded.limit_microcredits},
        where=budgets.c.limit_microcredits != new.excluded.limit_microcredits,
    )
    return connection.scalar(upsert.returning(budgets.c.sku_id)) is not None
