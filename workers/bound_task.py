"""``BilledTask``: a metered task with its customer, made by ``task.bill_to(customer)``."""

from __future__ import annotations

from typing import Any, Protocol


class Billable(Protocol):
    """The methods of ``workers.task.MeteredTask`` that take a customer."""

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Submit; takes ``customer``."""
        ...

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Run here; takes ``customer``."""
        ...

    def signature(self, args: Any = None, *starargs: Any, **starkwargs: Any) -> Any:
        """A signature; takes ``customer`` as an option."""
        ...


class BilledTask:
    """A metered task with its customer; submits as the task does."""

    def __init__(self, task: Billable, customer: str) -> None:
        self._task = task
        self._customer = customer

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Do as ``Task.delay``."""
        return self._task.apply_async(args, kwargs, customer=self._customer)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Do as ``Task.apply_async``."""
        return self._task.apply_async(args, kwargs, **{**options, "customer": self._customer})

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Do as ``Task.apply``."""
        return self._task.apply(args, kwargs, **{**options, "customer": self._customer})

    def signature(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Do as ``Task.signature``; the customer goes with it into chains, groups and chords."""
        return self._task.signature(args, kwargs, **options, customer=self._customer)

    def s(self, *args: Any, **kwargs: Any) -> Any:
        """Do as ``Task.s``."""
        return self.signature(args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Any:
        """Do as ``Task.si``."""
        return self.signature(args, kwargs, immutable=True)
