"""What Celery's canvas does with metered tasks: who gets a replaced task's id, what a map calls."""

from __future__ import annotations

from typing import Any, Final

from celery.canvas import _chain as chain
from celery.canvas import chord, group

_MAPPING_TASKS: Final = frozenset({"celery.map", "celery.starmap"})
"""Celery's tasks that call another as a function, item by item; ``chunks`` sends the second."""


def heir_of(sig: Any) -> Any:
    """The signature that gets the task id of the task it replaces (``Task.replace``).

    Returns:
        None where it is a plain task of Celery's own: a group becomes a chord with such a body.
    """
    if isinstance(sig, chord):
        return heir_of(sig.body)
    if isinstance(sig, group):
        return None
    if isinstance(sig, chain):
        return heir_of(sig.tasks[-1])
    return sig


def is_mapped(task: Any) -> bool:
    """Whether ``map``, ``starmap`` or ``chunks`` calls this task here, as a function."""
    outer = task.app.current_worker_task
    if not outer or outer.name not in _MAPPING_TASKS:
        return False
    request = outer.request
    mapped = (request.kwargs or {}).get("task") or next(iter(request.args or ()), None) or {}
    return bool(mapped.get("task") == task.name)
