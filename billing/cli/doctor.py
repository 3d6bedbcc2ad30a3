"""``billing doctor``: every server, version, setting and lag, with the remedy."""

from __future__ import annotations

from typing import Final

import typer
from rich.text import Text

from billing.cli.context import Json, container_of
from billing.cli.output import Column, print_json, print_table, say
from billing.health.doctor import examine
from billing.health.finding import HealthFinding, Level, worst

_STYLES: Final = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def doctor(context: typer.Context, json: Json = False) -> None:
    """Check every server, version, setting and lag; say what each fault means and how to mend it.

    Exits with 1 if any check fails.
    """
    findings = examine(container_of(context))
    level = worst(findings)
    if json:
        print_json({"level": level, "checks": findings})
    else:
        _print(findings)
    if level is Level.FAIL:
        raise typer.Exit(1)


def _print(findings: list[HealthFinding]) -> None:
    verdict = Column("verdict", lambda one: Text(one.level, style=_STYLES[one.level]))
    print_table("Doctor", [Column("check"), verdict, Column("found")], findings)
    faults = [each for each in findings if each.level is not Level.OK]
    for each in faults:
        say(f"{each.level}: {each.check}: {each.meaning}", style=_STYLES[each.level])
        say(f"  remedy: {each.remedy}")
    if not faults:
        say("all is well", style="green")
