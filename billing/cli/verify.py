"""``billing verify``: the log against its seals, row by row, and the chain of the seals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from billing.audit.seal_chain import Seal, anchor_line, parse_anchor
from billing.audit.verification_report import VerifyFinding
from billing.audit.verifier import Checked
from billing.cli.context import Json, container_of
from billing.cli.output import document_of, instant, print_json, say, show
from billing.cli.seals import seal_document
from billing.cli.services import reporting
from billing.container import Container
from billing.core.errors import InvalidValue
from billing.core.periods import Period, month_labelled

_MOST_SHOWN: Final = 100


def verify(
    context: typer.Context,
    month: Annotated[
        str | None,
        typer.Option(
            help="One UTC month. Unset: the whole log and its archives.", metavar="YYYY-MM"
        ),
    ] = None,
    anchor: Annotated[
        Path | None,
        typer.Option(
            help="A file of billing seals export that was kept elsewhere.", metavar="FILE"
        ),
    ] = None,
    head: Annotated[
        bool, typer.Option("--head", help="Check nothing; print the newest seal, to be published.")
    ] = False,
    json: Json = False,
) -> None:
    """Find every row that was changed, removed or added, and every seal that does not hold.

    Exits with 1 if there is any.
    """
    container = container_of(context)
    if head:
        _print_head(container.audit.head(), json)
        return
    known = _anchor(anchor)
    months = [month_labelled(month)] if month else container.audit.months()
    checked = Checked()
    with reporting("verify", lambda: {"rows": f"{checked.rows:,}", "hours": f"{checked.hours:,}"}):
        findings = list(_found(container, months, known, checked))
    newest = container.audit.head()
    if json:
        print_json(_document(months, checked, newest, findings, anchored=anchor is not None))
    else:
        _print(months, checked, newest, findings)
    if findings:
        raise typer.Exit(1)


def _found(
    container: Container, months: list[Period], anchor: dict[int, bytes] | None, checked: Checked
) -> Iterator[VerifyFinding]:
    verifier = container.audit.verifier
    yield from verifier.chain(anchor)
    for month in months:
        yield from verifier.month(month, container.clock.now(), checked)


def _anchor(path: Path | None) -> dict[int, bytes] | None:
    if path is None:
        return None
    try:
        return parse_anchor(path.read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        remedy = f"it cannot be read ({error}); use a file of: billing seals export"
        raise InvalidValue("anchor", str(path), remedy) from None


def _document(
    months: list[Period],
    checked: Checked,
    head: Seal | None,
    findings: list[VerifyFinding],
    *,
    anchored: bool,
) -> dict[str, Any]:
    return {
        "ok": not findings,
        "months": [month.label for month in months],
        **document_of(checked, "rows rows_without_a_seal_yet=waiting hours seals"),
        "anchored": anchored,
        "head": seal_document(head),
        "findings": findings,
    }


def _print_head(head: Seal | None, json: bool) -> None:
    line = anchor_line(head.number, head.hash) if head else "nothing is sealed yet"
    show(json, seal_document(head), lambda: say(line))


def _print(
    months: list[Period], checked: Checked, head: Seal | None, findings: list[VerifyFinding]
) -> None:
    for finding in findings[:_MOST_SHOWN]:
        _print_finding(finding)
    if len(findings) > _MOST_SHOWN:
        say(f"and {len(findings) - _MOST_SHOWN:,} more findings; --json has all")
    span = months[0].label if len(months) == 1 else f"{len(months)} months"
    say(
        f"checked: {span}, {checked.rows:,} rows in {checked.hours:,} hours under "
        f"{checked.seals:,} seals"
        + (f"; {checked.waiting:,} rows have no seal yet" if checked.waiting else "")
    )
    if head is not None:
        say(f"newest seal: {head.number}, {head.hash.hex()}")
    if findings:
        counts = Counter(finding.kind for finding in findings)
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))
        say(f"NOT as it was logged: {kinds}", style="bold red")
    else:
        say("every row is the one that was logged", style="bold")


def _print_finding(finding: VerifyFinding) -> None:
    what: list[str] = [finding.kind]
    if finding.event_id is not None:
        what.append(str(finding.event_id))
    if finding.hour is not None:
        what.append(f"hour {instant(finding.hour)} UTC")
    if finding.seal is not None:
        what.append(f"seal {finding.seal}")
    say(" · ".join(what), style="bold")
    whose = [each for each in (finding.customer, finding.sku) if each]
    whose += [f"task {finding.task_id}"] if finding.task_id else []
    if whose:
        say(f"  {', '.join(whose)}")
    say(f"  {finding.words}")
    say(f"  {finding.money}")
