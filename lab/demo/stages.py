"""A line per stage: a spinner while it lasts, then what came of it and how long it took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.text import Text

WIDTH = 100
_TITLE_WIDTH = 10


def make_console() -> Console:
    """A console no wider than the demo's tables; of their width where nobody looks."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    return console


class Stages:
    """Prints the stages of the demo.

    Args:
        console: Where to.
        monotonic: Seconds on a clock that never steps back.
    """

    def __init__(self, console: Console, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._monotonic = monotonic
        self._began = monotonic()

    @property
    def elapsed_seconds(self) -> float:
        """Since the demo began."""
        return self._monotonic() - self._began

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        """One stage; its line is printed when the block is left without an exception."""
        began = self._monotonic()
        stage = Stage()
        with self._console.status(Text(title)) as status:
            stage.show = lambda text: status.update(Text(f"{title}: {text}"))
            yield stage
        self.done(title, stage.outcome, self._monotonic() - began)

    def done(self, title: str, outcome: str, seconds: float) -> None:
        """The line of a stage that is over."""
        line = Text.assemble(
            (f"  {self.tick} ", "green"), (title.ljust(_TITLE_WIDTH), "bold"), f" {outcome}"
        )
        took = f"{seconds:.1f} s"
        room = self._console.width - len(took) - 1
        if line.cell_len > room:
            line.truncate(room, overflow="ellipsis")
        self._console.print(Text.assemble(line, " " * (room - line.cell_len + 1), (took, "dim")))

    def note(self, text: str) -> None:
        """A remark between stages."""
        for line in Text(text, style="yellow").wrap(self._console, self._console.width - 4):
            self._console.print(Text("    ") + line)

    @property
    def tick(self) -> str:
        """A mark for what is well, in a character that the terminal has."""
        return "✓" if self._console.encoding.lower().startswith("utf") else "+"


class Stage:
    """A stage that is going on."""

    def __init__(self) -> None:
        self.outcome = ""
        """What came of it, for its line."""
        self.show: Callable[[str], None] = lambda _text: None
        """Shows what it is at."""
