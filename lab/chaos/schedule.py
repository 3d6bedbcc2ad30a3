"""From a seed to a schedule: which fault when, for how long, with which seed of its own. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_GAP_SECONDS: Final = (0.5, 2.0)
_SEEDS: Final = 2**32


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a schedule needs to know of a fault.

    ``seconds``: how long it lasts, in the quick and in the full form. ``hits``: how many are asked
    of one turn in the quick form; the full form asks for ``--hits``, where ``many`` is true.
    ``last``: belongs to the end of a round, after all that can be shuffled.
    """

    name: str
    seconds: tuple[float, float] = (2.0, 5.0)
    hits: int = 1
    many: bool = False
    last: bool = False
    quick: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One fault of a schedule; ``gap_seconds`` is the load's time before it."""

    number: int
    fault: str
    gap_seconds: float
    seconds: float
    hits: int
    seed: int


def turns(
    seed: int, kinds: Sequence[Kind], *, rounds: int, quick: bool, hits: int
) -> Iterator[Turn]:
    """The schedule: every fault once in each round, in an order that the seed decides.

    Args:
        seed: The same seed with the same faults is the same schedule.
        kinds: What may happen.
        rounds: How often all of it.
        quick: The short form.
        hits: How many hits the full form asks of faults that can hit many times; spread over the
            rounds.
    """
    choose = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    number = 0
    share = -(-hits // rounds)
    for _ in range(rounds):
        order = [kind for kind in kinds if not kind.last]
        choose.shuffle(order)
        for kind in [*order, *(kind for kind in kinds if kind.last)]:
            number += 1
            yield Turn(
                number=number,
                fault=kind.name,
                gap_seconds=round(choose.uniform(*_GAP_SECONDS), 3),
                seconds=kind.seconds[0 if quick else 1],
                hits=share if kind.many and not quick else kind.hits,
                seed=choose.randrange(_SEEDS),
            )
