"""When the worker's main process acknowledged a task: the end of it, as RabbitMQ sees it.

Eight bytes a task in a file, an instant of the clock that all processes of a machine share.
"""

from __future__ import annotations

import os
import struct
import time
from functools import cache
from pathlib import Path
from typing import Any, Final

from celery.worker.request import Request

from workers.worker_request import MeteredRequest

FORMAT: Final = struct.Struct("=q")


def acks_of(spool_dir: Path) -> Path:
    """The file of a worker's acknowledgements."""
    return spool_dir / "acks"


class _Told:
    """Writes the instant down, after the acknowledgement has left."""

    def acknowledge(self) -> None:
        """As Celery does; then the instant."""
        super().acknowledge()  # type: ignore[misc]  # the request that this is mixed into
        app: Any = self.task.app  # type: ignore[attr-defined]  # as above
        os.write(_opened(app.bench_folder), FORMAT.pack(time.monotonic_ns()))


class PlainRequest(_Told, Request):
    """Of an unmetered task."""


class BilledRequest(_Told, MeteredRequest):
    """Of a metered one."""


@cache
def _opened(spool_dir: Path) -> int:
    return os.open(acks_of(spool_dir), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
