"""What every fault is."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lab.chaos.errors import ChaosError
from lab.chaos.ground import Ground
from lab.chaos.load import Load
from lab.chaos.schedule import Kind, Turn

_POLL_SECONDS: Final = 0.05


class Fault(ABC):
    """One turn of one fault; made for that turn alone.

    Args:
        ground: What it is done to.
        load: What runs meanwhile.
        turn: How long, how often, and the seed of its own.
    """

    def __init__(self, ground: Ground, load: Load, turn: Turn) -> None:
        self.ground = ground
        self.load = load
        self.turn = turn
        self.random = random.Random(turn.seed)  # noqa: S311 - a schedule, not a secret

    @abstractmethod
    def inject(self) -> None:
        """Begin."""

    def during(self) -> None:
        """Let the load meet it; by default for the turn's seconds."""
        time.sleep(self.turn.seconds)

    @abstractmethod
    def heal(self) -> None:
        """End; also where ``inject`` failed half-way. Afterwards the system can recover."""

    @abstractmethod
    def hits(self) -> int:
        """How often it hit, from what was observed; 0: nothing shows it. Asked after ``heal``."""

    def until(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for something.

        Raises:
            ChaosError: It did not come in time.
        """
        if not self.happens(done, seconds):
            raise ChaosError(f"{self.turn.fault}: waited {seconds:g} s for {what}")

    def happens(self, done: Callable[[], bool], seconds: float) -> bool:
        """Whether something comes about in so many seconds."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True


@dataclass(frozen=True, slots=True)
class Spec:
    """A fault that can be asked for by name."""

    kind: Kind
    about: str
    make: Callable[[Ground, Load, Turn], Fault]


class Heard:
    """What processes have written from a moment on."""

    def __init__(self, ground: Ground, *names: str) -> None:
        self._files = [ground.supervisor.log_of(name) for name in names]
        self._from = [file.stat().st_size if file.exists() else 0 for file in self._files]

    def count(self, *words: str) -> int:
        """How often any of these words were written since."""
        return sum(self._text(n).count(word) for n in range(len(self._files)) for word in words)

    def _text(self, number: int) -> str:
        try:
            with self._files[number].open("rb") as file:
                file.seek(self._from[number])
                return file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
