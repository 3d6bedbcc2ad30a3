"""What is sold and to whom during a run: data, and putting it into PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from billing.container import Container
from billing.core.credits import MICROCREDITS_PER_CREDIT
from billing.core.sku import AdmissionPolicy, DenialPolicy, FailurePolicy, Pricing

LONG_AGO: Final = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkuPlan:
    """One SKU; the price is in microcredits."""

    id: str
    price: int
    measured: bool = False
    hold: int = 1
    failure: FailurePolicy = FailurePolicy.RELEASE
    denial: DenialPolicy = DenialPolicy.FAIL
    admission: AdmissionPolicy = AdmissionPolicy.EXACT


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerPlan:
    """One customer; the budget is of a month and over all SKUs."""

    id: str
    credits: int
    zone: str = "UTC"
    budget: int | None = None


SKUS: Final = (
    SkuPlan(id="page", price=MICROCREDITS_PER_CREDIT),
    SkuPlan(id="pages", price=500_000, measured=True, hold=5),
    SkuPlan(id="extra", price=30_001, measured=True),
    SkuPlan(id="later", price=MICROCREDITS_PER_CREDIT, denial=DenialPolicy.DEFER),
    SkuPlan(id="tried", price=250_000, measured=True, hold=4, failure=FailurePolicy.CHARGE),
)
_TWINS: Final = ("page", "pages", "tried")
LEASED_PREFIX: Final = "leased-"
"""Begins the id of a SKU that is another one's twin, but leased."""
LEASED: Final = tuple(
    replace(sku, id=LEASED_PREFIX + sku.id, admission=AdmissionPolicy.LEASED)
    for sku in SKUS
    if sku.id in _TWINS
)
PRICES: Final = {sku.id: sku.price for sku in (*SKUS, *LEASED)}
FIXED: Final = frozenset(sku.id for sku in (*SKUS, *LEASED) if not sku.measured)

_MUCH: Final = 1_000_000
PROBE: Final = "probe"
LESSEES: Final = ("lessee-1", "lessee-2", "lessee-tight", "lessee-budgeted")
"""Who the leased SKUs are sold to: few, so that each process has several tasks of one at a time."""
TIGHT: Final = ("tight-1", "tight-2", "lessee-tight")
"""They run out of credits under the load, and get a few more now and then."""
ZONED: Final = ("berlin", "chatham", "havana")
CUSTOMERS: Final = (
    *(CustomerPlan(id=f"rich-{n}", credits=_MUCH) for n in range(4)),
    *(CustomerPlan(id=name, credits=40) for name in TIGHT),
    CustomerPlan(id="lessee-1", credits=_MUCH),
    CustomerPlan(id="lessee-2", credits=_MUCH),
    CustomerPlan(id="lessee-budgeted", credits=_MUCH, budget=400),
    CustomerPlan(id="budgeted", credits=_MUCH, budget=60),
    CustomerPlan(id="berlin", credits=_MUCH, zone="Europe/Berlin"),
    CustomerPlan(id="chatham", credits=_MUCH, zone="Pacific/Chatham"),
    CustomerPlan(id="havana", credits=_MUCH, zone="America/Havana"),
    CustomerPlan(id=PROBE, credits=_MUCH),
)


def put(container: Container) -> None:
    """Add all of it, as an operator would."""
    for sku in (*SKUS, *LEASED):
        container.catalog.add(
            sku.id,
            unit="page",
            unit_price_microcredits=sku.price,
            effective_from=LONG_AGO,
            pricing=Pricing.MEASURED if sku.measured else Pricing.FIXED,
            hold_quantity=sku.hold,
            failure_policy=sku.failure,
            denial_policy=sku.denial,
            admission=sku.admission,
        )
    for customer in CUSTOMERS:
        container.customers.add(customer.id, customer.id, time_zone=customer.zone)
        container.grants.grant(customer.id, customer.credits * MICROCREDITS_PER_CREDIT, "chaos")
        if customer.budget is not None:
            limit = customer.budget * MICROCREDITS_PER_CREDIT
            container.customers.set_budget(customer.id, "*", limit)
