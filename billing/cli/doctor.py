"""``billing doctor``: every server, version, setting and lag, with the remedy."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import typer
from rich.text import Text

from billing.cli.context import Json, container_of
from billing.cli.output import Column, print_json, print_table, say
from billing.health.doctor import examine
from billing.health.rules import HealthFinding, Level, worst

_STYLES: Final = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def doctor(context: typer.Context, json: Json = False) -> None:
    """Check every server, version, setting and lag; say what each fault means and how to mend it.

    Exits with 1 if any check fails.
    """
    findings = examine(container_of(context))
    level = worst(findings)
    if json:
        print_json({"level": level.value, "checks": [asdict(each) for each in findings]})
    else:
        _print(findings, level)
    if level is Level.FAIL:
        raise typer.Exit(1)


def _print(findings: list[HealthFinding], level: Level) -> None:
    print_table(
        "Doctor",
        [Column("check"), Column("verdict"), Column("found")],
        [
            (each.check, Text(each.level.value, style=_STYLES[each.level]), each.found)
            for each in findings
        ],
    )
    for each in findings:
        if each.level is not Level.OK:
            say(f"{each.level.value}: {each.check}: {each.meaning}", style=_STYLES[each.level])
            say(f"  remedy: {each.remedy}")
    if level is Level.OK:
        say("all is well", style="green")
