"""``billing reconcile``: the books by themselves, and log, reports and provider."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Annotated, Final

import typer
from rich.text import Text

from billing.cli.balance_check import Days, Repair, check_books, list_discrepancies
from billing.cli.context import Json, Month, container_of
from billing.cli.output import Cell, Column, over, print_json, print_table, printable, say
from billing.cli.progress import shown
from billing.core.credits import format_credits
from billing.core.periods import month_labelled, month_of
from billing.providers.report_value import CREDIT_DECIMALS, scaled
from billing.reporting.comparison import ProviderDay

app = typer.Typer(invoke_without_command=True, help="Compare what has to agree, and put it right.")
app.command("list")(list_discrepancies)

REPORTED_BY: Final = timedelta(hours=2)
"""What was used on a day is reported so long after its end, if nothing is wrong."""


class Agreement(StrEnum):
    """How a day stands. The last three make the command exit with 1."""

    AGREES = "agrees"
    UNDER_WAY = "under way"
    """Not all of it is reported yet, or a provider may still change its figures."""
    UNREPORTED = "unreported"
    """The day is over, and the provider was not told all of it."""
    UNREAD = "unread"
    """The provider gave no figures."""
    DIFFERS = "differs"
    """The provider counts another figure than it accepted."""


BAD: Final = frozenset({Agreement.UNREPORTED, Agreement.UNREAD, Agreement.DIFFERS})


@dataclass(frozen=True, slots=True)
class Compared:
    """A day and how it stands."""

    day: ProviderDay
    agreement: Agreement


def agreement_of(day: ProviderDay, *, decimals: int, now: datetime) -> Agreement:
    """How a day stands. Pure.

    Args:
        day: As it was compared.
        decimals: Of a credit that its meter counts; less than one unit is nothing to report.
        now: The time.
    """
    if day.differs:
        return Agreement.DIFFERS
    if day.read is None and day.accepted_microcredits:
        return Agreement.UNREAD
    is_unreported = scaled(day.unreported_microcredits, decimals).value != 0
    if is_unreported and now >= _end(day.day) + REPORTED_BY:
        return Agreement.UNREPORTED
    return Agreement.UNDER_WAY if is_unreported or day.settling else Agreement.AGREES


def _end(day: date) -> datetime:
    return datetime.combine(day, time(), UTC) + timedelta(days=1)


@app.callback()
def reconcile(
    context: typer.Context, repair: Repair = False, days: Days = 2, json: Json = False
) -> None:
    """Compare Redis, log, rollups and outbox; with --repair put right what a rule can.

    What is on its way looks like a difference, so only what a second look finds counts.
    Exits with 1 where something is left.
    """
    if context.invoked_subcommand is None:
        check_books(context, repair=repair, days=days, json=json)


@app.command()
def provider(
    context: typer.Context,
    month: Month = None,
    customer: Annotated[str | None, typer.Option(help="Only this customer's.")] = None,
    json: Json = False,
) -> None:
    """Compare the log with what the provider accepted and what it counts, day by day (UTC).

    One request per customer, SKU and day. Changes nothing. Exits with 1 where a day differs.
    """
    container = container_of(context)
    now = container.clock.now()
    period = month_labelled(month) if month else month_of(now)
    if customer is not None:
        container.customers.get(customer)
    decimals = {sku: one.decimals for sku, one in container.reporting.metered().items()}
    days = container.reporting.comparison().compare(period, customer=customer)
    compared = [
        Compared(day, agreement_of(day, decimals=_scale(decimals, day), now=now))
        for day in shown(days, name="reading the provider's figures")
    ]
    name = container.settings.provider_name
    if json:
        print_json(
            {
                "provider": name,
                "month": period.label,
                "compared": len(compared),
                "days": [day_document(one) for one in compared],
            }
        )
    else:
        _print(name, period.label, compared)
    if any(one.agreement in BAD for one in compared):
        raise typer.Exit(1)


def _scale(decimals: Mapping[str, int], day: ProviderDay) -> int:
    return decimals.get(day.sku, CREDIT_DECIMALS)


def day_document(one: Compared) -> dict[str, object]:
    """A compared day for machines."""
    day = one.day
    return {
        **day.as_dict(),
        "day": day.day.isoformat(),
        "unreported_microcredits": day.unreported_microcredits,
        "agreement": one.agreement.value,
    }


_STYLES: Final = {Agreement.UNDER_WAY: "yellow", **dict.fromkeys(BAD, "red")}


def _print(provider: str, month: str, compared: Sequence[Compared]) -> None:
    print_table(
        f"Log, reports and {provider} in {month}",
        [
            Column("customer and SKU"),
            Column("day (UTC)", whole=True),
            Column("logged, accepted", numeric=True),
            Column("told, counted", numeric=True),
            Column("verdict"),
        ],
        [_row(one) for one in compared if one.agreement is not Agreement.AGREES],
        empty="every day agrees" if compared else "nothing was used",
    )
    counts = Counter(one.agreement for one in compared)
    if compared:
        found = ", ".join(f"{counts[each]:,} {each.value}" for each in Agreement if counts[each])
        say(f"days: {found} (logged and accepted in credits, told and counted in meter units)")
    for agreement, remedy in _REMEDIES.items():
        if counts[agreement]:
            say(f"{agreement.value}: {remedy}")


_REMEDIES: Final = {
    Agreement.DIFFERS: "an unconfirmed figure is read back and sent again by itself, at most three "
    "times (billing report run); one that was confirmed has been changed at the provider since: "
    "put it right there",
    Agreement.UNREAD: "nobody knows what the provider counts; ask again, or see the verdict",
    Agreement.UNREPORTED: "billing report status says where it is: open, parked, or not planned",
}


def _row(one: Compared) -> tuple[Cell, ...]:
    day = one.day
    return (
        over(day.customer, day.sku),
        day.day.isoformat(),
        over(format_credits(day.logged_microcredits), format_credits(day.accepted_microcredits)),
        over(f"{day.accepted:,}", None if day.read is None else f"{day.read:,}"),
        Text(printable(_verdict(one)), style=_STYLES.get(one.agreement, "")),
    )


def _verdict(one: Compared) -> str:
    day = one.day
    if day.problem:
        return f"{one.agreement.value}: {day.problem}"
    if one.agreement is Agreement.DIFFERS and day.hours:
        first = day.hours[0]
        at = f"{first.hour.astimezone(UTC):%H:00}"
        more = f" and {len(day.hours) - 1} more" if len(day.hours) > 1 else ""
        told, counted = (_figure(each) for each in (first.accepted, first.read))
        return f"differs at {at}{more}: told {told}, counted {counted}"
    return one.agreement.value


def _figure(value: int | None) -> str:
    return "nothing" if value is None else f"{value:,}"
