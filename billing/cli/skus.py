"""``billing skus``: what is sold."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from billing.cli.context import Json, container_of
from billing.cli.output import (
    Cell,
    Column,
    instant,
    over,
    print_facts,
    print_json,
    print_table,
    say,
)
from billing.cli.stripe_setup import unit_name
from billing.core.clock import format_instant, parse_instant
from billing.core.credits import format_credits, parse_credits
from billing.core.sku import (
    AdmissionPolicy,
    DenialPolicy,
    FailurePolicy,
    Pricing,
    Sku,
    UnavailablePolicy,
)
from billing.reporting.meter_names import meter_of
from billing.reporting.rescaling import check_rescaling

app = typer.Typer(no_args_is_help=True, help="What is sold: add, list, price.")

_Credits = Annotated[str, typer.Option(help="Credits for one unit, such as 1.5.")]
_SkuId = Annotated[str, typer.Argument(help="A SKU's id.", metavar="SKU")]


@app.command()
def add(
    context: typer.Context,
    sku: _SkuId,
    price: _Credits,
    *,
    unit: Annotated[str, typer.Option(help="The word for one of it, such as page.")] = "task",
    measured: Annotated[
        bool, typer.Option("--measured", help="Only the body knows the quantity.")
    ] = False,
    hold: Annotated[
        int, typer.Option(help="Units held before the body runs (measured SKUs).", min=1)
    ] = 1,
    on_failure: Annotated[
        FailurePolicy, typer.Option(help="What a failed task costs: nothing, or what it used.")
    ] = FailurePolicy.RELEASE,
    on_denial: Annotated[
        DenialPolicy, typer.Option(help="A denied task fails, or comes back later.")
    ] = DenialPolicy.FAIL,
    on_unavailable: Annotated[
        UnavailablePolicy, typer.Option(help="What a task does while Redis is away.")
    ] = UnavailablePolicy.RETRY,
    allow_limit: Annotated[
        int, typer.Option(help="Unheld runs per process and outage with 'allow'.", min=0)
    ] = 0,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    decimals: Annotated[
        int,
        typer.Option(
            "--meter-decimals",
            help="Decimals of a credit that the provider's meter counts: 6 are microcredits.",
            min=0,
            max=6,
        ),
    ] = 6,
    admission: Annotated[
        AdmissionPolicy,
        typer.Option(help="Each task asks Redis, or a process leases credits for many."),
    ] = AdmissionPolicy.EXACT,
    json: Json = False,
) -> None:
    """Add a SKU with its first price. The same again changes nothing."""
    container = container_of(context)
    added = container.catalog.add(
        sku,
        unit=unit,
        unit_price_microcredits=parse_credits(price, field="price"),
        effective_from=container.clock.now(),
        pricing=Pricing.MEASURED if measured else Pricing.FIXED,
        hold_quantity=hold,
        failure_policy=on_failure,
        denial_policy=on_denial,
        unavailable_policy=on_unavailable,
        allow_limit=allow_limit,
        description=description,
        meter_decimals=decimals,
        admission=admission,
    )
    if json:
        print_json(sku_document(added, container.clock.now()))
    else:
        current = format_credits(added.unit_price_at(container.clock.now()))
        say(f"SKU {added.id} is there: {current} credits a {added.unit}")


@app.command("list")
def list_(context: typer.Context, json: Json = False) -> None:
    """List every SKU with its price and policies."""
    container = container_of(context)
    now = container.clock.now()
    found = container.catalog.list()
    if json:
        print_json([sku_document(each, now) for each in found])
        return
    print_table(
        "SKUs (prices in credits)",
        [
            Column("SKU"),
            Column("unit, pricing"),
            Column("price", numeric=True),
            Column("next price"),
            Column("failed"),
            Column("denied"),
            Column("no Redis"),
            Column("scale", numeric=True),
        ],
        [_row(each, now) for each in found],
        empty="none; add one with: billing skus add ID --price 1",
    )


@app.command()
def show(context: typer.Context, sku: _SkuId, json: Json = False) -> None:
    """Show a SKU with its meter at the provider."""
    container = container_of(context)
    now = container.clock.now()
    found = container.catalog.get(sku)
    meter = meter_of(found, container.settings.environment)
    if json:
        print_json({**sku_document(found, now), "meter": meter.name})
        return
    print_facts(
        f"SKU {found.id}",
        [
            ("description", found.description),
            ("unit", found.unit),
            ("pricing", found.pricing.value),
            ("units held", found.hold_quantity),
            ("price (credits)", format_credits(found.unit_price_at(now)) if found.prices else None),
            ("next price", _coming(found, now)),
            ("admission", found.admission.value),
            ("failed tasks", found.failure_policy.value),
            ("denied tasks", found.denial_policy.value),
            ("Redis away", _away(found)),
            ("meter", meter.name),
            ("counted in", unit_name(found.meter_decimals)),
        ],
    )


@app.command()
def price(
    context: typer.Context,
    sku: _SkuId,
    unit_price: Annotated[str, typer.Argument(help="Credits for one unit.", metavar="CREDITS")],
    effective_from: Annotated[
        str | None,
        typer.Option("--from", help="From when, such as 2026-12-01T00:00:00Z. Unset: from now on."),
    ] = None,
    json: Json = False,
) -> None:
    """Set what one unit costs from an instant on. What was charged before never changes."""
    container = container_of(context)
    now = container.clock.now()
    begin = now if effective_from is None else parse_instant(effective_from, field="from")
    priced = container.catalog.set_price(
        sku, parse_credits(unit_price, field="price"), begin, now=now
    )
    if json:
        print_json(sku_document(priced, now))
        return
    amount = format_credits(parse_credits(unit_price))
    say(f"SKU {priced.id} costs {amount} credits a {priced.unit} from {format_instant(begin)} on")
    if effective_from is None:
        ttl = container.settings.catalog_ttl_seconds
        say(f"workers know the new price within {ttl} seconds; announce a price ahead with --from")


@app.command("meter-decimals")
def meter_decimals(
    context: typer.Context,
    sku: _SkuId,
    decimals: Annotated[
        int,
        typer.Argument(
            help="Of a credit that the meter counts: 6 are microcredits, 0 credits.",
            metavar="DECIMALS",
            min=0,
            max=6,
        ),
    ],
    json: Json = False,
) -> None:
    """Change the scale of a SKU's meter: it is another meter then, with a price of its own.

    What the former meter has stays its own. Refused while figures are on their way to it, and once
    Stripe has any of the SKU's.
    """
    container = container_of(context)
    now = container.clock.now()
    found = container.catalog.get(sku)
    if found.meter_decimals != decimals:
        check_rescaling(container.engine, sku)
        found = container.catalog.set_meter_decimals(sku, decimals)
    meter = meter_of(found, container.settings.environment)
    if json:
        print_json({**sku_document(found, now), "meter": meter.name})
        return
    say(f"SKU {found.id} is counted in {unit_name(decimals)} by the meter {meter.name}")
    say("at Stripe: billing stripe setup makes it, and prints what to ask for one unit")


@app.command()
def admission(
    context: typer.Context,
    sku: _SkuId,
    policy: Annotated[AdmissionPolicy, typer.Argument(help="exact or leased.")],
    json: Json = False,
) -> None:
    """Have tasks of a SKU admitted one by one (exact), or from leased credits (leased)."""
    container = container_of(context)
    changed = container.catalog.set_admission(sku, policy)
    if json:
        print_json(sku_document(changed, container.clock.now()))
        return
    ttl = container.settings.catalog_ttl_seconds
    say(f"SKU {changed.id} is admitted {changed.admission}; workers know it within {ttl} seconds")


def sku_document(sku: Sku, now: datetime) -> dict[str, object]:
    """A SKU for machines."""
    return {
        "sku": sku.id,
        "description": sku.description,
        "unit": sku.unit,
        "pricing": sku.pricing.value,
        "hold_quantity": sku.hold_quantity,
        "failure_policy": sku.failure_policy.value,
        "denial_policy": sku.denial_policy.value,
        "unavailable_policy": sku.unavailable_policy.value,
        "allow_limit": sku.allow_limit,
        "meter_decimals": sku.meter_decimals,
        "admission": sku.admission.value,
        "unit_price_microcredits": sku.unit_price_at(now) if sku.prices else None,
        "prices": [
            {
                "unit_price_microcredits": each.unit_price_microcredits,
                "effective_from": each.effective_from,
            }
            for each in sku.prices
        ],
    }


def _coming(sku: Sku, now: datetime) -> str | None:
    coming = [each for each in sku.prices[1:] if each.effective_from > now]
    if not coming:
        return None
    amount = format_credits(coming[0].unit_price_microcredits)
    return f"{amount} from {instant(coming[0].effective_from)}"


def _away(sku: Sku) -> str:
    away = sku.unavailable_policy.value
    return (
        f"{away} {sku.allow_limit}" if sku.unavailable_policy is UnavailablePolicy.ALLOW else away
    )


def _pricing(sku: Sku) -> str:
    holds = f" ({sku.hold_quantity:,})" if sku.pricing is Pricing.MEASURED else ""
    # Only where it is not the usual one: the table is wide already.
    leased = f", {sku.admission.value}" if sku.admission is AdmissionPolicy.LEASED else ""
    return f"{sku.pricing.value}{holds}{leased}"


def _row(sku: Sku, now: datetime) -> tuple[Cell, ...]:
    return (
        sku.id,
        over(sku.unit, _pricing(sku)),
        format_credits(sku.unit_price_at(now)) if sku.prices else None,
        _coming(sku, now),
        sku.failure_policy.value,
        sku.denial_policy.value,
        _away(sku),
        sku.meter_decimals,
    )
