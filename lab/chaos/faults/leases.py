"""The way of a leased run: its process dies at every point of it, and so does who comes after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lab.chaos import truth
from lab.chaos.catalogue import LESSEES
from lab.chaos.faults.base import Fault, Spec
from lab.chaos.faults.kills import Place, at, everywhere, let_claim
from lab.chaos.ground import RELAY_B, WORKER_A, WORKER_B, Ground
from lab.chaos.load import Load
from lab.chaos.schedule import Kind, Turn
from lab.chaos.truth import Word

LEASED_POINTS: Final = (
    "lease.before",
    "lease.after",
    "lease.admitted",
    "slip.before",
    "flush.before",
    "flush.after",
    "lease.returned",
)
LEFT_POINTS: Final = ("left.before_settle", "left.after_settle", "left.after_release")
_SECONDS_PER_HIT: Final = 6.0
_STOPPED: Final = "TimeLimitExceeded"


class RelayKilledAtLeft(Fault):
    """Workers die with slips untold; the relay that settles them dies, too, again and again."""

    def __init__(self, ground: Ground, load: Load, turn: Turn, *, point: str) -> None:
        super().__init__(ground, load, turn)
        self._point = point

    def inject(self) -> None:
        """Arm both: node b's worker at a slip on the disk, its relay at the point."""
        self._before = self._counted()
        self.load.leased_only = True
        self.ground.start(WORKER_B, failpoints=f"flush.before={self.random.randint(2, 6)}!")
        self.ground.start(RELAY_B, failpoints=f"{self._point}=1")

    def during(self) -> None:
        """Until the relay died often enough, or it has taken too long."""
        self.happens(self._is_done, 45 + _SECONDS_PER_HIT * self.turn.hits)

    def heal(self) -> None:
        """Both run as they are shipped."""
        self.load.leased_only = False
        self.ground.calm(RELAY_B, self._point)
        self.ground.calm(WORKER_B, "flush.before")

    def hits(self) -> int:
        """Deaths of the relay at the point, each recorded on disk before it."""
        return self._counted() - self._before

    def _is_done(self) -> bool:
        let_claim(self.ground, RELAY_B)
        return self.hits() >= self.turn.hits

    def _counted(self) -> int:
        self.ground.count_failpoints()
        return self.ground.hits[self._point]


class LeasedHardLimit(Fault):
    """Runs under a lease meet their hard time limit, in a loop of Python and in a call into C.

    The child is killed with its leases and with slips that nobody was told of. Such a task leaves
    no line (``docs/decisions/0015-leased-credits.md``), so what shows it is the file of truth: the
    run was from a lease, and Celery said that the time limit ended it.
    """

    kinds: Final = ("leased.loops", "leased.burns")

    def inject(self) -> None:
        """Leased load, so that the children have leases."""
        self._ids: dict[str, list[str]] = {kind: [] for kind in self.kinds}
        self.load.leased_only = True

    def during(self) -> None:
        """Submit one after the other until enough of each kind met it under a lease."""
        self.happens(self._is_done, 45 + 2 * _SECONDS_PER_HIT * self.turn.hits)

    def heal(self) -> None:
        """The load as it was."""
        self.load.leased_only = False

    def hits(self) -> int:
        """Such runs, if there was one of each kind."""
        counts = self._counts()
        return sum(counts.values()) if all(counts.values()) else 0

    def _is_done(self) -> bool:
        ended = self._ended()
        for kind, ids in self._ids.items():
            if len(self._stopped(kind)) < self.turn.hits and ended >= set(ids):
                task = self.load.send(kind, LESSEES[len(ids) % 2], time_limit=1)
                self._ids[kind] += [task] if task is not None else []
        return all(count >= self.turn.hits for count in self._counts().values())

    def _counts(self) -> dict[str, int]:
        return {kind: len(self._stopped(kind)) for kind in self.kinds}

    def _stopped(self, kind: str) -> set[str]:
        notes = truth.read(self.ground.truth_file)
        leased = {note.task_id for note in notes if note.word is Word.LEASED}
        over = {note.task_id for note in notes if note.detail == _STOPPED}
        return set(self._ids[kind]) & leased & over

    def _ended(self) -> set[str]:
        words = (Word.FAILED, Word.SUCCEEDED, Word.DENIED)
        return {n.task_id for n in truth.read(self.ground.truth_file) if n.word in words}


def _left(point: str) -> Callable[[Ground, Load, Turn], Fault]:
    return lambda ground, load, turn: RelayKilledAtLeft(ground, load, turn, point=point)


def specs() -> list[Spec]:
    """Every death on the way of a leased run."""
    found = []
    for point in LEASED_POINTS:
        for whole in (False, True):
            who = "worker" if whole else "child"
            about = f"{'a worker with all its children' if whole else 'a child'} dies at {point}"
            kind = Kind(name=f"{who}@{point}", hits=1 if whole else 2, many=True)
            place = Place((WORKER_A, WORKER_B), whole=whole, leased=True)
            found.append(Spec(kind, about, at(place, point)))
    for point in LEFT_POINTS:
        kind = Kind(name=f"relay@{point}", hits=2, many=True)
        about = f"a relay dies at {point}, settling what a dead leaseholder left"
        found.append(Spec(kind, about, _left(point)))
    for whole in (False, True):
        who = "worker" if whole else "child"
        kind = Kind(name=f"{who}@leases-everywhere", hits=len(LEASED_POINTS))
        place = Place((WORKER_B,), whole=whole, leased=True)
        about = f"a {who} dies at each point of a leased run's way, one after the other"
        found.append(Spec(kind, about, everywhere(place, LEASED_POINTS)))
    about = "hard time limits of runs under a lease, in a loop of Python and in a call into C"
    found.append(Spec(Kind(name="leased-hard-limit", many=True), about, LeasedHardLimit))
    return found
