"""Output of ``billing stripe setup``: meters with the price of a unit, customers, next steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from billing.cli.output import Column, document_of, moment, number, over, print_table, say
from billing.cli.skus import unit_name
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
class SetupReport:
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


def document(report: SetupReport) -> dict[str, Any]:
    """A set-up for machines."""
    return document_of(report, "dry_run live environment provider") | {
        "ready": not differing(report.meters),
        "meters": [
            document_of(
                line,
                "sku=meter.sku meter=meter.name meter_id=provider_id state differences",
                **document_of(
                    report.prices[line.meter.sku],
                    "meter_decimals=decimals unit_amount_decimal=amount currency price_fits=fits",
                ),
            )
            | {"meter_id": line.provider_id or None}
            for line in report.meters
        ],
        "customers": [
            document_of(line, "customer state stripe_customer_id=customer_ref detail")
            | {"stripe_customer_id": line.customer_ref or None}
            for line in report.customers
        ],
    }


def print_report(report: SetupReport) -> None:
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


def _print_meters(report: SetupReport) -> None:
    def price_of(line: MeterLine) -> UnitPrice:
        return report.prices[line.meter.sku]

    print_table(
        "Meters",
        [
            Column("SKU and meter", lambda line: over(line.meter.sku, line.meter.name)),
            moment("state", lambda line: _state(line, report)),
            moment("one unit is", lambda line: unit_name(price_of(line).decimals)),
            number("unit_amount_decimal", lambda line: _amount(price_of(line))),
            moment("in", lambda line: price_of(line).currency),
        ],
        report.meters,
        empty="none, for there is no SKU; add one with: billing skus add ID --price 1",
    )
    for price in {one.decimals: one for one in report.prices.values() if not one.fits}.values():
        say(
            f"a price has at most {MAX_PRICE_DECIMALS} decimals: give a new SKU at most "
            f"--meter-decimals {price.most_decimals}, or raise WEIGHBRIDGE_CREDIT_VALUE",
            style="yellow",
        )


def _state(line: MeterLine, report: SetupReport) -> str:
    if line.state is MeterState.MISSING:
        return "would be created" if report.dry_run else "not created"
    return line.state


def _amount(price: UnitPrice) -> str:
    return price.amount if price.fits else "too fine"


def _print_differences(report: SetupReport) -> None:
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


def _print_customers(report: SetupReport) -> None:
    news = [one for one in report.customers if one.state is not CustomerState.LINKED]
    print_table(
        "Customers",
        [
            Column("customer"),
            moment("state", lambda one: _customer_state(one, report)),
            Column("at Stripe", "customer_ref"),
            Column("detail", _customer_detail),
        ],
        news[:_SHOWN_CUSTOMERS],
        empty="all linked before" if report.customers else "none",
    )
    if len(news) > _SHOWN_CUSTOMERS:
        say(f"the first {_SHOWN_CUSTOMERS} of {len(news):,}; all of them with --json")
    counts = Counter(_customer_state(one, report) for one in report.customers)
    if counts:
        say("customers: " + ", ".join(f"{n:,} {state}" for state, n in counts.items()))
    if counts[CustomerState.MISSING]:
        say("usage of who is missing adds up in the log and is parked until they are linked")


def _customer_state(line: CustomerLine, report: SetupReport) -> str:
    would = {CustomerState.FOUND: "would be linked", CustomerState.MISSING: "would be created"}
    if report.dry_run and (line.state is CustomerState.FOUND or report.create):
        return would.get(line.state, line.state)
    return line.state


def _customer_detail(line: CustomerLine) -> str:
    if line.state is CustomerState.DELETED:
        return f"not linked by itself: billing customers link {line.customer} cus_..."
    return line.detail


def _print_next_steps(report: SetupReport) -> None:
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
    for position, step in enumerate(steps, 1):
        say(f"{position}. {step}")
