"""A token bucket: how fast reports leave."""

from __future__ import annotations

import threading
from collections.abc import Callable

from billing.core.errors import InvalidValue


class TokenBucket:
    """Lets ``rate`` calls a second pass, and at most ``burst`` at once. For several threads.

    Args:
        rate: Calls a second.
        burst: Calls that may pass without waiting after a pause.
        monotonic: Seconds that only grow.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        rate: float,
        burst: int,
        *,
        monotonic: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        if rate <= 0 or burst < 1:
            raise InvalidValue("rate", (rate, burst), "use a rate above 0 and a burst from 1")
        self._rate = rate
        self._burst = float(burst)
        self._monotonic = monotonic
        self._sleep = sleep
        self._lock = threading.Lock()
        self._tokens = self._burst
        self._filled_at = monotonic()

    def take(self) -> float:
        """Wait for the next call's turn; returns the seconds that it waited."""
        with self._lock:
            at = self._monotonic()
            grown = (at - self._filled_at) * self._rate
            self._tokens = min(self._burst, self._tokens + grown) - 1
            self._filled_at = at
            # Below zero it is a place in the queue: whoever comes later waits longer.
            wait = max(0.0, -self._tokens / self._rate)
        if wait:
            self._sleep(wait)
        return wait
