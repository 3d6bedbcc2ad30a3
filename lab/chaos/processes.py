"""The processes of a run, started again when they die, as a supervisor on a node would."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from billing.devtools.embedded_servers.process import Command, Process, end, spawn
from billing.devtools.embedded_servers.state import ServerRecord, ServersFile
from lab.chaos.errors import ChaosError

_POLL_SECONDS: Final = 0.1
_STOP_SECONDS: Final = 15.0
_READY_SECONDS: Final = 60.0
_HASTE_SECONDS: Final = 0.5
"""No process is started again faster than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One process: what to run, with what in its environment; ``ready`` is in its log then.

    ``silence_seconds``: it hangs, and is killed, if it has written nothing for so long (0: never).
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: str = ""
    silence_seconds: float = 0


@dataclass(slots=True)
class _Kept:
    program: Program
    process: Process | None = None
    began: float = 0.0
    starts: int = 0
    deaths: int = 0
    log_from: int = 0
    wanted: bool = True


class Supervisor:
    """Keeps processes running until told otherwise; their groups end with it.

    Args:
        folder: Logs, and the list of what runs, so that a killed run's processes can be ended.
        working_folder: Of the processes.
        before_start: Called with a program's name right before each start.
    """

    def __init__(
        self,
        folder: Path,
        working_folder: Path,
        before_start: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._folder = folder
        self._cwd = working_folder
        self._before_start = before_start
        self._state = ServersFile(folder)
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.RLock()
        self.hung: list[str] = []
        """Programs that were killed because they hung, by name."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="chaos-supervisor", daemon=True)

    def end_leftovers(self) -> None:
        """End what a killed run left."""
        if self._state.exists:
            for record in self._state.records().values():
                for process in record.processes:
                    if process.alive:
                        _kill_group(process)

    def begin(self) -> None:
        """Watch from now on."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def keep(self, program: Program) -> None:
        """Start a program and keep it running; one of the same name is killed and replaced."""
        with self._lock:
            kept = self._kept.setdefault(program.name, _Kept(program))
            if kept.process is not None and kept.process.alive:
                _kill_group(kept.process)
            kept.program, kept.wanted = program, True
            self._start(kept)

    def amend(self, program: Program) -> None:
        """What a program is started as from its next life on; this one goes on."""
        with self._lock:
            self._kept[program.name].program = program

    def drop(self, name: str, *, gently: bool = True) -> None:
        """Stop a program and keep it stopped."""
        with self._lock:
            kept = self._kept[name]
            kept.wanted = False
            process = kept.process
        if process is not None and process.alive:
            if gently:
                end([process], timeout_seconds=_STOP_SECONDS)
            _kill_group(process)

    def kill(self, name: str) -> bool:
        """SIGKILL a program with all its children; it is started again. Whether it ran."""
        with self._lock:
            process = self._kept[name].process
            if process is None or not process.alive:
                return False
            _kill_group(process)
            return True

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a program's main process."""
        process = self._kept[name].process
        if process is not None:
            process.send(number)

    def pid(self, name: str) -> int:
        """The process id of a program's main process."""
        process = self._kept[name].process
        if process is None:
            raise ChaosError(f"{name} was never started")
        return process.pid

    def deaths(self, name: str) -> int:
        """How often a program has died so far."""
        return self._kept[name].deaths

    def program(self, name: str) -> Program:
        """What runs under a name now."""
        return self._kept[name].program

    def is_ready(self, name: str) -> bool:
        """Whether the present life of a program has said that it is at work."""
        kept = self._kept[name]
        if kept.process is None or not kept.process.alive:
            return False
        return kept.program.ready in self.text(name)

    def await_ready(self, *names: str, seconds: float = _READY_SECONDS) -> None:
        """Wait until these are at work.

        Raises:
            ChaosError: One is not, in time; with the end of its log.
        """
        deadline = time.monotonic() + seconds
        for name in names:
            while not self.is_ready(name):
                if time.monotonic() > deadline:
                    raise ChaosError(f"{name} does not start:\n{self.text(name)[-2000:]}")
                time.sleep(_POLL_SECONDS)

    def text(self, name: str, *, all_lives: bool = False) -> str:
        """What a program has written, in its present life or in all."""
        try:
            with self.log_of(name).open("rb") as log:
                log.seek(0 if all_lives else self._kept[name].log_from)
                return log.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def log_of(self, name: str) -> Path:
        """Where its output goes."""
        return self._folder / f"{name}.log"

    def close(self) -> None:
        """End all."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)
        running = [kept.process for kept in self._kept.values() if kept.process is not None]
        # Whatever they are doing is thrown away with the servers.
        for process in running:
            _kill_group(process)

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            with self._lock:
                for kept in self._kept.values():
                    if kept.wanted and self._hangs(kept):
                        self.hung.append(kept.program.name)
                        self.kill(kept.program.name)
                    if kept.wanted and (kept.process is None or not kept.process.alive):
                        if time.monotonic() - kept.began < _HASTE_SECONDS:
                            continue
                        kept.deaths += 1
                        self._start(kept)

    def _hangs(self, kept: _Kept) -> bool:
        silence = kept.program.silence_seconds
        if not silence or kept.process is None or time.monotonic() - kept.began < 2 * silence:
            return False
        log = self.log_of(kept.program.name)
        return log.exists() and time.time() - log.stat().st_mtime > silence

    def _start(self, kept: _Kept) -> None:
        program = kept.program
        log = self.log_of(program.name)
        if kept.process is not None:
            # Children of a main process that died by itself.
            _kill_group(kept.process)
        self._before_start(program.name)
        kept.log_from = log.stat().st_size if log.exists() else 0
        kept.began = time.monotonic()
        kept.starts += 1
        kept.process = spawn(
            Command(
                program.name,
                program.arguments,
                self._cwd,
                log,
                {**os.environ, **program.environment},
                stop_signal=signal.SIGTERM,
            )
        )
        self._state.put(ServerRecord(program.name, processes=(kept.process,)))


def _kill_group(process: Process) -> None:
    """SIGKILL a process of ours with all that it started; each has a group of its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + _STOP_SECONDS
    while process.alive and time.monotonic() < deadline:
        time.sleep(0.01)
