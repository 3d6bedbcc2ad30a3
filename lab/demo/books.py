"""What the two stores say at the end: per customer, and over all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from billing.container import Container
from billing.postgres.schema import dead_letters, usage_events, usage_hourly
from billing.usage_log.receipts import ReceiptLine

_RECEIPT_LINES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerBooks:
    """One customer: amounts in microcredits, cost in millionths of the currency.

    ``held`` is the sum of all holds that ended in a line of the log; ``outcomes`` counts log lines
    by outcome and reason; ``latest`` are the newest lines, newest first.
    """

    customer: str
    granted: int = 0
    held: int = 0
    held_now: int = 0
    logged: int = 0
    settled: int = 0
    available: int = 0
    cost_micros: int = 0
    outcomes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    latest: Sequence[ReceiptLine] = ()

    def lines(self, outcome: str) -> int:
        """How many log lines have that outcome."""
        return sum(count for (found, _), count in self.outcomes.items() if found == outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """Everything, when drained."""

    customers: Sequence[CustomerBooks]
    events: int
    duplicates: int
    rolled_up: int
    open_holds: int
    outbox: int
    dead: int

    @property
    def settled(self) -> int:
        """Over all customers, as Redis has it."""
        return sum(book.settled for book in self.customers)

    @property
    def logged(self) -> int:
        """Over all customers, as the log has it."""
        return sum(book.logged for book in self.customers)


def events_logged(container: Container) -> int:
    """How many lines the log has."""
    with container.engine.connect() as connection:
        return int(connection.scalar(sa.select(sa.func.count()).select_from(usage_events)) or 0)


def read_books(container: Container, customers: Sequence[str]) -> Books:
    """Read both stores."""
    e = usage_events.c
    with container.engine.connect() as connection:
        distinct = connection.scalar(
            sa.select(sa.func.count()).select_from(
                sa.select(e.task_id, e.line).distinct().subquery()
            )
        )
        rolled_up = connection.scalar(sa.select(sa.func.sum(usage_hourly.c.amount_microcredits)))
        dead = connection.scalar(sa.select(sa.func.count()).select_from(dead_letters))
        figures = _figures(connection)
    events = events_logged(container)
    return Books(
        customers=[_customer(container, customer, figures[customer]) for customer in customers],
        events=events,
        duplicates=events - int(distinct or 0),
        rolled_up=int(rolled_up or 0),
        open_holds=len(container.quota.open_holds()),
        outbox=container.outbox.length() + container.outbox.bad_length(),
        dead=int(dead or 0),
    )


@dataclass(slots=True)
class _Figures:
    held: int = 0
    logged: int = 0
    cost_micros: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)


def _figures(connection: sa.Connection) -> defaultdict[str, _Figures]:
    e = usage_events.c
    query = sa.select(
        e.customer_id,
        e.outcome,
        e.reason,
        sa.func.count(),
        sa.func.sum(e.held_microcredits),
        sa.func.sum(e.amount_microcredits),
        sa.func.sum(e.cost_micros),
    ).group_by(e.customer_id, e.outcome, e.reason)
    found: defaultdict[str, _Figures] = defaultdict(_Figures)
    for customer, outcome, reason, count, held, amount, cost in connection.execute(query):
        figures = found[customer]
        figures.outcomes[outcome, reason] += count
        figures.held += int(held)
        figures.logged += int(amount)
        figures.cost_micros += int(cost)
    return found


def _customer(container: Container, customer: str, figures: _Figures) -> CustomerBooks:
    account = container.quota.account(customer)
    return CustomerBooks(
        customer=customer,
        granted=container.grants.granted(customer),
        held=figures.held,
        held_now=account.held_microcredits if account else 0,
        logged=figures.logged,
        settled=account.settled_microcredits if account else 0,
        available=account.available_microcredits if account else 0,
        cost_micros=figures.cost_micros,
        outcomes=dict(figures.outcomes),
        latest=container.receipts.latest(customer, limit=_RECEIPT_LINES),
    )
