"""The exceptions an app may catch, one tree: each is a ``WeighbridgeError``.

=====================  ===========================================================================
raised                 exceptions
=====================  ===========================================================================
at start-up            ``ConfigurationError``
at submission          ``CustomerRequired``, ``InvalidValue``
by ``usage.record``    ``InvalidValue``, ``NotFound``
by AsyncResult.get()   ``QuotaExceeded``, ``NotMetered``, ``NotFound``, ``QuotaUnavailable``
=====================  ===========================================================================
"""

from __future__ import annotations

from billing.core.credits import format_credits
from billing.core.errors import (
    AlreadyExists,
    ConfigurationError,
    DenialReason,
    InvalidValue,
    NotFound,
    PublishFailed,
    QuotaUnavailable,
    WeighbridgeError,
)


class QuotaExceeded(WeighbridgeError):  # noqa: N818 - named by the field, as Celery's own Retry and Ignore are
    """The task was refused before its body ran; nothing was charged.

    Every argument is JSON-friendly and positional, so that Celery's JSON result backends bring the
    same exception back.

    Args:
        reason: One of ``DenialReason``.
        customer: The customer who would have paid.
        sku: The SKU it would have been sold as.
        needed_microcredits: The credits the task asked to hold.
        left_microcredits: The credits the balance or the budget had left.
    """

    def __init__(
        self,
        reason: str,
        customer: str = "",
        sku: str = "",
        needed_microcredits: int = 0,
        left_microcredits: int = 0,
    ) -> None:
        self.reason = str(reason)
        self.customer = customer
        self.sku = sku
        self.needed_microcredits = needed_microcredits
        self.left_microcredits = left_microcredits
        super().__init__(
            f"{customer} was refused {sku}: {self.reason}; "
            f"needed {format_credits(needed_microcredits)} credits, "
            f"left {format_credits(left_microcredits)}"
        )
        self.args = (self.reason, customer, sku, needed_microcredits, left_microcredits)


class CustomerRequired(WeighbridgeError):  # noqa: N818 - as above
    """A metered task was submitted without a customer."""

    def __init__(self, task: str) -> None:
        super().__init__(
            f"{task} is metered and nobody would pay for it. Say who: "
            f'{task.rpartition(".")[2]}.bill_to("acme").delay(…), '
            'apply_async(…, customer="acme"), or submit inside: with bill_to("acme"):'
        )
        self.args = (task,)


class NotMetered(WeighbridgeError):  # noqa: N818 - as above
    """A metered task would have run without its hold, so nobody would have paid for it."""

    def __init__(self, task: str) -> None:
        super().__init__(
            f"{task} was not run: nothing was held for it. A before_start of its own must call "
            "super().before_start(…); in place of its map, starmap and chunks, which call it as a "
            "function, send a group"
        )
        self.args = (task,)


__all__ = [
    "AlreadyExists",
    "ConfigurationError",
    "CustomerRequired",
    "DenialReason",
    "InvalidValue",
    "NotFound",
    "NotMetered",
    "PublishFailed",
    "QuotaExceeded",
    "QuotaUnavailable",
    "WeighbridgeError",
]
