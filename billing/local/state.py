"""What is running, written down: ``servers.json``, and the lock around every change of it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from billing.local.process import LocalServerError, Process, started_at

_LOCK_SECONDS: Final = 180.0
"""Longer than the slowest start of all servers together."""
_PRIVATE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Record:
    """One embedded server. ``opened``: folders given an x for others, with their mode before."""

    name: str
    url: str = ""
    processes: tuple[Process, ...] = ()
    opened: tuple[tuple[str, int], ...] = ()

    @property
    def alive(self) -> bool:
        """Whether all of its processes run."""
        return bool(self.processes) and all(process.alive for process in self.processes)


class State:
    """The records of one folder. Passwords are in the URLs, so the file is ours alone to read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "servers.json"
        # Child processes, which only their parent can reap, are not in the file.
        self._children: dict[int, Process] = {}

    def records(self) -> dict[str, Record]:
        """By name. A file that is not ours, or of another version, counts as empty."""
        try:
            return {
                name: Record(
                    name,
                    server["url"],
                    tuple(self._process(process) for process in server["processes"]),
                    tuple((path, mode) for path, mode in server["opened"]),
                )
                for name, server in self._read().get("servers", {}).items()
            }
        except (AttributeError, KeyError, TypeError, ValueError):
            return {}

    def owner_alive(self) -> bool:
        """Whether the process that first wrote here still runs."""
        content = self._read() | changed
        content.setdefault("owner", {"pid": os.getpid(), "started": started_at(os.getpid())})
        content["servers"] = {record.name: _stored(record) for record in records.values()}
        write_private(self._file, json.dumps(content, indent=1))


def _stored(record: Record) -> dict[str, Any]:
    processes = [
        {"name": p.name, "pid": p.pid, "started": p.started, "stop_signal": int(p.stop_signal)}
        for p in record.processes
    ]
    return {"url": record.url, "processes": processes, "opened": [list(o) for o in record.opened]}


def secret(file: Path) -> str:
    """The password in ``file``; made, for its owner's eyes only, at the first time."""
    with contextlib.suppress(FileNotFoundError):
        return file.read_text()
    password = os.urandom(18).hex()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_private(file, password)
    return password


def write_private(file: Path, content: str) -> None:
    """Write a file that only its owner may read; whole or not at all."""
    draft = file.with_name(f"{file.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE), "w") as out:
        out.write(content)
    draft.replace(file)
