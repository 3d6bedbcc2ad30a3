"""The record of servers that run: ``servers.json``, and the lock around every change of it."""

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

from billing.devtools.embedded_servers.process import LocalServerError, Process
from billing.server_urls import started_at

_LOCK_SECONDS: Final = 180.0
"""Longer than the slowest start of a server."""
_PRIVATE: Final = 0o600


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """One embedded server. ``opened``: folders given an x for others, with their mode before."""

    name: str
    url: str = ""
    processes: tuple[Process, ...] = ()
    opened: tuple[tuple[str, int], ...] = ()

    @property
    def alive(self) -> bool:
        """Whether all of its processes run."""
        return bool(self.processes) and all(process.alive for process in self.processes)


class ServersFile:
    """The records of one folder. Passwords are in the URLs, so the file is ours alone to read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "servers.json"
        # Handles of child processes, which only their parent can reap; not in the file.
        self._children: dict[int, Process] = {}

    @property
    def exists(self) -> bool:
        """Whether anything was ever started here."""
        return self._file.exists()

    def records(self) -> dict[str, ServerRecord]:
        """By name. A file that is not ours, or of another version, counts as empty."""
        try:
            return {
                name: ServerRecord(
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
        owner = self._read().get("owner")
        return owner is not None and started_at(owner["pid"]) == owner["started"]

    def broker_url(self) -> str | None:
        """The message broker that the servers were last started with, whoever runs it."""
        url = self._read().get("broker_url")
        return url if isinstance(url, str) else None

    def put_broker_url(self, url: str | None) -> None:
        """Write it down; None forgets it."""
        if self.exists or url is not None:
            self._write(self.records(), broker_url=url)

    def put(self, record: ServerRecord) -> None:
        """Write one record, in place of the last of its name."""
        for process in record.processes:
            self._children[process.pid] = process
        self._write(self.records() | {record.name: record})

    def forget(self, name: str) -> None:
        """Drop one record."""
        records = self.records()
        if records.pop(name, None):
            self._write(records)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time.

        Raises:
            LocalServerError: Another one has not finished in three minutes.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _LOCK_SECONDS
        with (self.folder / "servers.lock").open("a") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise LocalServerError(
                            "local servers",
                            f"another process is starting or stopping them in {self.folder}",
                            "wait for it, or end it",
                        ) from None
                    time.sleep(0.1)
            yield

    def _process(self, stored: dict[str, Any]) -> Process:
        process = Process(**stored)
        mine = self._children.get(process.pid)
        return replace(process, child=mine.child) if mine == process else process

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _write(self, records: dict[str, ServerRecord], **changed: object) -> None:
        content = self._read() | changed
        content.setdefault("owner", {"pid": os.getpid(), "started": started_at(os.getpid())})
        content["servers"] = {record.name: _stored(record) for record in records.values()}
        write_private(self._file, json.dumps(content, indent=1))


def _stored(record: ServerRecord) -> dict[str, Any]:
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
