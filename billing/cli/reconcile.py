"""``billing reconcile``: Redis, log and rollups against each other; log, reports and provider."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from billing.cli.context import Json, Month, container_of
from billing.cli.logs import configure_logs
from billing.cli.output import (
    Cell,
    Column,
    err,
    moment,
    number,
    over,
    print_table,
    printable,
    say,
    show,
)
from billing.cli.services import with_progress
from billing.container import Container
from billing.core.credits import format_credits
from billing.core.periods import month_labelled, month_of
from billing.providers.report_value import CREDIT_DECIMALS, scaled
from billing.reconciliation.discrepancies import (
    DiscrepancyRow,
    DiscrepancyState,
    DiscrepancyStore,
    RecordedDiscrepancy,
)
from billing.reconciliation.invariants import DiscrepancyKind
from billing.reporting.comparison import ProviderDay

app = typer.Typer(invoke_without_command=True, help="Compare what has to agree, and put it right.")

_AMOUNTS: Final = frozenset(DiscrepancyKind) - {
    DiscrepancyKind.DUPLICATE,
    DiscrepancyKind.DENIED_BUT_RAN,
}
"""Kinds whose figures are microcredits; the others count."""
_STATE_STYLES: Final = {
    DiscrepancyState.REPAIRED: "green",
    DiscrepancyState.GONE: "dim",
    DiscrepancyState.WAITING: "yellow",
    DiscrepancyState.FOUND: "red",
    DiscrepancyState.FAILED: "bold red",
}
_STATE_REMEDIES: Final = {
    DiscrepancyState.FOUND: "found: billing reconcile --repair puts right what a rule can; "
    "by_hand is for a person, see docs/operating.md",
    DiscrepancyState.WAITING: "waiting: usage is on its way to the log; repair again once it "
    "has arrived",
    DiscrepancyState.FAILED: "failed: it is there still; see its note, and billing doctor",
}


_Days = Annotated[int, typer.Option(min=1, max=400, help="How far back lines are compared.")]
_Repair = Annotated[
    bool, typer.Option("--repair", help="Put right, from PostgreSQL, what a rule can.")
]


@app.callback()
def reconcile(
    context: typer.Context, repair: _Repair = False, days: _Days = 2, json: Json = False
) -> None:
    """Compare Redis, log, rollups and outbox; with --repair put right what a rule can.

    What is on its way looks like a difference, so only what a second look finds counts.
    Exits with 1 where something is left.
    """
    if context.invoked_subcommand is None:
        _check_balances(container_of(context), repair=repair, days=days, json=json)


def _check_balances(container: Container, *, repair: bool, days: int, json: bool) -> None:
    # What the repair logs belongs to standard error: standard output is the result.
    configure_logs(container.settings.log_level)
    since = container.clock.now() - timedelta(days=days)
    with err().status("comparing Redis, log and rollups; what differs is looked at twice"):
        found = container.repair.run(since, repair=repair)
    _show_discrepancies(json, found, "none; Redis, log, rollups and outbox agree")
    if any(each.state is not DiscrepancyState.REPAIRED for each in found):
        raise typer.Exit(1)


@app.command("list")
def list_(
    context: typer.Context,
    ended: Annotated[
        bool, typer.Option("--ended", help="Also those that were repaired or went by themselves.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The most rows.")] = 100,
    json: Json = False,
) -> None:
    """List what did not agree, newest first, with its cause and what became of it."""
    rows = DiscrepancyStore(container_of(context).engine).list(ended=ended, limit=limit)
    empty = "none" if ended else "none is open; --ended shows those that have ended"
    _show_discrepancies(json, rows, empty, _SEEN)


def _show_discrepancies(
    json: bool,
    found: Sequence[RecordedDiscrepancy] | Sequence[DiscrepancyRow],
    empty: str,
    *more: Column,
) -> None:
    def print_() -> None:
        print_table("Discrepancies", [*_DISCREPANCIES, *more], found, empty=empty)
        states = {each.state for each in found}
        for state, remedy in _STATE_REMEDIES.items():
            if state in states:
                say(remedy)

    show(json, [each.as_dict() for each in found], print_)


def _about(found: RecordedDiscrepancy | DiscrepancyRow) -> Any:  # noqa: ANN401 - has the same names
    return found.discrepancy if isinstance(found, RecordedDiscrepancy) else found


def _kind(found: RecordedDiscrepancy | DiscrepancyRow) -> Cell:
    return over(_about(found).kind, _about(found).customer)


def _figures(found: RecordedDiscrepancy | DiscrepancyRow) -> Cell:
    about = _about(found)
    text = format_credits if about.kind in _AMOUNTS else "{:,}".format
    return over(text(about.expected), text(about.found))


_DISCREPANCIES: Final = (
    Column("kind and customer", _kind),
    number("should be, is", _figures),
    Column("about, note", lambda one: over(_about(one).detail, one.note)),
    Column("cause, remedy", lambda one: over(one.cause or "unknown", one.remedy)),
    moment("state", lambda one: Text(printable(one.state), style=_STATE_STYLES[one.state])),
)
_SEEN: Final = moment(
    "seen", lambda row: over(f"{row.first_seen_at:%Y-%m-%d %H:%M}", f"{row.times_seen:,} times")
)


# -- the provider ------------------------------------------------------------------------------


REPORTED_BY: Final = timedelta(hours=2)
"""A day's usage is reported this long after its end, if nothing is wrong."""


