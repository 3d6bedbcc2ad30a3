"""The processes of the demo: started with logs of their own, watched, and ended by pid.

Each runs in a session of its own, so that Ctrl-C in the terminal reaches the demo alone, which then
ends them in order. They are written down, so that the next demo can end what a killed one left.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from billing.devtools.embedded_servers.process import (
    Command,
    Process,
    end,
    interrupts_deferred,
    spawn,
)
from billing.devtools.embedded_servers.state import ServerRecord, ServersFile
from lab.demo.errors import DemoError

POLL_SECONDS: Final = 0.05
_TAIL_LINES: Final = 25
_STOP_SECONDS: Final = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One process to start; ``ready`` says whether its log shows that it is at work."""

    name: str
    arguments: Sequence[str]
    ready: Callable[[str], bool]
    start_seconds: float = 60.0


def _nothing() -> None:
    """What is checked beside the processes when nobody asks for more."""


class Children:
    """The demo's processes.

    Args:
        folder: Gets their logs, ``<name>.log``, and the list of what runs.
        check_also: Called by every ``check``; may raise.
    """

    def __init__(self, folder: Path, check_also: Callable[[], None] = _nothing) -> None:
        self._check_also = check_also
        self._folder = folder
        self._state = ServersFile(folder / "processes")
        self._running: dict[str, Process] = {}

    def end_leftovers(self) -> list[str]:
        """End what an earlier demo in this folder left running; their names."""
        if not self._state.exists:
            return []
        records = [record for record in self._state.records().values() if record.alive]
        end([process for record in records for process in record.processes])
        return [record.name for record in records]

    def start(self, program: Program, environment: Mapping[str, str]) -> None:
        """Start one; returns at once.

        Args:
            program: What.
            environment: Set for it beside this process's own environment.

        Raises:
            LocalServerError: It could not be started.
        """
        self._state.folder.mkdir(parents=True, exist_ok=True)
        command = Command(
            program.name,
            program.arguments,
            Path.cwd(),
            self.log_of(program.name),
            {**os.environ, **environment},
            stop_signal=signal.SIGTERM,
        )
        with interrupts_deferred():
            process = spawn(command)
            self._state.put(ServerRecord(program.name, processes=(process,)))
            self._running[program.name] = process

    def wait_ready(self, *programs: Program) -> None:
        """Wait until the log of each says that it is at work.

        Raises:
            DemoError: One has ended, or takes too long; with the end of its log.
        """
        for program in programs:
            self.wait(
                partial(self._is_ready, program),
                program.start_seconds,
                partial(self._not_started, program.name),
            )

    def wait(self, done: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
        """Wait until something is done, watching the processes meanwhile.

        Args:
            done: Whether it is.
            seconds: How long at the most.
            what: Makes the words for it, for the error.

        Raises:
            DemoError: A process has ended, or the time is up.
        """
        deadline = time.monotonic() + seconds
        while not done():
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"waited {seconds:g} s for {what()}")
            time.sleep(POLL_SECONDS)

    def check(self) -> None:
        """See that all of them run.

        Raises:
            DemoError: One has ended; with the end of its log.
        """
        self._check_also()
        for name, process in self._running.items():
            if not process.alive:
                raise DemoError(f"the {name} has ended\n{self.tail(name)}")

    def stop(self) -> None:
        """End all, and wait for them."""
        with interrupts_deferred():
            end(list(self._running.values()), timeout_seconds=_STOP_SECONDS)
            for name in self._running:
                self._state.forget(name)
            self._running.clear()

    def log_of(self, name: str) -> Path:
        """Where the output of one goes."""
        return self._folder / f"{name}.log"

    def tail(self, name: str) -> str:
        """The end of the log of one, under its path."""
        lines = self._log(name).splitlines()[-_TAIL_LINES:]
        return "\n".join([f"{self.log_of(name)} ends with:", *(f"  {line}" for line in lines)])

    def _not_started(self, name: str) -> str:
        return f"the {name} to start\n{self.tail(name)}"

    def _is_ready(self, program: Program) -> bool:
        return program.ready(self._log(program.name))

    def _log(self, name: str) -> str:
        try:
            return self.log_of(name).read_text("utf-8", "replace")
        except FileNotFoundError:
            return ""
