"""``billing report status``: where all usage is, between the log and the provider."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from billing.cli.context import Json, container_of
from billing.cli.output import print_json
from billing.cli.report_status_tables import print_status
from billing.cli.report_tables import carry_document
from billing.health.report_status import ReportStatus, status_of


def status(
    context: typer.Context,
    check: Annotated[
        bool, typer.Option("--check", help="Also ask the provider whether its meters are right.")
    ] = False,
    json: Json = False,
) -> None:
    """Show where usage is: taken, on its way, parked, carried. Exits with 1 if somebody is needed.

    The figures of a month add up: log = accepted + open + parked + unclaimed + carried.
    """
    found = status_of(container_of(context), check=check)
    if json:
        print_json(_document(found))
    else:
        print_status(found)
    if found.needs_somebody:
        raise typer.Exit(1)


def _document(found: ReportStatus) -> dict[str, object]:
    return {
        "provider": found.provider,
        "needs_somebody": found.needs_somebody,
        "checks": [asdict(each) for each in found.findings],
        "states": {state.value: asdict(count) for state, count in sorted(found.counts.items())},
        "oldest_unconfirmed_since": found.since,
        "oldest_open_hour": found.oldest_open,
        "parked": [asdict(each) for each in found.parked],
        "blocked": found.blocked,
        "former_providers": [
            {"provider": name, "can_be_asked": usable} for name, usable in found.owed.items()
        ],
        "sealed": [asdict(each) for each in found.seals],
        "carries": [carry_document(each) for each in found.carries],
        "months": [
            {
                "month": each.month,
                "sums": [{**asdict(one), "adds_up": not one.off_by} for one in each.sums],
            }
            for each in found.books
        ],
    }
