"""``python -m lab.demo``: run it. Exits with 0 if all is well, 1 if not, 130 on Ctrl-C."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from rich.text import Text

from billing.core.errors import WeighbridgeError
from billing.devtools.embedded_servers import LocalServers
from billing.settings import Settings
from lab.demo.children import Children
from lab.demo.errors import DemoError
from lab.demo.interrupts import Interrupts
from lab.demo.report import print_next
from lab.demo.run import SUMMARY, Demo
from lab.demo.stages import make_console

_INTERRUPTED = 130


def main() -> int:
    """Run the demo in ``.local/demo``; its exit code."""
    console = make_console()
    given = Settings()
    folder = (given.local_dir / "demo").resolve()
    interrupts = Interrupts()
    try:
        with interrupts.handled(), _alone(folder):
            _start_anew(folder)
            _log_to(folder / "demo.log")
            console.print(Text("Weighbridge: the demo\n", style="bold"))
            demo = Demo(console, folder, given, interrupts)
            well = demo.run()
    except KeyboardInterrupt:
        console.print("Interrupted.")
        return _INTERRUPTED
    except WeighbridgeError as error:
        console.print(Text(f"\nThe demo could not go on: {error}", style="red"))
        return 1
    figures = _shown(folder / SUMMARY)
    seconds = f"{demo.stages.elapsed_seconds:.0f} s"
    console.print(f"\n{seconds} altogether; the figures are in {figures}.", soft_wrap=True)
    if demo.ground.keeps_data:
        print_next(console, _commands(folder, demo.denied_task))
    return 0 if well else 1


def _commands(folder: Path, denied_task: str | None) -> dict[str, str]:
    billing = _shown(Path(sys.executable).with_name("billing"))
    explain = {f"{billing} explain {denied_task}": "why it was denied"} if denied_task else {}
    return {
        f"export WEIGHBRIDGE_LOCAL_DIR={_shown(folder)}": "look at this run's data",
        f"{billing} local start": "start its servers again",
        f"{billing} receipt corvus": "a customer's lines",
        f"{billing} usage borealis --by sku": "totals, from the rollups",
        **explain,
        f"{billing} local stop": "stop the servers",
    }


def _shown(path: Path) -> str:
    """Relative to where we are, where it is below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One demo in a folder at a time.

    Raises:
        DemoError: There is another.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"another demo is running in {folder}") from None
        yield


def _start_anew(folder: Path) -> None:
    """End what a killed demo left running and delete what the last one wrote."""
    Children(folder).end_leftovers()
    LocalServers(folder).remove()
    folder.mkdir(parents=True)


def _log_to(file: Path) -> None:
    """What the engine logs in this process goes to a file, not between the bars."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(file.open("a", buffering=1)))


if __name__ == "__main__":
    sys.exit(main())
