"""Processor time of other processes, where the system tells (Linux); beside wall time.

On a machine that does other work too, processor time says what something costs; wall time says how
long it had to wait besides.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import sqlalchemy as sa

_PROC: Final = Path("/proc")
_PARENT, _USER, _SYSTEM = 1, 11, 12
"""Fields of /proc/PID/stat after the name of the program (proc(5): ppid, utime, stime)."""

_BACKENDS: Final = sa.text(
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid IS NOT NULL"
)


def of_process(pid: int) -> float | None:
    """Seconds that a process has used since it began; None where nobody tells."""
    fields = _stat(pid)
    if not fields:
        return None
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and its children; empty where nobody tells."""
    pids = [int(entry.name) for entry in _PROC.glob("[0-9]*")]
    return [each for each in pids if each == pid or (_stat(each) or "  ")[_PARENT] == str(pid)]


def of_family(pid: int) -> float:
    """Seconds that a process and the children it has now have used; 0 where nobody tells."""
    return sum(of_process(each) or 0.0 for each in family(pid))


def _stat(pid: int) -> list[str]:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def of_backends(engine: sa.Engine) -> dict[int, float]:
    """Seconds by backend of the engine's database; empty where PostgreSQL runs elsewhere."""
    with engine.connect() as connection:
        pids = list(connection.execute(_BACKENDS).scalars())
    found = {pid: of_process(pid) for pid in pids if _is_postgres(pid)}
    return {pid: seconds for pid, seconds in found.items() if seconds is not None}


def of_broker() -> float | None:
    """Seconds that RabbitMQ has used; None unless exactly one runs on this machine."""
    pids = [
        int(entry.name) for entry in _PROC.glob("[0-9]*") if _name(int(entry.name)) == "beam.smp"
    ]
    return of_process(pids[0]) if len(pids) == 1 else None


def used(before: dict[int, float], after: dict[int, float]) -> float:
    """Seconds between two readings of ``of_backends``; one that began meanwhile counts whole."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def _is_postgres(pid: int) -> bool:
    return (_name(pid) or "").startswith("postgres")


def _name(pid: int) -> str | None:
    try:
        return (_PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return None
