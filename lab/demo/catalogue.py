"""Puts the plan's SKUs and customers into PostgreSQL, as an operator would with the CLI."""

from __future__ import annotations

from billing.container import System
from billing.core.credits import parse_credits
from lab.demo.scenario import CustomerPlan, SkuPlan


def add_sku(system: System, plan: SkuPlan) -> None:
    """Add a SKU with its price from this moment on."""
    system.catalog.add(
        plan.id,
        unit=plan.unit,
        unit_price_microcredits=parse_credits(plan.price),
        effective_from=system.clock.now(),
        pricing=plan.pricing,
        hold_quantity=plan.hold_quantity,
        failure_policy=plan.failure_policy,
        description=plan.description,
    )


def add_customer(system: System, plan: CustomerPlan) -> None:
    """Add a customer, give the credits and set the budgets."""
    system.accounts.add(plan.id, plan.name)
    system.credit.grant(plan.id, parse_credits(plan.credits), "demo-opening-balance")
    for sku, limit in plan.budgets.items():
        system.accounts.set_budget(plan.id, sku, parse_credits(limit))
