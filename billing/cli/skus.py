"""``billing skus``: what is sold."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from billing.cli import output
from billing.cli.context import Json, container_of
from billing.cli.output import (
    Column,
    document_of,
    instant,
    number,
    over,
    print_facts,
    print_json,
    say,
    show_table,
)
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


def sku_document(sku: Sku, now: datetime, **more: object) -> dict[str, Any]:
    """A SKU for machines."""
    return document_of(
        sku,
        "sku=id description unit pricing hold_quantity failure_policy denial_policy "
        "unavailable_policy allow_limit meter_decimals admission",
        unit_price_microcredits=sku.unit_price_at(now) if sku.prices else None,
        prices=[document_of(one, "unit_price_microcredits effective_from") for one in sku.prices],
        **more,
    )


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
    now = container.clock.now()
    current = format_credits(added.unit_price_at(now))
    said = f"SKU {added.id} is there: {current} credits a {added.unit}"
    output.show(json, sku_document(added, now), lambda: say(said))


@app.command("list")
def list_(context: typer.Context, json: Json = False) -> None:
    """List every SKU with its price and policies."""
    container = container_of(context)
    now = container.clock.now()
    show_table(
        json,
        "SKUs (prices in credits)",
        [
            Column("SKU", "id"),
            Column("unit, pricing", lambda sku: over(sku.unit, _pricing(sku))),
            number("price", lambda sku: _price(sku, now)),
            Column("next price", lambda sku: _coming(sku, now)),
            Column("failed", "failure_policy"),
            Column("denied", "denial_policy"),
            Column("no Redis", _away),
            number("scale", "meter_decimals"),
        ],
        container.catalog.list(),
        document=lambda sku: sku_document(sku, now),
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
        print_json(sku_document(found, now, meter=meter.name))
        return
    print_facts(
        f"SKU {found.id}",
        [
            ("description", found.description),
            ("unit", found.unit),
            ("pricing", found.pricing),
            ("units held", found.hold_quantity),
            ("price (credits)", _price(found, now)),
            ("next price", _coming(found, now)),
            ("admission", found.admission),
            ("failed tasks", found.failure_policy),
            ("denied tasks", found.denial_policy),
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
        print_json(sku_document(found, now, meter=meter.name))
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


def _price(sku: Sku, now: datetime) -> str | None:
    return format_credits(sku.unit_price_at(now)) if sku.prices else None


def _coming(sku: Sku, now: datetime) -> str | None:
    coming = [each for each in sku.prices[1:] if each.effective_from > now]
    if not coming:
        return None
    amount = format_credits(coming[0].unit_price_microcredits)
    return f"{amount} from {instant(coming[0].effective_from)}"


def _away(sku: Sku) -> str:
    away = sku.unavailable_policy
    return f"{away} {sku.allow_limit}" if away is UnavailablePolicy.ALLOW else away


def _pricing(sku: Sku) -> str:
    holds = f" ({sku.hold_quantity:,})" if sku.pricing is Pricing.MEASURED else ""
    # Only where it is not the usual one: the table is wide already.
    leased = f", {sku.admission}" if sku.admission is AdmissionPolicy.LEASED else ""
    return f"{sku.pricing}{holds}{leased}"


def unit_name(decimals: int) -> str:
    """The unit that a meter of so many decimals counts, in words."""
    names = {0: "1 credit", 6: "1 microcredit"}
    return names.get(decimals, f"{'0.' + '1'.rjust(decimals, '0')} credit")
