"""The sandbox's time: a given clock plus an offset that the control API moves."""

from __future__ import annotations

from datetime import datetime, timedelta

from billing.core.clock import Clock


class MovableClock:
    """A clock that runs as ``base`` does, ``offset`` away from it."""

    def __init__(self, base: Clock) -> None:
        self._base = base
        self.offset = timedelta(0)

    def now(self) -> datetime:
        """The sandbox's present instant, UTC."""
        return self._base.now() + self.offset

    def seconds(self) -> float:
        """The same as seconds since 1970, with fractions."""
        return self.now().timestamp()

    def advance(self, by: timedelta) -> None:
        """Move on by ``by``; a negative step goes back."""
        self.offset += by
