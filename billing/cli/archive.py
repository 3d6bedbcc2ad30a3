"""``billing archive`` and ``billing restore``: months out of the database, and back."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from billing.archive.catalog import Archive
from billing.cli.context import Json, container_of
from billing.cli.output import (
    Column,
    credits_column,
    document_of,
    moment,
    number,
    print_json,
    print_table,
    say,
)
from billing.cli.services import reporting
from billing.container import Container
from billing.core.periods import Period, month_labelled

_Despite = Annotated[
    bool,
    typer.Option("--despite-findings", help="Although the month is not what was sealed."),
]
_CREDITS: Final = credits_column("credits", "amount_microcredits")
_COLUMNS: Final = (
    moment("month", "month.label"),
    moment("state", "state"),
    number("rows", lambda one: one.totals.events if one.totals else None),
    number("credits", lambda one: _CREDITS.of(one.totals) if one.totals else None),
    number("MB", lambda one: f"{one.rows_file.size / 1e6:.1f}" if one.rows_file else None),
    Column("file", lambda one: one.rows_file.name if one.rows_file else None),
)


def archive(
    context: typer.Context,
    before: Annotated[
        str | None,
        typer.Option(
            help="Every month before this one that is in the database.", metavar="YYYY-MM"
        ),
    ] = None,
    month: Annotated[str | None, typer.Option(help="This month.", metavar="YYYY-MM")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Only list what was archived.")] = False,
    despite_findings: _Despite = False,
    json: Json = False,
) -> None:
    """Move months of the log to Parquet files: seal, export, read back, detach, drop.

    Rollups stay, and receipts of these months are read from the files. Interrupted anywhere, run it
    again.
    """
    container = container_of(context)
    if sum((before is not None, month is not None, listed)) != 1:
        raise typer.BadParameter("give one of --before, --month and --list")
    if listed:
        _print(container.audit.archives(), json, empty="nothing was archived yet")
        return
    now, archiver = container.clock.now(), container.audit.archiver
    months = [month_labelled(month)] if month else archiver.due(month_labelled(before or ""))
    for each in months:
        # Before the first is touched.
        archiver.check_age(each, now)
    done = [_archive(container, each, despite_findings) for each in months]
    _print(done, json, empty="no month to archive")


def restore(
    context: typer.Context,
    month: Annotated[str, typer.Argument(help="An archived UTC month.", metavar="YYYY-MM")],
    despite_findings: _Despite = False,
    json: Json = False,
) -> None:
    """Make an archived month part of the database again; its files stay."""
    container = container_of(context)
    restorer = container.audit.restorer
    with reporting("restore", lambda: {"month": month}):
        done = restorer.restore(
            month_labelled(month), container.clock.now(), despite_findings=despite_findings
        )
    _print([done], json, empty="")


def _archive(container: Container, month: Period, despite_findings: bool) -> Archive:
    archiver = container.audit.archiver
    progress = archiver.progress

    def figures() -> dict[str, object]:
        rows = progress.rows or progress.checked.rows
        return {"month": month.label, "step": progress.step, "rows": f"{rows:,}"}

    with reporting("archive", figures):
        return archiver.archive(month, container.clock.now(), despite_findings=despite_findings)


def archive_document(archive: Archive) -> dict[str, Any]:
    """An archive for machines."""
    files = {"rows": archive.rows_file, "seals": archive.seals_file}
    return document_of(
        archive,
        "month=month.label state",
        files={
            name: document_of(file, "name bytes=size sha256")
            for name, file in files.items()
            if file
        },
        rows=archive.totals.events if archive.totals else None,
        amount_microcredits=archive.totals.amount_microcredits if archive.totals else None,
        seals_root=archive.seals_root,
        head={"number": archive.head_number, "hash": archive.head_hash},
        **document_of(archive, "begun_at verified_at dropped_at restored_at"),
    )


def _print(archives: list[Archive], json: bool, *, empty: str) -> None:
    if json:
        print_json([archive_document(each) for each in archives])
    elif archives:
        print_table("Archives", _COLUMNS, archives)
    else:
        say(empty)
