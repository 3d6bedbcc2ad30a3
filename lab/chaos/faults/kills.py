"""Processes that die: at every fail point, at any instant, at a hard time limit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import redis
import sqlalchemy as sa

from lab.chaos.faults.base import Fault, Spec
from lab.chaos.ground import BEAT, CONSUMER_2, RELAY_B, WORKER_A, WORKER_B, Ground
from lab.chaos.load import Load
from lab.chaos.schedule import Kind, Turn
from lab.chaos.servers import children_of

TASK_POINTS: Final = ("hold.before", "hold.after", "body.after", "settle.after")
RELAY_POINTS: Final = ("relay.before_publish", "relay.after_publish", "relay.after_confirm")
CONSUMER_POINTS: Final = (
    "consumer.before_insert",
    "consumer.before_commit",
    "consumer.after_commit",
)
_OF_EACH_RUN: Final = frozenset({"lease.admitted", "slip.before", "flush.before"})
"""Met by every leased run. Some come before the deadly one: acknowledged, and told to nobody yet,
they are what a death here can lose."""
_SECONDS_PER_HIT: Final = 12.0
_CHILD_SECONDS_PER_HIT: Final = 3.0


@dataclass(frozen=True, slots=True)
class Place:
    """Who dies: one or several programs, ``whole`` with all their children.

    ``leased``: the load is of leased SKUs alone meanwhile.
    """

    programs: tuple[str, ...]
    whole: bool = True
    leased: bool = False


class KilledAt(Fault):
    """Programs run with a fail point armed, again and again, until they died often enough."""

    def __init__(self, ground: Ground, load: Load, turn: Turn, *, place: Place, point: str) -> None:
        super().__init__(ground, load, turn)
        self._place, self._point = place, point
        self._before = 0

    def inject(self) -> None:
        """Arm it."""
        self._before = self._counted()
        self.load.leased_only = self._place.leased
        mark = "!" if self._place.whole else ""
        for program in self._place.programs:
            self.ground.start(program, failpoints=f"{self._point}={self._count(program)}{mark}")

    def during(self) -> None:
        """Until there were enough deaths, or it has taken too long."""
        each = _SECONDS_PER_HIT if self._place.whole else _CHILD_SECONDS_PER_HIT
        self.happens(self._is_done, 30 + each * self.turn.hits)

    def heal(self) -> None:
        """From here on they run as they are shipped."""
        self.load.leased_only = False
        for program in self._place.programs:
            self.ground.calm(program, self._point)

    def hits(self) -> int:
        """Deaths at the point, each recorded on disk before it."""
        return self._counted() - self._before

    def _count(self, program: str) -> int:
        if program in (WORKER_A, WORKER_B):
            rare = self._place.leased and self._point not in _OF_EACH_RUN
            return self.random.randint(*((1, 2) if rare else (4, 9)))
        return 1 + (program == CONSUMER_2)

    def _is_done(self) -> bool:
        for program in self._place.programs:
            let_claim(self.ground, program)
        return self.hits() >= self.turn.hits

    def _counted(self) -> int:
        self.ground.count_failpoints()
        return self.ground.hits[self._point]


class KilledEverywhere(Fault):
    """A program dies once at each of several points, in one life after the other."""

    def __init__(
        self, ground: Ground, load: Load, turn: Turn, *, place: Place, points: Sequence[str]
    ) -> None:
        super().__init__(ground, load, turn)
        self._place, self._points = place, points
        (self._program,) = place.programs
        self._found: set[str] = set()

    def inject(self) -> None:
        """Arm all of them; what has fired does not fire again."""
        self.load.leased_only = self._place.leased
        mark = "!" if self._place.whole else ""
        points = [f"{point}={self.random.randint(1, 3)}{mark}" for point in self._points]
        self.ground.start(self._program, failpoints=",".join(points))
        self.ground.keep_record.add(self._program)

    def during(self) -> None:
        """Until all have fired, or it has taken too long."""
        each = _SECONDS_PER_HIT if self._place.whole else _CHILD_SECONDS_PER_HIT
        self.happens(self._is_done, 30 + each * len(self._points))

    def heal(self) -> None:
        """From its next life on it runs as it is shipped; in this one nothing is left to fire."""
        self.load.leased_only = False
        # Asked now: the next life's beginning clears the record.
        self.hits()
        self.ground.keep_record.discard(self._program)
        self.ground.amend(self._program)
        self.ground.supervisor.await_ready(self._program)

    def hits(self) -> int:
        """Points at which it died."""
        self._found |= set(self._points) & set(self.ground.recorded(self._program))
        return len(self._found)

    def _is_done(self) -> bool:
        let_claim(self.ground, self._program)
        return self.hits() == len(self._points)


class KilledAnytime(Fault):
    """SIGKILL at any instant: of a child of a worker, or of a program with all of its children."""

    def __init__(
        self, ground: Ground, load: Load, turn: Turn, *, program: str, child: bool = False
    ) -> None:
        super().__init__(ground, load, turn)
        self._program, self._child, self._killed = program, child, 0

    def inject(self) -> None:
        """Nothing to prepare."""

    def during(self) -> None:
        """Kill, wait until it is at work again, kill."""
        for _ in range(self.turn.hits):
            self.until(lambda: self.ground.supervisor.is_ready(self._program), 60, self._program)
            time.sleep(self.random.uniform(0.1, 0.9))
            self._killed += self._kill_child() if self._child else self._kill_all()

    def heal(self) -> None:
        """The supervisor has started it again."""
        self.ground.supervisor.await_ready(self._program)

    def hits(self) -> int:
        """Processes that were there and were killed."""
        return self._killed

    def _kill_all(self) -> int:
        deaths = self.ground.supervisor.deaths(self._program)
        killed = self.ground.supervisor.kill(self._program)
        self.happens(lambda: self.ground.supervisor.deaths(self._program) > deaths, 5)
        return int(killed)

    def _kill_child(self) -> int:
        children = children_of(self.ground.supervisor.pid(self._program))
        if not children:
            return 0
        with suppress(ProcessLookupError):
            os.kill(self.random.choice(children), signal.SIGKILL)
            return 1
        return 0


class HardLimit(Fault):
    """Tasks that run into their hard time limit, in a loop of Python and in a call into C."""

    kinds: Final = ("loops", "burns")

    def inject(self) -> None:
        """Submit them."""
        self._ids: list[str] = []
        for number in range(self.turn.hits):
            for kind in self.kinds:
                task = self.load.send(kind, f"rich-{number % 4}", time_limit=1)
                if task is not None:
                    self._ids.append(task)

    def during(self) -> None:
        """Until each of them is in the log as stopped."""
        self.happens(lambda: self.hits() >= len(self._ids), 30 + 4 * self.turn.hits)

    def heal(self) -> None:
        """Nothing is left to undo."""

    def hits(self) -> int:
        """Lines of the log that say so."""
        query = sa.text(
            "SELECT count(*) FROM usage_events WHERE task_id = ANY(:ids)"
            " AND reason IN ('hard_time_limit', 'exited')"
        )
        with self.ground.container.engine.connect() as connection:
            return int(connection.execute(query, {"ids": self._ids}).scalar_one())


def let_claim(ground: Ground, program: str) -> None:
    """Take all leases of the outbox away, so that a relay that was started again gets shards.

    A dead relay's leases last ten seconds, and the other relay is then there first. Leases only
    save work: two relays with one shard send its events twice.
    """
    if program == RELAY_B:
        with suppress(redis.RedisError):
            ground.container.redis.delete(
                *(f"{key}:lease" for key in ground.container.keys.outbox_keys())
            )


def at(place: Place, point: str) -> Callable[[Ground, Load, Turn], Fault]:
    """Makes deaths at one point."""
    return lambda ground, load, turn: KilledAt(ground, load, turn, place=place, point=point)


def everywhere(place: Place, points: Sequence[str]) -> Callable[[Ground, Load, Turn], Fault]:
    """Makes a death at each of several points."""
    return lambda ground, load, turn: KilledEverywhere(
        ground, load, turn, place=place, points=points
    )


def _anytime(program: str, *, child: bool = False) -> Callable[[Ground, Load, Turn], Fault]:
    return lambda ground, load, turn: KilledAnytime(
        ground, load, turn, program=program, child=child
    )


def specs() -> list[Spec]:
    """Every kill that can be asked for, but for those of leases."""
    found = []
    workers = (WORKER_A, WORKER_B)
    for who, about, place, points in (
        ("child", "a child", Place(workers, whole=False), TASK_POINTS),
        ("worker", "a worker with all its children", Place(workers), TASK_POINTS),
        ("relay", "a relay", Place((RELAY_B,)), RELAY_POINTS),
        ("consumer", "a consumer", Place((CONSUMER_2,)), CONSUMER_POINTS),
    ):
        hits = 1 if who == "worker" else 2
        for point in points:
            kind = Kind(name=f"{who}@{point}", hits=hits, many=True)
            found.append(Spec(kind, f"{about} dies at {point}", at(place, point)))
        kind = Kind(name=f"{who}@everywhere", hits=len(points))
        alone = replace(place, programs=place.programs[-1:])
        each = f"a {who} dies at each of its points, one after the other"
        found.append(Spec(kind, each, everywhere(alone, points)))
    found += [
        Spec(
            Kind(name="child-killed", hits=2, many=True),
            "SIGKILL of a child at any instant",
            _anytime(WORKER_A, child=True),
        ),
        Spec(
            Kind(name="worker-killed", many=True),
            "SIGKILL of a worker, its relay and its children at any instant",
            _anytime(WORKER_A),
        ),
        Spec(
            Kind(name="beat-killed", many=True),
            "SIGKILL of beat at any instant",
            _anytime(BEAT),
        ),
        Spec(
            Kind(name="hard-limit", many=True),
            "hard time limits in a loop of Python and in a call into C",
            HardLimit,
        ),
    ]
    return found
