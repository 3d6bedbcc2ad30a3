"""What ``billing stripe setup`` prints: meters with the price of a unit, customers, next steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from billing.cli.output import Column, over, print_table, say
from billing.reporting.setup import (
    CustomerLine,
    CustomerState,
    MeterLine,
    MeterState,
    differing,
)
from billing.reporting.unit_price import MAX_PRICE_DECIMALS, UnitPrice

_SHOWN_CUSTOMERS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A set-up that was run. ``prices`` are by SKU; ``provider`` is who gets usage now."""

    dry_run: bool
    create: bool
    live: bool
    environment: str
    base: str
    provider: str
    has_webhook_secret: bool
    credit_value: str
    currency: str
    meters: Sequence[MeterLine]
    prices: Mapping[str, UnitPrice]
    customers: Sequence[CustomerLine]


def document(report: Report) -> dict[str, object]:
    """A set-up for machines."""
    return {
        "dry_run": report.dry_run,
        "live": report.live,
        "environment": report.environment,
        "provider": report.provider,
        "ready": not differing(report.meters),
        "meters": [
            {
                "sku": line.meter.sku,
                "meter": line.meter.name,
                "meter_id": line.provider_id or None,
                "state": line.state.value,
                "differences": list(line.differences),
                "meter_decimals": report.prices[line.meter.sku].decimals,
                "unit_amount_decimal": report.prices[line.meter.sku].amount,
                "currency": report.prices[line.meter.sku].currency,
                "price_fits": report.prices[line.meter.sku].fits,
            }
            for line in report.meters
        ],
        "customers": [
            {
                "customer": line.customer,
                "state": line.state.value,
                "stripe_customer_id": line.customer_ref or None,
                "detail": line.detail,
            }
            for line in report.customers
        ],
    }


def print_report(report: Report) -> None:
    """A set-up for people."""
    where = f" at {report.base}" if report.base else ""
    mode = "LIVE mode: real customers are billed" if report.live else "test mode"
    say(f"Stripe{where}, {mode}, environment {report.environment}")
    if report.dry_run:
        say("dry run: nothing was changed, at Stripe or here", style="yellow")
    _print_meters(report)
    if differing(report.meters):
        _print_differences(report)
        return
    _print_customers(report)
    _print_next_steps(report)


def _print_meters(report: Report) -> None:
    print_table(
        "Meters",
        [
            Column("SKU and meter"),
            Column("state", whole=True),
            Column("one unit is", whole=True),
            Column("unit_amount_decimal", numeric=True),
            Column("in", whole=True),
        ],
        [
            (
                over(line.meter.sku, line.meter.name),
                _state(line, report),
                unit_name(report.prices[line.meter.sku].decimals),
                _amount(report.prices[line.meter.sku]),
                report.prices[line.meter.sku].currency,
            )
            for line in report.meters
        ],
        empty="none, for there is no SKU; add one with: billing skus add ID --price 1",
    )
    for price in {one.decimals: one for one in report.prices.values() if not one.fits}.values():
        say(
            f"a price has at most {MAX_PRICE_DECIMALS} decimals: give a new SKU at most "
            f"--meter-decimals {price.most_decimals}, or raise WEIGHBRIDGE_CREDIT_VALUE",
            style="yellow",
        )


def _state(line: MeterLine, report: Report) -> str:
    if line.state is MeterState.MISSING:
        return "would be created" if report.dry_run else "not created"
    return line.state.value


def unit_name(decimals: int) -> str:
    """What a meter of so many decimals counts, in a word."""
    names = {0: "1 credit", 6: "1 microcredit"}
    return names.get(decimals, f"{'0.' + '1'.rjust(decimals, '0')} credit")


def _amount(price: UnitPrice) -> str:
    return price.amount if price.fits else "too fine"


def _print_differences(report: Report) -> None:
    for line in differing(report.meters):
        say(f"{line.meter.name} ({line.provider_id}): {'; '.join(line.differences)}", style="red")
    say(
        "Such a meter would bill wrongly, so nothing is sent to it, and this set-up has made "
        "nothing. A meter cannot be changed once it is there."
    )
    say(
        "  remedy: where only its status differs, reactivate it at Stripe. Else deactivate it, and "
        "before anything of the SKU was reported give it another scale (billing skus "
        "meter-decimals) or this installation another name (WEIGHBRIDGE_ENVIRONMENT): a new meter "
        "is made for it"
    )


def _print_customers(report: Report) -> None:
    news = [one for one in report.customers if one.state is not CustomerState.LINKED]
    print_table(
        "Customers",
        [
            Column("customer"),
            Column("state", whole=True),
            Column("at Stripe"),
            Column("detail"),
        ],
        [
            (one.customer, _customer_state(one, report), one.customer_ref, _customer_detail(one))
            for one in news[:_SHOWN_CUSTOMERS]
        ],
        empty="all linked before" if report.customers else "none",
    )
    if len(news) > _SHOWN_CUSTOMERS:
        say(f"the first {_SHOWN_CUSTOMERS} of {len(news):,}; all of them with --json")
    counts = Counter(_customer_state(one, report) for one in report.customers)
    if counts:
        say("customers: " + ", ".join(f"{n:,} {state}" for state, n in counts.items()))
    if counts[CustomerState.MISSING.value]:
        say("usage of who is missing adds up in the log and is parked until they are linked")


def _customer_state(line: CustomerLine, report: Report) -> str:
    would = {CustomerState.FOUND: "would be linked", CustomerState.MISSING: "would be created"}
    if report.dry_run and (line.state is CustomerState.FOUND or report.create):
        return would.get(line.state, line.state.value)
    return line.state.value


def _customer_detail(line: CustomerLine) -> str:
    if line.state is CustomerState.DELETED:
        return f"not linked by itself: billing customers link {line.customer} cus_..."
    return line.detail


def _print_next_steps(report: Report) -> None:
    say("Next steps (docs/stripe.md has them all)", style="bold")
    price = (
        "In Stripe, a metered price per meter with the unit_amount_decimal above (1 credit = "
        f"{report.credit_value} {report.currency}), and a subscription per customer, anchored at a "
        "full UTC hour."
    )
    steps = [price]
    if not report.has_webhook_secret:
        steps.append(
            "Webhook destinations to https://YOUR-HOST/webhooks/stripe (billing api), their "
            "secrets into STRIPE_WEBHOOK_SECRET."
        )
    if report.provider != "stripe":
        steps.append(
            f"Usage goes to the provider {report.provider!r} until WEIGHBRIDGE_PROVIDER is stripe."
        )
    steps.append("billing report run, then billing report status.")
    if report.dry_run:
        steps.insert(0, "billing stripe setup, without --dry-run.")
    for number, step in enumerate(steps, 1):
        say(f"{number}. {step}")
