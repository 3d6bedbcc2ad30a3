"""Processes that die: at every fail point, at any instant, at a hard time limit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import redis
import sqlalchemy as sa

from chaos.faults.base import Fault, Spec
from chaos.ground import BEAT, CONSUMER_2, RELAY_B, WORKER_A, WORKER_B, Ground
from chaos.load import Load
from chaos.schedule import Kind, Turn
from chaos.servers import children_of

TASK_POINTS: Final = ("hold.before", "hold.after", "body.after", "settle.after")
RELAY_POINTS: Final = ("relay.before_publish", "relay.after_publish", "relay.after_confirm")
CONSUMER_POINTS: Final = (
    "consumer.before_insert",
    "consumer.before_commit",
    "consumer.after_commit",
)
_SECONDS_PER_HIT: Final = 12.0
_CHILD_SECONDS_PER_HIT: Final = 3.0


class KilledAt(Fault):
    """A program is run with a fail point armed, again and again, until it died often enough."""

    def __init__(
        self, ground: Ground, load: Load, turn: Turn, *, program: str, point: str, whole: bool
    ) -> None:
        super().__init__(ground, load, turn)
        self._program, self._point, self._whole = program, point, whole
        self._before = 0

    def inject(self) -> None:
        """Arm it."""
        self._before = self._counted()
        count = self.random.randint(2, 6) if self._program == WORKER_B else 1 + self._is_consumer
        specification = f"{self._point}={count}{'!' if self._whole else ''}"
        self.ground.start(self._program, failpoints=specification)

    def during(self) -> None:
        """Until there were enough deaths, or it has taken too long."""
        each = _SECONDS_PER_HIT if self._whole else _CHILD_SECONDS_PER_HIT
        self.happens(self._is_done, 30 + each * self.turn.hits)

    def heal(self) -> None:
        """From here on it runs as it is shipped."""
        self.ground.calm(self._program, self._point)

    def hits(self) -> int:
        """Deaths at the point, each recorded on disk before it."""
        return self._counted() - self._before

    @property
    def _is_consumer(self) -> bool:
        return self._program == CONSUMER_2

    def _is_done(self) -> bool:
        _let_claim(self.ground, self._program)
        return self.hits() >= self.turn.hits

    def _counted(self) -> int:
        self.ground.count_failpoints()
        return self.ground.hits[self._point]


class KilledEverywhere(Fault):
    """A program dies once at each of several points, in one life after the other."""

    def __init__(
        self,
        ground: Ground,
        load: Load,
        turn: Turn,
        *,
        program: str,
        points: Sequence[str],
        whole: bool,
    ) -> None:
        super().__init__(ground, load, turn)
        self._program, self._points, self._whole = program, points, whole
        self._found: set[str] = set()

    def inject(self) -> None:
        """Arm all of them; what has fired does not fire again."""
        mark = "!" if self._whole else ""
        points = [f"{point}={self.random.randint(1, 3)}{mark}" for point in self._points]
        self.ground.start(self._program, failpoints=",".join(points))
        self.ground.keep_record.add(self._program)

    def during(self) -> None:
        """Until all have fired, or it has taken too long."""
        self.happens(self._is_done, 60)

    def heal(self) -> None:
        """From its next life on it runs as it is shipped; in this one nothing is left to fire."""
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
        _let_claim(self.ground, self._program)
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
        with self.ground.system.engine.connect() as connection:
            return int(connection.execute(query, {"ids": self._ids}).scalar_one())


def _let_claim(ground: Ground, program: str) -> None:
    """Take all leases of the outbox away, so that a relay that was started again gets shards.

    A dead relay's leases last ten seconds, and the other relay is then there first. Leases only
    save work: two relays with one shard send its events twice.
    """
    if program == RELAY_B:
        with suppress(redis.RedisError):
            ground.system.redis.delete(
                *(f"{key}:lease" for key in ground.system.keys.outbox_keys())
            )


def _at(program: str, point: str, *, whole: bool) -> Callable[[Ground, Load, Turn], Fault]:
    return lambda ground, load, turn: KilledAt(
        ground, load, turn, program=program, point=point, whole=whole
    )


def _everywhere(
    program: str, points: Sequence[str], *, whole: bool
) -> Callable[[Ground, Load, Turn], Fault]:
    return lambda ground, load, turn: KilledEverywhere(
        ground, load, turn, program=program, points=points, whole=whole
    )


def _anytime(program: str, *, child: bool = False) -> Callable[[Ground, Load, Turn], Fault]:
    return lambda ground, load, turn: KilledAnytime(
        ground, load, turn, program=program, child=child
    )


def specs() -> list[Spec]:
    """Every kill that can be asked for."""
    found = []
    for point in TASK_POINTS:
        kind = Kind(name=f"child@{point}", hits=2, many=True)
        about = f"a child dies at {point}"
        found.append(Spec(kind, about, _at(WORKER_B, point, whole=False)))
        kind = Kind(name=f"worker@{point}", many=True)
        about = f"a worker with all its children dies at {point}"
        found.append(Spec(kind, about, _at(WORKER_B, point, whole=True)))
    for point in RELAY_POINTS:
        kind = Kind(name=f"relay@{point}", hits=2, many=True)
        found.append(Spec(kind, f"a relay dies at {point}", _at(RELAY_B, point, whole=True)))
    for point in CONSUMER_POINTS:
        kind = Kind(name=f"consumer@{point}", hits=2, many=True)
        found.append(Spec(kind, f"a consumer dies at {point}", _at(CONSUMER_2, point, whole=True)))
    for name, program, points, whole in (
        ("child", WORKER_B, TASK_POINTS, False),
        ("worker", WORKER_B, TASK_POINTS, True),
        ("relay", RELAY_B, RELAY_POINTS, True),
        ("consumer", CONSUMER_2, CONSUMER_POINTS, True),
    ):
        kind = Kind(name=f"{name}@everywhere", hits=len(points))
        about = f"a {name} dies at each of its points, one after the other"
        found.append(Spec(kind, about, _everywhere(program, points, whole=whole)))
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
