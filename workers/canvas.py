"""Metered tasks in Celery's canvas: replacements that take over a hold, and maps."""

from __future__ import annotations

from typing import Any, Final

from celery.canvas import _chain as chain
from celery.canvas import chord, group

from workers.billing_header import HEADER, BillingHeader

_MAPPING_TASKS: Final = frozenset({"celery.map", "celery.starmap"})
"""Celery's tasks that call another as a function, item by item; ``chunks`` sends the second."""


def hand_over(sig: Any, header: BillingHeader | None, metered: type) -> bool:
    """Give the header of a running task to the one that replaces it (``Task.replace``).

    Deep in a chain or chord that one is sent later, from another task; its events must keep the ids
    they would have had.

    Args:
        sig: The replacement.
        header: The running task's.
        metered: The base of metered tasks.

    Returns:
        True if the replacement will find the running task's hold: it has its id and its customer.
    """
    heir = _heir_of(sig)
    if header is None or heir is None or not isinstance(heir.type, metered):
        return False
    if heir.options.get("customer") not in {None, header.customer}:
        return False
    heir.set(headers={HEADER: header.to_message(), **(heir.options.get("headers") or {})})
    return True


def is_mapped(task: Any) -> bool:
    """True if ``map``, ``starmap`` or ``chunks`` calls this task here, as a function."""
    outer = task.app.current_worker_task
    if not outer or outer.name not in _MAPPING_TASKS:
        return False
    request = outer.request
    mapped = (request.kwargs or {}).get("task") or next(iter(request.args or ()), None) or {}
    return bool(mapped.get("task") == task.name)


def _heir_of(sig: Any) -> Any:
    """The signature that gets the id of the task it replaces; None for Celery's own."""
    if isinstance(sig, chord):
        return _heir_of(sig.body)
    if isinstance(sig, group):
        # It becomes a chord whose body, a plain task, gets the id.
        return None
    if isinstance(sig, chain):
        return _heir_of(sig.tasks[-1])
    return sig
