"""Grants in PostgreSQL: credits given, each once.

The customer's fence row is locked first, so grants of one customer follow one another and
``quota_fences.granted_microcredits`` is the sum of the grants at every commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from billing.core.credits import MAX_MICROCREDITS, check_microcredits, format_credits
from billing.core.customer import check_text, unknown_customer
from billing.core.errors import AlreadyExists, InvalidValue
from billing.postgres.schema import customers, grants, quota_fences


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Credits given to a customer.

    ``reference`` is the giver's own name for it (an order, a payment): one reference, one grant.
    ``created_at`` is when PostgreSQL recorded it; the credits count from then on.
    """

    id: int
    customer: str
    amount_microcredits: int
    reference: str
    note: str
    created_at: datetime


class GrantStore:
    """The table of grants. Each method is one transaction.

    Args:
        engine: PostgreSQL, as the owner role.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def grant(
        self, customer: str, amount_microcredits: int, reference: str, note: str = ""
    ) -> Grant:
        """Give credits; repeating a reference gives nothing more.

        Args:
            customer: The customer's id.
            amount_microcredits: One to 2^53; the customer's grants together at most 2^53.
            reference: The caller's name for this grant.
            note: For people; a repeat with another note keeps the first one.

        Returns:
            The grant of that reference, new or not.

        Raises:
            NotFound: There is no such customer.
            InvalidValue: The amount or a text cannot be right, or the total would pass 2^53.
            AlreadyExists: The reference gave another amount.
        """
        with self._engine.begin() as connection:
            return grant_on(connection, customer, amount_microcredits, reference, note)

    def find(self, customer: str, reference: str) -> Grant | None:
        """Find the grant of that reference, if there is one."""
        check_text(reference, field="reference")
        with self._engine.connect() as connection:
            return _find(connection, customer, reference)

    def grants(self, customer: str) -> list[Grant]:
        """List every grant of a customer, oldest first.

        Raises:
            NotFound: There is no such customer.
        """
        query = sa.select(grants).where(grants.c.customer_id == customer).order_by(grants.c.id)
        with self._engine.connect() as connection:
            _check_customer(connection, customer)
            return [_grant(row) for row in connection.execute(query).mappings()]

    def granted(self, customer: str) -> int:
        """Add up a customer's grants, in microcredits.

        Raises:
            NotFound: There is no such customer.
        """
        total = sa.select(sa.func.coalesce(sa.func.sum(grants.c.amount_microcredits), 0))
        with self._engine.connect() as connection:
            _check_customer(connection, customer)
            return int(connection.scalar(total.where(grants.c.customer_id == customer)) or 0)


def grant_on(
    connection: sa.Connection,
    customer: str,
    amount_microcredits: int,
    reference: str,
    note: str = "",
) -> Grant:
    """Give credits as ``GrantStore.grant`` does, in an open transaction that then holds the fence.

    Where it raises, nothing was written, and the transaction can go on.
    """
    if check_microcredits(amount_microcredits, field="amount_microcredits") == 0:
        raise InvalidValue("amount_microcredits", 0, "give at least one microcredit")
    check_text(reference, field="reference")
    check_text(note, field="note", empty=True)
    granted = _lock_granted(connection, customer)
    existing = _find(connection, customer, reference)
    if existing is not None:
        return _same(existing, amount_microcredits)
    total = granted + amount_microcredits
    if total > MAX_MICROCREDITS:
        raise InvalidValue(
            "amount_microcredits",
            amount_microcredits,
            f"with the {granted} microcredits granted so far this passes 2^53; "
            f"grant at most {MAX_MICROCREDITS - granted}",
        )
    return _insert(connection, customer, amount_microcredits, reference, note, total)


def _check_customer(connection: sa.Connection, customer: str) -> None:
    query = sa.select(customers.c.id).where(customers.c.id == customer)
    # PostgreSQL cannot even compare with a NUL; no customer has one.
    if "\x00" in customer or connection.scalar(query) is None:
        raise unknown_customer(customer)


def _lock_granted(connection: sa.Connection, customer: str) -> int:
    _check_customer(connection, customer)
    query = (
        sa.select(quota_fences.c.granted_microcredits)
        .where(quota_fences.c.customer_id == customer)
        .with_for_update()
    )
    return int(connection.execute(query).scalar_one())


def _find(connection: sa.Connection, customer: str, reference: str) -> Grant | None:
    query = sa.select(grants).where(
        grants.c.customer_id == customer, grants.c.reference == reference
    )
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _grant(row)


def _same(existing: Grant, amount_microcredits: int) -> Grant:
    if existing.amount_microcredits == amount_microcredits:
        return existing
    raise AlreadyExists(
        f"reference={existing.reference!r} gave {existing.customer!r} "
        f"{format_credits(existing.amount_microcredits)} credits, "
        f"not {format_credits(amount_microcredits)}: use another reference for another grant"
    )


def _insert(
    connection: sa.Connection,
    customer: str,
    amount_microcredits: int,
    reference: str,
    note: str,
    total: int,
) -> Grant:
    new = (
        sa.insert(grants)
        .values(
            customer_id=customer,
            amount_microcredits=amount_microcredits,
            reference=reference,
            note=note,
        )
        .returning(*grants.c)
    )
    row = connection.execute(new).mappings().one()
    connection.execute(
        sa.update(quota_fences)
        .where(quota_fences.c.customer_id == customer)
        .values(granted_microcredits=total, version=quota_fences.c.version + 1)
    )
    return _grant(row)


def _grant(row: sa.RowMapping) -> Grant:
    return Grant(
        id=row["id"],
        customer=row["customer_id"],
        amount_microcredits=row["amount_microcredits"],
        reference=row["reference"],
        note=row["note"],
        created_at=row["created_at"],
    )
