"""State that a forked child must not share with its parent: connections, locks, descriptors."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

State = TypeVar("State")


class ProcessLocal(Generic[State]):
    """One state per process, made when first asked for.

    After a fork the child gets a new state, its own lock included (the inherited one may be held
    for ever by a thread that the child does not have), and the parent's is handed to ``abandon``.

    Args:
        make: Makes the state of a process.
        abandon: Lets go of an inherited state without saying anything on its sockets: the other end
            still belongs to the parent.
    """

    def __init__(self, make: Callable[[], State], abandon: Callable[[State], None]) -> None:
        self._make = make
        self._abandon = abandon
        self._states: dict[int, State] = {}

    def get(self) -> State:
        """The state of the running process. Safe to call from several threads."""
        pid = os.getpid()
        state = self._states.get(pid)
        if state is not None:
            return state
        for other in [known for known in self._states if known != pid]:
            inherited = self._states.pop(other, None)
            if inherited is not None:
                self._abandon(inherited)
        # One of several threads that get here at once wins; setdefault is atomic.
        return self._states.setdefault(pid, self._make())
