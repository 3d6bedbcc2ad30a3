"""Named places where a test may kill the process. Unarmed, a fail point is one set look-up.

Armed only through ``billing.settings`` (``WEIGHBRIDGE_FAILPOINTS``), for tests of what survives a
SIGKILL. Each hit is written, and fsynced, to a file before the process dies, so that a test can
show that the point was reached.
"""

from __future__ import annotations

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
        "relay.before_publish",
        "relay.after_publish",
        "relay.after_confirm",
        "consumer.before_insert",
        "consumer.before_commit",
        "consumer.after_commit",
    }
)


@dataclass(slots=True)
class _Armed:
    remaining: dict[str, int] = field(default_factory=dict)
    record: Path | None = None


_armed = _Armed()


def arm(specification: str, record: Path) -> None:
    """Arm points from ``"settle.after=3,relay.after_publish=1"``: die the n-th time one is reached.

    Args:
        specification: Names of ``NAMES`` with a count of one or more; empty disarms all.
        record: A file that gets one line, the name, per hit. A name already in it does not fire
            again, so that a restarted process goes on.

    Raises:
        InvalidValue: An unknown name, or a count that is not a positive integer.
    """
    remaining: dict[str, int] = {}
    for part in filter(None, specification.split(",")):
        name, _, count = part.strip().partition("=")
        if name not in NAMES:
            raise InvalidValue("failpoint", name, f"use one of {', '.join(sorted(NAMES))}")
        if not count.isdecimal() or int(count) < 1:
            raise InvalidValue("failpoint", part, "write NAME=COUNT with a count of one or more")
        remaining[name] = int(count)
    _armed.remaining = remaining
    _armed.record = record


def reach(name: str) -> None:
    """Die here with SIGKILL if this point is armed and its turn has come."""
    if name not in _armed.remaining:
        return
    _armed.remaining[name] -= 1
    if _armed.remaining[name] or _armed.record is None:
        return
    if _armed.record.exists() and name in _armed.record.read_text().split():
        return
    _armed.record.parent.mkdir(parents=True, exist_ok=True)
    with _armed.record.open("a") as record:
        record.write(f"{name}\n")
        record.flush()
        os.fsync(record.fileno())
    os.kill(os.getpid(), signal.SIGKILL)
