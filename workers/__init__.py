"""Weighbridge for an app: ``Metering(app)``, ``base=MeteredTask``, ``bill_to``, ``usage``.

Each name is imported when it is first asked for, so that importing the package costs nothing and
``celery -A workers`` finds the app in ``workers.celery``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from workers.beat_schedule import BEAT_SCHEDULE
    from workers.billing_header import bill_to
    from workers.current_usage import usage
    from workers.errors import CustomerRequired, QuotaExceeded
    from workers.metering import Metering
    from workers.task import MeteredTask

__all__ = [
    "BEAT_SCHEDULE",
    "CustomerRequired",
    "MeteredTask",
    "Metering",
    "QuotaExceeded",
    "bill_to",
    "usage",
]

# No name may be a module's: importing that would put the module in its place.
_HOMES: Final = {
    "BEAT_SCHEDULE": "beat_schedule",
    "CustomerRequired": "errors",
    "MeteredTask": "task",
    "Metering": "metering",
    "QuotaExceeded": "errors",
    "bill_to": "billing_header",
    "usage": "current_usage",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module, once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The module's names and the public ones."""
    return sorted({*globals(), *__all__})
