"""Puts the plan's SKUs and customers into PostgreSQL, as an operator would with the CLI."""

from __future__ import annotations

from billing.container import Container
from billing.core.credits import parse_credits
from lab.demo.scenario import CustomerPlan, SkuPlan


def add_sku(container: Container, plan: SkuPlan) -> None:
    """Add a SKU with its price from this moment on."""
    container.catalog.add(
        plan.id,
        unit=plan.unit,
        unit_price_microcredits=parse_credits(plan.price),
        effective_from=container.clock.now(),
        pricing=plan.pricing,
        hold_quantity=plan.hold_quantity,
        failure_policy=plan.failure_policy,
        description=plan.description,
    )


def add_customer(container: Container, plan: CustomerPlan) -> None:
    """Add a customer, give the credits and set the budgets."""
    container.customers.add(plan.id, plan.name)
    container.grants.grant(plan.id, parse_credits(plan.credits), "demo-opening-balance")
    for sku, limit in plan.budgets.items():
        container.customers.set_budget(plan.id, sku, parse_credits(limit))
