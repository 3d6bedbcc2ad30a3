"""``billing report``: usage on its way to the billing provider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from billing.cli import output
from billing.cli.context import Json, container_of
from billing.cli.output import Column, document_of, number, print_table, say, show_table
from billing.cli.report_run import run
from billing.cli.report_status import status
from billing.cli.report_tables import REPORTS, print_history, why_not_sent
from billing.container import Container
from billing.core.errors import AlreadyExists, NotFound
from billing.reporting.listing import ReportRow
from billing.reporting.usage_report import ReportState

app = typer.Typer(no_args_is_help=True, help="Usage on its way to the billing provider.")
app.command()(run)
app.command()(status)

_Id = Annotated[int, typer.Argument(help="Its number in the list.", metavar="ID", min=1)]
_AT_ONCE: Final = 1000
_SHOWN: Final = 50


@app.command("list")
def list_(
    context: typer.Context,
    states: Annotated[
        list[ReportState] | None,
        typer.Option("--state", help="Only in this state; may be repeated."),
    ] = None,
    customer: Annotated[str | None, typer.Option(help="Only of this customer.")] = None,
    sku: Annotated[str | None, typer.Option(help="Only of this SKU.")] = None,
    cause: Annotated[str | None, typer.Option(help="Only with this cause.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only of this provider.")] = None,
    revisions: Annotated[
        bool, typer.Option("--revisions", help="Also those that another revision followed.")
    ] = False,
    limit: Annotated[int, typer.Option(help="The most to list.", min=1)] = 100,
    json: Json = False,
) -> None:
    """List reports, the newest hour first."""
    container = container_of(context)
    _check_names(container, customer, sku)
    found = container.reporting.reports.list(
        states=states, customer=customer, sku=sku, cause=cause, provider=provider, limit=limit,
        only_latest=not revisions,
    )  # fmt: skip
    show_table(json, "Reports", REPORTS, found)
    if len(found) == limit and not json:
        say(f"the newest {limit:,} hours; more with --limit")


def _check_names(container: Container, customer: str | None, sku: str | None) -> None:
    if customer is not None:
        container.customers.get(customer)
    if sku is not None:
        container.catalog.get(sku)


@app.command()
def show(context: typer.Context, report: _Id, json: Json = False) -> None:
    """Show a report: the complete request, its answer, its hour's revisions and carry lines."""
    history = container_of(context).reporting.reports.show(report)
    more = {"revisions": history.revisions, "carries": history.carries}
    output.show(json, document_of(history.report) | more, lambda: print_history(history))


@dataclass(frozen=True, slots=True, kw_only=True)
class RetriedReport:
    """A parked report that somebody wanted sent again; ``detail`` says why it is not."""

    id: int
    retried: bool
    detail: str


@app.command()
def retry(
    context: typer.Context,
    reports: Annotated[
        list[int] | None, typer.Argument(help="Numbers in the list.", metavar="[ID]...", min=1)
    ] = None,
    cause: Annotated[str | None, typer.Option(help="All that are parked for this cause.")] = None,
    json: Json = False,
) -> None:
    """Have parked reports sent again as they are, once their cause is mended.

    The next run sends them, under the same identifier: what arrived before counts once.
    """
    if bool(reports) == (cause is not None):
        raise typer.BadParameter("give the numbers of reports, or --cause; not both")
    container = container_of(context)
    if reports:
        results = [_retry(container, each) for each in dict.fromkeys(reports)]
    else:
        results = _retry_all(container, cause or "")
    output.show(json, results, lambda: _print_retried(results))
    if not all(each.retried for each in results):
        raise typer.Exit(1)


def _retry(container: Container, report: int) -> RetriedReport:
    if container.reporting.reports.retry(report, now=container.clock.now()):
        return RetriedReport(id=report, retried=True, detail="")
    try:
        row = container.reporting.reports.show(report).report
    except NotFound:
        return RetriedReport(id=report, retried=False, detail="there is no such report")
    return RetriedReport(id=report, retried=False, detail=why_not_sent(row))


def _retry_all(container: Container, cause: str) -> list[RetriedReport]:
    """Page by page: what is sent again is parked no longer, so that the next page comes up."""
    results: dict[int, RetriedReport] = {}
    while True:
        limit = _AT_ONCE + sum(not each.retried for each in results.values())
        page = container.reporting.reports.list(
            states=[ReportState.NEEDS_ATTENTION], cause=cause, limit=limit
        )
        rows = [row for row in page if row.id not in results]
        if not rows:
            return list(results.values())
        results |= {row.id: _retry(container, row.id) for row in rows}


def _print_retried(results: Sequence[RetriedReport]) -> None:
    print_table(
        "Whether the next billing report run sends it again",
        [number("#"), Column("retried"), Column("detail")],
        [(str(r.id), "yes" if r.retried else "no", r.detail) for r in results[:_SHOWN]],
        empty="none is parked for that cause",
    )
    if len(results) > _SHOWN:
        done = sum(each.retried for each in results)
        say(f"the first {_SHOWN} of {len(results):,}; {done:,} of all are sent again")


@app.command()
def park(
    context: typer.Context,
    report: _Id,
    reason: Annotated[str, typer.Option(help="Why; kept with it.")],
    json: Json = False,
) -> None:
    """Hold a report back, and what its hour still comes to. Its usage is parked and not lost."""
    container = container_of(context)
    before = container.reporting.reports.show(report).report
    if not container.reporting.reports.hold_back(report, reason):
        now = container.reporting.reports.show(report).report
        raise AlreadyExists(
            f"report {report} is {now.state}: only one that is pending or unknown can be "
            "held back; while it is being sent, wait for its answer"
        )
    _print_change(container, before, json=json)


@app.command()
def unpark(
    context: typer.Context,
    report: _Id,
    arrived: Annotated[
        bool | None,
        typer.Option(
            "--arrived/--never-arrived",
            help="Of one without an answer: whether the provider has it. Look there first.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Let a report go on that was held back, or say whether one without an answer arrived."""
    container = container_of(context)
    reports = container.reporting.reports
    before = reports.show(report).report
    if not reports.lift_hold(report, arrived=arrived, now=container.clock.now()):
        raise AlreadyExists(f"report {report} stays as it is: {_why_not_unparked(before, arrived)}")
    _print_change(container, before, json=json)


def _why_not_unparked(row: ReportRow, arrived: bool | None) -> str:
    if row.state is ReportState.NEEDS_ATTENTION and row.latest and arrived and not row.doubtful:
        return "nothing of it was ever sent without an answer, so it cannot have arrived"
    return why_not_sent(row)


def _print_change(container: Container, before: ReportRow, *, json: bool) -> None:
    after = container.reporting.reports.show(before.id).report
    cause = f" ({after.cause})" if after.state is ReportState.NEEDS_ATTENTION else ""
    said = f"report {after.id} was {before.state} and is {after.state}{cause}"
    output.show(json, after, lambda: say(said))
