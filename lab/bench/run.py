"""``make bench``: measure, print one table, write ``.local/bench/latest.json``.

Exits with 0 if everything was measured, 1 if not, 130 on Ctrl-C. With ``--check`` 1 also stands for
a ratio that has fallen by half since the committed figures.
"""

from __future__ import annotations

import argparse
import fcntl
import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

import structlog
from rich.console import Console

from billing.core.errors import WeighbridgeError
from billing.settings import Settings
from lab.bench import (
    consume,
    ingest,
    leases,
    machine,
    overhead,
    questions,
    quota,
    reporting,
    soak,
    transport,
)
from lab.bench.check import both_times, fallen, unchecked
from lab.bench.effort import CHECK, FULL, QUICK, Effort, Outcome
from lab.bench.errors import BenchError
from lab.bench.ground import Ground, Say
from lab.bench.page import is_of, page, plot, suites_of
from lab.bench.report import (
    Context,
    Figure,
    as_json,
    caveats,
    from_records,
    records,
    table,
)

Suite = Callable[[Ground, Effort, Say], Outcome]

SUITES: Final[dict[str, Suite]] = {
    quota.NAME: quota.run,
    leases.NAME: leases.run,
    transport.NAME: transport.run,
    ingest.NAME: ingest.run,
    consume.NAME: consume.run,
    overhead.NAME: overhead.run,
    questions.NAME: questions.run,
    reporting.NAME: reporting.run,
}
ON_REQUEST: Final[dict[str, Suite]] = {soak.NAME: soak.run}
"""Only measured when named: they take their time. First: they tell of memory, whatever else the
machine does meanwhile."""
CHECKED: Final = (quota.NAME, leases.NAME, ingest.NAME, consume.NAME, overhead.NAME)
NEED_RABBITMQ: Final = frozenset({transport.NAME, consume.NAME, overhead.NAME, soak.NAME})
RESULTS: Final = "latest.json"
CONTEXT: Final = "context.json"
_ROOT: Final = Path(__file__).resolve().parents[2]
_DOCS: Final = _ROOT / "docs"
_RESULTS: Final = _ROOT / "lab" / "bench" / "results"
_WIDTH: Final = 120
_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; the exit code."""
    asked = _parse(arguments)
    out, err = _console(stderr=False), _console(stderr=True)
    given = Settings()
    folder = (given.local_dir / "bench").resolve()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    began = time.monotonic()
    try:
        with _alone(folder):
            structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
            if asked.check:
                return _check(asked, folder, given, err)
            figures, context, notes = _measure(asked, folder, given, err)
            _write(folder, figures, context, notes)
            if asked.page:
                _write_page(figures, context, notes)
    except KeyboardInterrupt:
        err.print("Interrupted; nothing was reported.")
        return _INTERRUPTED
    except WeighbridgeError as error:
        err.print(f"The benchmark could not go on: {error}", style="red")
        return 1
    out.print(table(figures, context, notes))
    seconds = time.monotonic() - began
    out.print(f"{seconds:.0f} s altogether; the figures are in {_shown(folder / RESULTS)}.")
    return 0


def _check(asked: argparse.Namespace, folder: Path, given: Settings, err: Console) -> int:
    """Compare with the committed figures; what has fallen is measured once more.

    Raises:
        BenchError: There are no committed figures.
    """
    try:
        committed = json.loads(asked.against.read_text("utf-8"))
    except FileNotFoundError:
        raise BenchError(
            f"no figures in {_shown(asked.against)}; make bench ARGS=--page writes them"
        ) from None
    asked.suite = asked.suite or list(CHECKED)
    figures, context, notes = _measure(asked, folder, given, err)
    _write(folder, figures, context, notes)
    found = records(figures)
    missing = unchecked(asked.suite, found, committed)
    falls = fallen(found, committed)
    if falls and not missing:
        for fall in falls:
            err.print(f"once more: {fall.told()}")
        asked.suite = sorted({fall.suite for fall in falls})
        again, *_ = _measure(asked, folder, given, err)
        falls = both_times(falls, fallen(records(again), committed))
    for suite in missing:
        err.print(f"FAILED: {suite}: nothing was compared with {_shown(asked.against)}")
    for fall in falls:
        err.print(f"FAILED: {fall.told()}", style="red")
    if missing or falls:
        return 1
    err.print(f"No ratio has fallen by half since {_shown(asked.against)}.")
    return 0


def _measure(
    asked: argparse.Namespace, folder: Path, given: Settings, err: Console
) -> tuple[list[Figure], Context, list[str]]:
    figures: list[Figure] = []
    notes: list[str] = []
    load_before = machine.load()
    with err.status("servers") as status:

        def say(suite: str, what: str) -> None:
            status.update(f"{suite}: {what}")

        with Ground(folder / "work", given, partial(say, "servers")) as ground:
            suites = {**ON_REQUEST, **SUITES}
            for name in _names(asked):
                if name in NEED_RABBITMQ and not ground.on_rabbitmq:
                    notes.append(f"{name}: NOT MEASURED, there is no RabbitMQ.")
                    continue
                began = time.monotonic()
                outcome = suites[name](ground, _effort(asked), partial(say, name))
                figures += outcome.figures
                notes += outcome.notes
                # Should a later suite fail, hours of others are not lost.
                (folder / RESULTS).write_text(as_json(figures), "utf-8")
                err.print(f"{name}: {time.monotonic() - began:.1f} s")
            with ground.container(ground.settings("context")) as container:
                context = machine.context(container, load_before)
    if ground.left:
        err.print("Left behind: " + "; ".join(ground.left), style="red")
    return figures, context, [*caveats(context, quick=asked.quick or asked.check), *notes]


def _names(asked: argparse.Namespace) -> list[str]:
    """The suites to measure, in their order; a page is not whole without those on request."""
    suites = {**ON_REQUEST, **SUITES}
    wanted = asked.suite or (suites if asked.page else SUITES)
    return [name for name in suites if name in wanted]


def _effort(asked: argparse.Namespace) -> Effort:
    effort = CHECK if asked.check else QUICK if asked.quick else FULL
    seconds = asked.soak_seconds
    return effort if seconds is None else replace(effort, soak_seconds=seconds)


def _write(folder: Path, figures: Sequence[Figure], context: Context, notes: Sequence[str]) -> None:
    about = {**asdict(context), "caveats": list(notes)}
    (folder / CONTEXT).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    (folder / RESULTS).write_text(as_json(figures), "utf-8")


def _write_page(figures: Sequence[Figure], context: Context, notes: Sequence[str]) -> None:
    """The page of this run, its plots, and its figures for machines.

    Suites that were not measured this time keep the figures that the page had.
    """
    _RESULTS.mkdir(parents=True, exist_ok=True)
    figures, notes = with_earlier(figures, notes, _RESULTS)
    about = {**asdict(context), "caveats": list(notes)}
    (_RESULTS / RESULTS).write_text(as_json(figures), "utf-8")
    (_RESULTS / CONTEXT).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    for suite, own in suites_of(figures):
        (_DOCS / f"benchmarks-{suite}.svg").write_text(plot(suite, own), "utf-8")
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    text = page(figures, context, notes, today, _methods())
    (_DOCS / "benchmarks.md").write_text(text, "utf-8")


def with_earlier(
    figures: Sequence[Figure], notes: Sequence[str], folder: Path
) -> tuple[list[Figure], list[str]]:
    """These figures and notes, and those of the other suites that a folder of results has.

    Args:
        figures: Of this run.
        notes: Its caveats.
        folder: Of the page before; it may be empty.
    """
    order = [*ON_REQUEST, *SUITES]
    measured = {figure.suite for figure in figures}
    try:
        before = from_records(json.loads((folder / RESULTS).read_text("utf-8")))
        told: list[str] = json.loads((folder / CONTEXT).read_text("utf-8"))["caveats"]
    except FileNotFoundError:
        return list(figures), list(notes)
    kept = [each for each in before if each.suite not in measured and each.suite in order]
    names = [name for name in order if name in {each.suite for each in kept}]
    if not names:
        return list(figures), list(notes)
    of_kept = [note for note in told if any(is_of(note, name) for name in names)]
    said = f"Of an earlier run on this machine: {', '.join(names)}. Its load is not told here."
    return (
        sorted([*figures, *kept], key=lambda each: order.index(each.suite)),
        [*notes, *of_kept, said],
    )


def _methods() -> dict[str, str]:
    """What each suite says of itself, as Markdown."""
    told = {}
    for name, suite in {**ON_REQUEST, **SUITES}.items():
        text = inspect.cleandoc(sys.modules[suite.__module__].__doc__ or "")
        text = text.removeprefix(f"Suite {name}: ").replace("``", "`")
        told[name] = text[:1].upper() + text[1:]
    return told


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description="Measure what metering costs.")
    parser.add_argument("--quick", action="store_true", help="short rounds: to see that it works")
    parser.add_argument(
        "--page",
        action="store_true",
        help="every suite, and write docs/benchmarks.md and lab/bench/results",
    )
    parser.add_argument(
        "--suite",
        action="append",
        choices=[*SUITES, *ON_REQUEST],
        help=f"only this one; may be repeated ({', '.join(ON_REQUEST)}: only when named)",
    )
    parser.add_argument("--soak-seconds", type=float, help="of suite soak; 20 minutes without")
    parser.add_argument(
        "--check",
        action="store_true",
        help="short, and compared with the committed figures: for a build",
    )
    parser.add_argument(
        "--against", type=Path, default=_RESULTS / RESULTS, help="the figures to check against"
    )
    asked = parser.parse_args(arguments)
    if asked.page and (asked.quick or asked.check):
        parser.error("short rounds make no page")
    return asked


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH
    return console


def _shown(file: Path) -> str:
    return os.path.relpath(file)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Ended from outside is ended as by Ctrl-C: everything is stopped."""
    raise KeyboardInterrupt


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One benchmark in a folder at a time: two would measure each other.

    Raises:
        BenchError: There is another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchError(f"another benchmark is running in {folder}") from None
        yield


if __name__ == "__main__":
    sys.exit(main())
