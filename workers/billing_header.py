"""The ``billing`` message header: the customer who pays, from submission to run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from celery import current_task

from billing.core.clock import format_instant, parse_instant
from billing.core.errors import InvalidValue

HEADER: Final = "billing"
"""Name of the message header."""

_customer: ContextVar[str | None] = ContextVar("weighbridge_customer", default=None)


@dataclass(frozen=True, slots=True)
class BillingHeader:
    """The ``billing`` header of a task message.

    ``metered_at`` is the ETA if the message has one, else the time of submission; it decides the
    period the usage belongs to, and with the task id it makes the event id. ``deferrals`` counts
    how often the task was sent back to its queue.
    """

    customer: str
    metered_at: datetime
    deferrals: int = 0

    def to_message(self) -> dict[str, object]:
        """The header as a JSON-friendly dict."""
        header: dict[str, object] = {
            "customer": self.customer,
            "metered_at": format_instant(self.metered_at),
        }
        if self.deferrals:
            header["deferrals"] = self.deferrals
        return header

    @classmethod
    def from_message(cls, header: object) -> BillingHeader:
        """Read the header of a message.

        Raises:
            InvalidValue: It is not one; names the field.
        """
        if not isinstance(header, Mapping):
            raise InvalidValue(HEADER, header, "send a dict with customer and metered_at")
        customer, deferrals = header.get("customer"), header.get("deferrals", 0)
        if not isinstance(customer, str) or not customer:
            raise InvalidValue(f"{HEADER}.customer", customer, "send the customer's id")
        if not isinstance(deferrals, int) or deferrals < 0:
            raise InvalidValue(f"{HEADER}.deferrals", deferrals, "send a count")
        instant = parse_instant(header.get("metered_at", ""), field=f"{HEADER}.metered_at")
        return cls(customer, instant, deferrals)


def header_of(request: Any) -> BillingHeader | None:
    """The billing header of a running task's request, in a worker or eager; None if it has none.

    Raises:
        InvalidValue: It has one that cannot be read.
    """
    header = (getattr(request, "headers", None) or {}).get(HEADER)
    if header is None:
        header = getattr(request, HEADER, None)
    return None if header is None else BillingHeader.from_message(header)


def running_header() -> BillingHeader | None:
    """The billing header of the task that is running here, metered or not."""
    task: Any = current_task  # a proxy: false where no task runs
    if not task or task.request.called_directly:
        return None
    return header_of(task.request)


def current_customer() -> str | None:
    """The customer billed here: of the innermost ``bill_to``, else of the running task."""
    named = _customer.get()
    if named is not None:
        return named
    header = running_header()
    return header.customer if header else None


@contextmanager
def bill_to(customer: str) -> Iterator[None]:
    """Bill everything submitted inside to ``customer``: tasks, chains, groups, chords.

    Example::

        with bill_to("acme"):
            chord(capture_page.s(url) for url in urls)(summarise.s())
    """
    token = _customer.set(customer)
    try:
        yield
    finally:
        _customer.reset(token)