class Agreement(StrEnum):
    """The verdict on a day. The last three make the command exit with 1."""

    AGREES = "agrees"
    UNDER_WAY = "under way"
    """Not all of it is reported yet, or a provider may still change its figures."""
    UNREPORTED = "unreported"
    """The day is over, and not all of it was reported."""
    UNREAD = "unread"
    """The provider gave no figures."""
    DIFFERS = "differs"
    """The provider counts another figure than it accepted."""


BAD: Final = frozenset({Agreement.UNREPORTED, Agreement.UNREAD, Agreement.DIFFERS})


@dataclass(frozen=True, slots=True)
class ComparedDay:
    """A day and its verdict."""

    day: ProviderDay
    agreement: Agreement


def agreement_of(day: ProviderDay, *, decimals: int, now: datetime) -> Agreement:
    """Judge a day. Pure.

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
        ComparedDay(day, agreement_of(day, decimals=_scale(decimals, day), now=now))
        for day in with_progress(days, name="reading the provider's figures")
    ]
    name = container.settings.provider_name
    document = {
        "provider": name,
        "month": period.label,
        "compared": len(compared),
        "days": [day_document(one) for one in compared],
    }
    show(json, document, lambda: _print(name, period.label, compared))
    if any(one.agreement in BAD for one in compared):
        raise typer.Exit(1)


def _scale(decimals: Mapping[str, int], day: ProviderDay) -> int:
    return decimals.get(day.sku, CREDIT_DECIMALS)


def day_document(one: ComparedDay) -> dict[str, object]:
    """A compared day for machines."""
    day = one.day
    return {
        **day.as_dict(),
        "day": day.day.isoformat(),
        "unreported_microcredits": day.unreported_microcredits,
        "agreement": one.agreement,
    }


_AGREEMENT_STYLES: Final = {Agreement.UNDER_WAY: "yellow", **dict.fromkeys(BAD, "red")}


def _print(provider: str, month: str, compared: Sequence[ComparedDay]) -> None:
    print_table(
        f"Log, reports and {provider} in {month}",
        _DAYS,
        [one for one in compared if one.agreement is not Agreement.AGREES],
        empty="every day agrees" if compared else "nothing was used",
    )
    counts = Counter(one.agreement for one in compared)
    if compared:
        found = ", ".join(f"{counts[each]:,} {each.value}" for each in Agreement if counts[each])
        say(f"days: {found} (logged and accepted in credits, told and counted in meter units)")
    for agreement, remedy in _AGREEMENT_REMEDIES.items():
        if counts[agreement]:
            say(f"{agreement}: {remedy}")


_AGREEMENT_REMEDIES: Final = {
    Agreement.DIFFERS: "an unconfirmed figure is read back and sent again by itself, at most three "
    "times (billing report run); one that was confirmed has been changed at the provider since: "
    "put it right there",
    Agreement.UNREAD: "nobody knows what the provider counts; ask again, or see the verdict",
    Agreement.UNREPORTED: "billing report status says where it is: open, parked, or not planned",
}


def _credits_of(one: ComparedDay) -> Cell:
    day = one.day
    return over(format_credits(day.logged_microcredits), format_credits(day.accepted_microcredits))


_DAYS: Final = (
    Column("customer and SKU", lambda one: over(one.day.customer, one.day.sku)),
    moment("day (UTC)", lambda one: one.day.day.isoformat()),
    number("logged, accepted", _credits_of),
    number("told, counted", lambda one: over(f"{one.day.accepted:,}", _count(one.day.read, None))),
    Column(
        "verdict",
        lambda one: Text(printable(_verdict(one)), style=_AGREEMENT_STYLES.get(one.agreement, "")),
    ),
)


def _verdict(one: ComparedDay) -> str:
    day = one.day
    if day.problem:
        return f"{one.agreement}: {day.problem}"
    if one.agreement is Agreement.DIFFERS and day.hours:
        first = day.hours[0]
        at = f"{first.hour.astimezone(UTC):%H:00}"
        more = f" and {len(day.hours) - 1} more" if len(day.hours) > 1 else ""
        accepted, counted = (_count(each, "nothing") for each in (first.accepted, first.read))
        return f"differs at {at}{more}: told {accepted}, counted {counted}"
    return one.agreement


def _count(value: int | None, otherwise: str | None) -> str | None:
    return otherwise if value is None else f"{value:,}"
