"""One run: the load, the faults of the schedule one after the other, the drain, the verdict."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from billing.devtools.embedded_servers.launch import Say
from lab.chaos.catalogue import PROBE
from lab.chaos.ceiling import Ceiling
from lab.chaos.checker import Broken, Rule, check
from lab.chaos.drain import Collected, collect
from lab.chaos.faults.base import Fault
from lab.chaos.faults.registry import SPECS
from lab.chaos.ground import PROGRAMS, Ground
from lab.chaos.load import Load
from lab.chaos.schedule import Turn

_RECOVERY_SECONDS: Final = 90.0
_POLL_SECONDS: Final = 0.05
_TAIL_LOSING: Final = frozenset({"redis-killed", "redis-replica-promoted"})
_WARM_UP_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What became of one turn. ``seconds``: from its beginning until it was undone."""

    turn: Turn
    hits: int
    seconds: float
    recovery_seconds: float | None
    error: str = ""


@dataclass(slots=True, kw_only=True)
class Result:
    """What became of a run."""

    seed: int
    told: list[Told] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    collected: Collected | None = None
    submitted: int = 0
    refused: int = 0
    hung: int = 0
    ceiling_looks: int = 0
    most_leases: int = 0
    seconds: float = 0.0

    def count(self, rule: Rule) -> int:
        """How often an invariant is broken."""
        return sum(1 for each in self.broken if each.rule is rule)


def run(
    folder: Path,
    seed: int,
    schedule: Iterable[Turn],
    *,
    per_second: float,
    until: float,
    say: Say,
    keep: bool,
) -> Result:
    """Run the schedule.

    Args:
        folder: For this run alone.
        seed: Decides the load; the schedule has its own from it.
        schedule: What is done.
        per_second: Submissions.
        until: No turn begins after this instant of ``time.monotonic()``.
        say: Takes lines about what is going on.
        keep: Leave logs and the file of truth.

    Raises:
        ChaosError: The ground could not be made, or did not drain.
    """
    began = time.monotonic()
    result = Result(seed=seed)
    with Ground(folder, say, keep=keep) as ground:
        load, ceiling = Load(ground, seed, per_second), Ceiling(ground.container.quota)
        load.start()
        ceiling.start()
        try:
            time.sleep(_WARM_UP_SECONDS)
            for turn in schedule:
                if time.monotonic() > until:
                    break
                time.sleep(turn.gap_seconds)
                say(f"{turn.number:3} {turn.fault} …")
                ceiling.tail_lost |= turn.fault in _TAIL_LOSING
                told = _take(ground, load, turn)
                result.told.append(told)
                say(_line(told))
        finally:
            load.stop()
        say("drain")
        ground.supervisor.await_ready(*PROGRAMS)
        sent = [each.task_id for each in load.sent]
        result.collected = collect(ground, sent, tail_lost=ceiling.tail_lost)
        ceiling.stop()
        result.submitted, result.refused = len(sent), load.refused
        result.hung = len(ground.supervisor.hung)
    result.ceiling_looks, result.most_leases = ceiling.looked, ceiling.most_leases
    result.broken = [
        *_of_turns(result.told),
        *(Broken(rule=Rule.CEILING, detail=str(each)) for each in ceiling.found),
        *_shown(result, ceiling),
        *check(result.collected.evidence),
    ]
    result.seconds = time.monotonic() - began
    return result


def _take(ground: Ground, load: Load, turn: Turn) -> Told:
    fault = SPECS[turn.fault].make(ground, load, turn)
    began = time.monotonic()
    # Ctrl-C heals nothing: the ground is taken away as a whole.
    error = _tried(fault.inject) or _tried(fault.during)
    error = "; ".join(filter(None, (error, _tried(fault.heal))))
    seconds = time.monotonic() - began
    recovery = _recover(ground, load)
    return Told(
        turn=turn,
        hits=_hits(fault),
        seconds=seconds,
        recovery_seconds=recovery,
        error=error,
    )


def _tried(step: Callable[[], None]) -> str:
    """Take a step; what went wrong. One fault that fails must not hide the others."""
    try:
        step()
    except Exception as caught:  # noqa: BLE001 - as the docstring says
        where = traceback.extract_tb(caught.__traceback__)[-1]
        return f"{type(caught).__name__}: {caught} ({Path(where.filename).name}:{where.lineno})"
    return ""


def _hits(fault: Fault) -> int:
    try:
        return fault.hits()
    except Exception:  # noqa: BLE001 - a fault that failed half-way has nothing to show
        return 0


def _recover(ground: Ground, load: Load) -> float | None:
    """Seconds until a new task's event is in the log; None: it did not come."""
    began = time.monotonic()
    task: str | None = None
    while time.monotonic() - began < _RECOVERY_SECONDS:
        try:
            task = task or load.send("page", PROBE)
            outcome = ground.ends_in_log(task) if task is not None else ""
            if outcome == "succeeded":
                return time.monotonic() - began
            if outcome:
                # Refused, because its balance could not be known for too long: another one.
                task = None
        except Exception:  # noqa: BLE001, S110 - a server is coming back; asked again at once
            pass
        time.sleep(_POLL_SECONDS)
    return None


def _of_turns(told: Iterable[Told]) -> list[Broken]:
    found = []
    for each in told:
        name = f"{each.turn.number} {each.turn.fault}"
        if each.hits < each.turn.hits or each.error:
            detail = f"{name}: {each.hits} of {each.turn.hits} hits {each.error}".rstrip()
            found.append(Broken(rule=Rule.NOT_SHOWN, detail=detail))
        if each.recovery_seconds is None:
            found.append(Broken(rule=Rule.NOT_RECOVERED, detail=name))
    return found


def _shown(result: Result, ceiling: Ceiling) -> list[Broken]:
    """What a run must have had to show anything: runs from leases, and a watch on the ceiling."""
    missing = []
    if result.collected is None or not result.collected.leased_runs:
        missing.append("no run was admitted from a lease")
    if not ceiling.looked or not ceiling.watched_to_the_end:
        missing.append("the ceiling was not watched to the end")
    return [Broken(rule=Rule.NOT_SHOWN, detail=each) for each in missing]


def _line(told: Told) -> str:
    seconds = told.recovery_seconds
    recovered = "NOT RECOVERED" if seconds is None else f"recovered in {seconds:.1f} s"
    line = (
        f"{told.turn.number:3} {told.turn.fault:32} {told.hits:5} hits, "
        f"{told.seconds:5.1f} s, {recovered}"
    )
    return f"{line}  {told.error}" if told.error else line
