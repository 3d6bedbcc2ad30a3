"""What a load is made of: kinds of submissions, how often each comes, and who buys it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from celery import chain, group

from lab.chaos.bodies import LEASED
from lab.chaos.catalogue import CUSTOMERS, LESSEES, PROBE

Make = Callable[[Any, random.Random], Any]
"""From the app's tasks and a choice to a signature."""

_BUYERS: Final = tuple(each.id for each in CUSTOMERS if each.id not in (PROBE, *LESSEES))
_BURST: Final = 8
"""So many tasks of one lessee at once that each child has a second one while its window lasts:
the first in a while is not admitted from a lease."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One kind; ``weight`` is its share of all."""

    weight: int
    make: Make
    leased: bool = False

    @property
    def buyers(self) -> tuple[str, ...]:
        """Who may be its customer."""
        return LESSEES if self.leased else _BUYERS


def choose_one(choose: random.Random, *, leased_only: bool) -> tuple[str, Submission, str]:
    """The next submission: its name, itself, and whose it is."""
    names = [name for name, kind in KINDS.items() if kind.leased or not leased_only]
    (name,) = choose.choices(names, [KINDS[name].weight for name in names])
    kind = KINDS[name]
    return name, kind, choose.choice(kind.buyers)


def _chain(tasks: Any, choose: random.Random) -> Any:
    first, second = tasks["chaos.page"].si(0.005), tasks["chaos.pages"].si(choose.randint(1, 4))
    return chain(first, second, tasks["chaos.page"].si(0.0))


def _leased_chain(tasks: Any, choose: random.Random) -> Any:
    page = tasks[f"{LEASED}page"]
    return chain(page.si(0.005), tasks[f"{LEASED}pages"].si(choose.randint(1, 4)), page.si(0.0))


def _group(tasks: Any, choose: random.Random) -> Any:
    return group(tasks["chaos.page"].si(choose.random() / 50) for _ in range(3))


def _leased_pages(tasks: Any, choose: random.Random) -> Any:
    # More than the five that are promised, too.
    pages = tasks[f"{LEASED}pages"]
    return group(pages.si(choose.randint(1, 8)) for _ in range(_BURST))


def _leased_burst(tasks: Any, choose: random.Random) -> Any:
    page = tasks[f"{LEASED}page"]
    return group(page.si(choose.random() / 50) for _ in range(_BURST))


def _leased_mix(tasks: Any, choose: random.Random) -> Any:
    fails, tried = tasks[f"{LEASED}fails"], tasks[f"{LEASED}tried"]
    again, extra = tasks[f"{LEASED}again"], tasks[f"{LEASED}pages"]
    tries = [tried.si(choose.randint(1, 6)) for _ in range(3)]
    return group([fails.si(), *tries, fails.si(), again.si(), extra.si(2, choose.randint(1, 3))])


KINDS: Final[dict[str, Submission]] = {
    "page": Submission(40, lambda tasks, choose: tasks["chaos.page"].s(choose.random() / 20)),
    "pages": Submission(20, lambda tasks, choose: tasks["chaos.pages"].s(choose.randint(1, 7))),
    "extra": Submission(8, lambda tasks, choose: tasks["chaos.pages"].s(2, choose.randint(1, 3))),
    "later": Submission(8, lambda tasks, _: tasks["chaos.later"].s()),
    "again": Submission(4, lambda tasks, _: tasks["chaos.again"].s()),
    "fails": Submission(5, lambda tasks, _: tasks["chaos.fails"].s()),
    "tried": Submission(5, lambda tasks, choose: tasks["chaos.tried"].s(choose.randint(1, 4))),
    "chain": Submission(5, _chain),
    "group": Submission(5, _group),
    "leased-burst": Submission(10, _leased_burst, leased=True),
    "leased-pages": Submission(6, _leased_pages, leased=True),
    "leased-mix": Submission(4, _leased_mix, leased=True),
    "leased-chain": Submission(2, _leased_chain, leased=True),
}
