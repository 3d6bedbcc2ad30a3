"""What a run came to: a table for people, JSON for tools. Pure."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lab.chaos.checker import Rule
from lab.chaos.run import Result, Told

_SHOWN_BROKEN: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """All turns of one fault. Recovery in seconds: the median and the longest."""

    fault: str
    turns: int
    hits: int
    lasted_seconds: float
    recovery_median: float | None
    recovery_longest: float | None


def lines(result: Result) -> list[Line]:
    """By fault, in order of their names."""
    turns: dict[str, list[Told]] = defaultdict(list)
    for told in result.told:
        turns[told.turn.fault].append(told)
    return [_of(fault, each) for fault, each in sorted(turns.items())]


def _of(fault: str, told: list[Told]) -> Line:
    recovered = sorted(t.recovery_seconds for t in told if t.recovery_seconds is not None)
    return Line(
        fault=fault,
        turns=len(told),
        hits=sum(each.hits for each in told),
        lasted_seconds=round(sum(each.seconds for each in told), 1),
        recovery_median=round(recovered[len(recovered) // 2], 2) if recovered else None,
        recovery_longest=round(recovered[-1], 2) if recovered else None,
    )


def figures(result: Result) -> dict[str, Any]:
    """The figures of a run, JSON-friendly."""
    collected = result.collected
    found: dict[str, Any] = {
        "seed": result.seed,
        "seconds": round(result.seconds, 1),
        "faults_injected": len(result.told),
        "hits": sum(told.hits for told in result.told),
        "events_lost": result.count(Rule.LOST),
        "charged_twice": result.count(Rule.TWICE),
        "holds_leaked": result.count(Rule.LEAKED),
        "above_the_ceiling": result.count(Rule.CEILING),
        "accounts_looked_at": result.ceiling_looks,
        "most_leases_of_a_customer": result.most_leases,
        "tasks_submitted": result.submitted,
        "submissions_refused": result.refused,
        "hung_workers_restarted": result.hung,
    }
    if collected is not None:
        found |= {
            "tasks_run": collected.tasks_run,
            "bodies_run": collected.bodies_run,
            "runs_from_leases": collected.leased_runs,
            "lines_logged": collected.rows,
            "denials": collected.denials,
            "dead_letters": dict(collected.letters),
            "drain_seconds": round(collected.drain_seconds, 1),
            "repaired_after_lost_tail": dict(collected.repaired),
        }
    return found


def as_json(result: Result) -> str:
    """Everything, for tools."""
    told = [asdict(each) for each in result.told]
    broken = [asdict(each) for each in result.broken]
    return json.dumps(
        {
            "figures": figures(result),
            "faults": [asdict(line) for line in lines(result)],
            "broken": broken,
            "turns": told,
        },
        indent=2,
    )


def table(result: Result) -> RenderableType:
    """For people."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("fault")
    for name in ("turns", "hits", "lasted", "recovered in", "longest"):
        shown.add_column(name, justify="right")
    for line in lines(result):
        shown.add_row(
            line.fault,
            str(line.turns),
            f"{line.hits:,}",
            f"{line.lasted_seconds:.1f} s",
            _seconds(line.recovery_median),
            _seconds(line.recovery_longest),
        )
    sums = Table(box=None, show_header=False, pad_edge=False)
    for name, value in figures(result).items():
        sums.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    return Group(shown, sums, Text(), *_verdict(result))


def _verdict(result: Result) -> list[Text]:
    if not result.broken:
        return [Text("Every invariant holds, and every fault was shown to have hit.", "green")]
    texts = [Text(f"{len(result.broken)} broken:", "red")]
    texts += [
        Text(f"  {each.rule.value}: {each.task_id} {each.detail}", "red")
        for each in result.broken[:_SHOWN_BROKEN]
    ]
    return texts


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
