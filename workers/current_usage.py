"""``usage``: what a body records while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from billing.metering.usage_recorder import UsageRecorder

_recorder: ContextVar[UsageRecorder | None] = ContextVar("weighbridge_recorder", default=None)


class CurrentUsage:
    """The usage of the running task: ``from workers.current_usage import usage``."""

    def record(
        self,
        *,
        quantity: int | None = None,
        cost_micros: int | None = None,
        subject: str | None = None,
        dimensions: Mapping[str, str] | None = None,
        sku: str | None = None,
    ) -> None:
        """Add to what the running task used; see ``UsageRecorder.record``.

        Outside a metered run (a plain call, a test) there is nothing to add to; nothing happens.

        Raises:
            InvalidValue: A figure or text cannot be; nothing was added.
            NotFound: There is no such SKU; nothing was added.
        """
        recorder = _recorder.get()
        if recorder is not None:
            recorder.record(
                quantity=quantity,
                cost_micros=cost_micros,
                subject=subject,
                dimensions=dimensions,
                sku=sku,
            )


usage: Final = CurrentUsage()


@contextmanager
def recording(recorder: UsageRecorder | None) -> Iterator[None]:
    """Let ``usage.record`` add to ``recorder`` inside; to nothing if it is None."""
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)
