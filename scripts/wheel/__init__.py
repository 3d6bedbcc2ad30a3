"""Weighbridge: usage-based billing for Celery.

::

    from weighbridge import Metering, MeteredTask, bill_to, usage

Importing this costs nothing: each name is looked up when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from billing import __version__

if TYPE_CHECKING:
    from workers import (
        BEAT_SCHEDULE,
        CustomerRequired,
        MeteredTask,
        Metering,
        QuotaExceeded,
        bill_to,
        usage,
    )

__all__ = [
    "BEAT_SCHEDULE",
    "CustomerRequired",
    "MeteredTask",
    "Metering",
    "QuotaExceeded",
    "__version__",
    "bill_to",
    "usage",
]


def __getattr__(name: str) -> object:
    """Look up a name of ``weighbridge.workers``, which is the same face in a checkout."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.workers"), name)
