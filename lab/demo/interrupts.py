"""Ctrl-C and its like, which must not be lost.

``KeyboardInterrupt`` is raised wherever the main thread happens to be. In a ``__del__`` (Celery's
results have one) Python prints and drops it, and the demo would go on to its end. So the arrival is
also remembered, and asked for wherever the demo waits.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ended from outside is ended as by Ctrl-C: everything is stopped."""


class Interrupts:
    """Whether one has arrived."""

    def __init__(self) -> None:
        self._arrived = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Turn the signals into ``KeyboardInterrupt`` for the length of a block."""
        before = {number: signal.signal(number, self._arrive) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def check(self) -> None:
        """Raise what may have been dropped.

        Raises:
            KeyboardInterrupt: One has arrived.
        """
        if self._arrived:
            raise KeyboardInterrupt

    def _arrive(self, _number: int, _frame: FrameType | None) -> None:
        self._arrived = True
        raise KeyboardInterrupt
