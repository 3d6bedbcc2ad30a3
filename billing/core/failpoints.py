"""Named places where a test may kill the process. Unarmed, a fail point is one set look-up.

Armed only through ``billing.settings`` (``WEIGHBRIDGE_FAILPOINTS``), for tests that kill processes.
Each hit is written, and fsynced, to a file before the process dies, so that a test can
show that the point was reached.
"""

from __future__ import annotations

import fcntl
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from billing.core.errors import InvalidValue

NAMES: Final = frozenset(
    {
        "hold.before",
        "hold.after",
        "body.after",
        "settle.after",
        "lease.before",
        "lease.after",
        "lease.admitted",
        "lease.returned",
        "slip.before",
        "flush.before",
        "flush.after",
        "left.before_settle",
        "left.after_settle",
        "left.after_release",
        "relay.before_publish",
        "relay.after_publish",
        "relay.after_confirm",
        "consumer.before_insert",
        "consumer.before_commit",
        "consumer.after_commit",
        "report.after_plan",
        "report.after_claim",
        "report.before_send",
        "report.after_send",
        "report.after_answer",
        "report.after_reading",
        "notice.before_commit",
        "notice.after_commit",
        "seal.before_commit",
        "seal.after_commit",
        "archive.after_begin",
        "archive.after_rows",
        "archive.after_rename",
        "archive.after_export",
        "archive.after_verify",
        "archive.before_detached",
        "archive.after_detached",
        "archive.before_drop",
        "archive.after_drop",
        "restore.after_load",
        "restore.before_commit",
        "restore.after_commit",
    }
)


_WITH_ITS_GROUP: Final = "!"


@dataclass(slots=True)
class _Armed:
    remaining: dict[str, int] = field(default_factory=dict)
    with_group: set[str] = field(default_factory=set)
    record: Path | None = None


_armed = _Armed()


def arm(specification: str, record: Path) -> None:
    """Arm points from ``"settle.after=3,relay.after_publish=1"``: die the n-th time one is reached.

    Args:
        specification: Names of ``NAMES`` with a count of one or more; empty disarms all. A ``!``
            after the count kills the whole process group: a worker with all its children.
        record: A file that gets one line, the name, per hit. A name already in it does not fire
            again, so that a restarted process goes on.

    Raises:
        InvalidValue: An unknown name, or a count that is not a positive integer.
    """
    remaining: dict[str, int] = {}
    with_group: set[str] = set()
    for part in filter(None, specification.split(",")):
        name, _, count = part.strip().partition("=")
        if count.endswith(_WITH_ITS_GROUP):
            count = count.removesuffix(_WITH_ITS_GROUP)
            with_group.add(name)
        if name not in NAMES:
            raise InvalidValue("failpoint", name, f"use one of {', '.join(sorted(NAMES))}")
        if not count.isdecimal() or int(count) < 1:
            raise InvalidValue("failpoint", part, "write NAME=COUNT or NAME=COUNT!, COUNT from 1")
        remaining[name] = int(count)
    _armed.remaining = remaining
    _armed.with_group = with_group
    _armed.record = record


def reach(name: str) -> None:
    """Die here with SIGKILL if this point is armed and its turn has come."""
    if name not in _armed.remaining:
        return
    _armed.remaining[name] -= 1
    if _armed.remaining[name] or _armed.record is None:
        return
    _armed.record.parent.mkdir(parents=True, exist_ok=True)
    with _armed.record.open("a+") as record:
        # Of two processes that come here in one moment, one dies; its death opens the lock.
        fcntl.flock(record, fcntl.LOCK_EX)
        record.seek(0)
        if name in record.read().split():
            return
        record.write(f"{name}\n")
        record.flush()
        os.fsync(record.fileno())
        if name in _armed.with_group:
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
