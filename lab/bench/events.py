"""Usage events as a platform's tasks make them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from billing.core.credits import parse_credits
from billing.core.event_ids import event_id
from billing.core.usage_event import Outcome, UsageEvent, usage_line

if TYPE_CHECKING:
    # The processes that only make events or ask for credits start sooner without all of it.
    from billing.container import Container

SKU: Final = "bench-page"
LEASED_SKU: Final = "bench-leased"
PRICE_MICROCREDITS: Final = 1_000_000
_GRANT: Final = parse_credits("100000000")


def make_event(customer: str, metered_at: datetime, task_id: str | None = None) -> UsageEvent:
    """One page captured for one credit, with every field that such an event has."""
    task_id = task_id or str(uuid.uuid4())
    line = usage_line(SKU)
    return UsageEvent(
        id=event_id(task_id, line, metered_at),
        customer=customer,
        sku=SKU,
        line=line,
        outcome=Outcome.SUCCEEDED,
        quantity=1,
        amount_microcredits=PRICE_MICROCREDITS,
        held_microcredits=PRICE_MICROCREDITS,
        cost_micros=120,
        subject=f"https://example.com/pages/{task_id}",
        dimensions={"status": "200", "kind": "html"},
        task_id=task_id,
        task_name="benchmarks.capture",
        root_id=task_id,
        worker="bench@localhost",
        started_at=metered_at,
        finished_at=metered_at + timedelta(milliseconds=250),
    )


def add_customers(container: Container, suite: str, count: int) -> list[str]:
    """Add the SKUs and ``count`` customers with more credits than they will spend."""
    for sku, admission in ((SKU, "exact"), (LEASED_SKU, "leased")):
        container.catalog.add(
            sku,
            unit="page",
            unit_price_microcredits=PRICE_MICROCREDITS,
            effective_from=container.clock.now(),
            admission=admission,
        )
    names = [f"{suite}-{number}" for number in range(count)]
    for name in names:
        container.customers.add(name, name)
        container.grants.grant(name, _GRANT, "benchmark")
    return names


def spread_over(customers: Sequence[str], count: int, now: datetime) -> list[UsageEvent]:
    """``count`` new events of all customers in turn, over the two hours before ``now``."""
    step = timedelta(hours=2) / max(count, 1)
    return [
        make_event(customers[number % len(customers)], now - number * step)
        for number in range(count)
    ]
