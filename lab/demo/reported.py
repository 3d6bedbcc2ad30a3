"""The last stage: usage is reported, read back, and compared with the log."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import sqlalchemy as sa

from billing.container import Container
from billing.postgres.schema import usage_events, usage_hourly
from billing.providers.report_value import CREDIT_DECIMALS
from billing.reporting.confirmations import ConfirmationStore
from lab.demo.errors import DemoError

_READ_WITHIN_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.5
_REPORTS: Final = sa.text(
    """
    SELECT customer_id, sku_id, hour, state, customer_ref, meter, held_microcredits
    FROM usage_reports WHERE latest AND state IN ('accepted', 'confirmed')
    """
)

Key = tuple[str, str]
"""Customer and SKU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """One customer's SKU as each side has it, in microcredits.

    ``reported`` was accepted; ``confirmed`` is what a fresh reading of the confirmed hours found.
    """

    customer: str
    sku: str
    logged: int
    rolled_up: int
    reported: int
    confirmed: int

    @property
    def agrees(self) -> bool:
        """Whether all four are one figure."""
        return self.logged == self.rolled_up == self.reported == self.confirmed


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What reporting came to: ``requests`` were sent for ``events`` log lines."""

    rows: tuple[Reported, ...]
    requests: int
    events: int


def report_usage(container: Container, say: Callable[[str], None]) -> Delivery:
    """Set the provider up, report everything up to this moment, read it back.

    Raises:
        DemoError: The provider refused, or what it accepted cannot be read back.
    """
    reporting = container.reporting
    say("one meter per SKU, one customer per customer")
    setup = reporting.setup()
    setup.meters(reporting.meters(), dry_run=False)
    for line in setup.customers(container.customers.list(), create=True, dry_run=False):
        say(f"{line.customer}: {line.state.value}")
    say("sending one figure per customer, SKU and hour")
    done = reporting.reporter().advance(up_to_now=True)
    if done.stopped or done.blocked:
        raise DemoError(f"usage could not be reported: {done.stopped or done.blocked}")
    _read_back(container, say)
    with container.engine.connect() as connection:
        events = connection.scalar(sa.select(sa.func.count()).select_from(usage_events)) or 0
    return Delivery(rows=_rows(container), requests=sum(done.became.values()), events=int(events))


def _read_back(container: Container, say: Callable[[str], None]) -> None:
    """Read until all is confirmed; a provider may take a while to count what it accepted."""
    reader = container.reporting.reader()
    confirmations = ConfirmationStore(container.engine)
    deadline = time.monotonic() + _READ_WITHIN_SECONDS
    while unconfirmed := _unconfirmed(container):
        say(f"reading back: {unconfirmed} to confirm")
        now = container.clock.now()
        # Its first reading would be in a quarter of an hour.
        confirmations.recheck(
            container.reporting.provider.name, None, now - timedelta(days=366), now, now=now
        )
        reader.confirm()
        if time.monotonic() > deadline:
            return
        if _unconfirmed(container):
            time.sleep(_PAUSE_SECONDS)


def _unconfirmed(container: Container) -> int:
    query = sa.text("SELECT count(*) FROM usage_reports WHERE latest AND state = 'accepted'")
    with container.engine.connect() as connection:
        return int(connection.scalar(query) or 0)


def _rows(container: Container) -> tuple[Reported, ...]:
    with container.engine.connect() as connection:
        logged = _sums(connection, usage_events)
        rolled_up = _sums(connection, usage_hourly)
        reports = connection.execute(_REPORTS).all()
    reported: defaultdict[Key, int] = defaultdict(int)
    for row in reports:
        reported[row.customer_id, row.sku_id] += int(row.held_microcredits)
    confirmed = _read_anew(container, [row for row in reports if row.state == "confirmed"])
    keys = sorted(logged.keys() | rolled_up.keys() | reported.keys())
    return tuple(
        Reported(
            customer=customer, sku=sku, logged=logged.get((customer, sku), 0),
            rolled_up=rolled_up.get((customer, sku), 0), reported=reported[customer, sku],
            confirmed=confirmed[customer, sku],
        )
        for customer, sku in keys
        if logged.get((customer, sku)) or rolled_up.get((customer, sku)) or reported[customer, sku]
    )  # fmt: skip


def _read_anew(
    container: Container, reports: list[sa.Row[tuple[object, ...]]]
) -> defaultdict[Key, int]:
    """What the provider has of the hours that are confirmed, asked once more."""
    decimals = {sku: one.decimals for sku, one in container.reporting.metered().items()}
    hours: defaultdict[tuple[str, str, str, str, datetime], set[datetime]] = defaultdict(set)
    for row in reports:
        hour = row.hour.astimezone(UTC)
        day = hour.replace(hour=0)
        hours[row.customer_id, row.sku_id, row.customer_ref, row.meter, day].add(hour)
    found: defaultdict[Key, int] = defaultdict(int)
    for (customer, sku, ref, meter, day), own in hours.items():
        read = container.reporting.provider.read_back(ref, meter, day.date())
        unit = 10 ** (CREDIT_DECIMALS - decimals[sku])
        found[customer, sku] += sum(read.get(hour, 0) for hour in own) * unit
    return found


def _sums(connection: sa.Connection, table: sa.Table) -> dict[Key, int]:
    c = table.c
    query = sa.select(c.customer_id, c.sku_id, sa.func.sum(c.amount_microcredits))
    rows = connection.execute(query.group_by(c.customer_id, c.sku_id))
    return {(customer, sku): int(total) for customer, sku, total in rows}
