"""``make chaos``: faults against the real system under load, then the invariants.

Exits with 0 if every invariant holds and every fault was shown to have hit, 1 if not, 130 on
Ctrl-C. The same seed is the same schedule.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import math
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

import structlog
from rich.console import Console

from billing.core.errors import WeighbridgeError
from billing.settings import Settings
from lab.chaos.errors import ChaosError
from lab.chaos.faults.base import Spec
from lab.chaos.faults.registry import SPECS
from lab.chaos.report import as_json, table
from lab.chaos.run import run
from lab.chaos.schedule import turns

_INTERRUPTED: Final = 130
_WIDTH: Final = 100
_SEEDS: Final = 2**31
_QUICK_FAULTS: Final = (
    "child@everywhere",
    "worker-killed",
    "child@leases-everywhere",
    "worker@leases-everywhere",
    "relay@everywhere",
    "relay@left.after_settle",
    "consumer@everywhere",
    "hard-limit",
    "leased-hard-limit",
    "rabbitmq-killed",
    "redis-flushed",
    "redis-killed",
    "postgres-killed-mid-copy",
    "postgres-killed-unacknowledged",
    "network-cut",
    "network-half-open",
    "delivered-repeatedly",
    "jobs-killed",
)
"""The quick form: each main part is killed once or more, within some minutes."""
_SHORT_FAULTS: Final = (
    "child@flush.after",
    "worker@flush.before",
    "relay@relay.after_publish",
    "consumer@consumer.after_commit",
    "rabbitmq-killed",
    "redis-flushed",
    "postgres-killed-mid-copy",
)
"""The short form, for every change: one death of each part, those of leaseholders among them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; the exit code."""
    asked = _parse(arguments)
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH
    if asked.list:
        for spec in SPECS.values():
            console.print(f"{spec.kind.name:34} {spec.about}")
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    logging.getLogger().setLevel(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        return _run(asked, console)
    except KeyboardInterrupt:
        console.print("Interrupted; everything was stopped, nothing is reported.")
        return _INTERRUPTED
    except WeighbridgeError as error:
        console.print(f"The run could not go on: {error}", style="red")
        return 1


def _run(asked: argparse.Namespace, console: Console) -> int:
    seed = asked.seed if asked.seed is not None else secrets.randbelow(_SEEDS)
    began = time.monotonic()
    console.print(f"seed {seed}: the same faults again with --seed {seed}")

    def say(line: str) -> None:
        console.print(f"[{time.monotonic() - began:6.1f}] {line}")

    folder = (Settings().local_dir / "chaos").resolve()
    until = began + 60 * asked.minutes if asked.minutes else math.inf
    kinds = [spec.kind for spec in _chosen(asked)]
    if asked.short:
        kinds = [replace(kind, hits=1) for kind in kinds]
    schedule = turns(
        seed,
        kinds,
        rounds=asked.rounds,
        quick=asked.quick or asked.short,
        hits=asked.hits,
    )
    with _alone(folder):
        result = run(
            folder / "work",
            seed,
            schedule,
            per_second=asked.rate,
            until=until,
            say=say,
            keep=asked.keep,
        )
    console.print(table(result))
    if asked.json:
        Path(asked.json).write_text(as_json(result) + "\n", "utf-8")
    if result.broken:
        console.print(f"The same again: python -m chaos --seed {seed} (and the same options)")
    return 1 if result.broken else 0


def _chosen(asked: argparse.Namespace) -> list[Spec]:
    if asked.fault:
        return [SPECS[name] for name in asked.fault]
    if asked.short:
        return [SPECS[name] for name in _SHORT_FAULTS]
    if asked.quick:
        return [SPECS[name] for name in _QUICK_FAULTS]
    return list(SPECS.values())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="replays a schedule; by default a new one")
    parser.add_argument("--quick", action="store_true", help="each main fault, some minutes")
    parser.add_argument(
        "--short", action="store_true", help="a death of each part, for CI: about two minutes"
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often all the faults (1)")
    parser.add_argument("--minutes", type=float, help="begin no fault after so many minutes")
    parser.add_argument(
        "--hits", type=int, default=5, help="hits of each fault that can hit often (5)"
    )
    parser.add_argument(
        "--rate", type=float, default=15.0, help="the most submissions per second (15)"
    )
    parser.add_argument(
        "--fault", action="append", choices=list(SPECS), help="only this one; may be repeated",
        metavar="NAME",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="the faults by name")
    parser.add_argument("--json", help="write everything to this file, too")
    parser.add_argument("--keep", action="store_true", help="leave logs in .local/chaos/work")
    return parser.parse_args(arguments)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Ended from outside is ended as by Ctrl-C: everything is stopped."""
    raise KeyboardInterrupt


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One run in a folder at a time.

    Raises:
        ChaosError: There is another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ChaosError(f"another run is under way in {folder}") from None
        yield


if __name__ == "__main__":
    sys.exit(main())
