"""The network between the processes and each of the three servers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from lab.chaos.faults.base import Fault, Spec
from lab.chaos.ground import Ground
from lab.chaos.load import Load
from lab.chaos.proxy import Met, Mode
from lab.chaos.schedule import Kind, Turn
from lab.chaos.servers import CONSUME, NAMES, WORK

_LATENCY_SECONDS: Final = 0.08


class Network(Fault):
    """One mode of a bad network, to each server in turn, for workers and consumers."""

    def __init__(self, ground: Ground, load: Load, turn: Turn, *, mode: Mode) -> None:
        super().__init__(ground, load, turn)
        self._mode = mode
        self._met: dict[str, Met] = {}

    def inject(self) -> None:
        """In ``during``: one server after the other."""

    def during(self) -> None:
        """Each server for a third of the time."""
        order = list(NAMES)
        self.random.shuffle(order)
        for name in order:
            lanes = [self.ground.servers.proxy(name, lane) for lane in (WORK, CONSUME)]
            for proxy in lanes:
                proxy.set(self._mode, delay_seconds=_LATENCY_SECONDS)
            time.sleep(self.turn.seconds / len(NAMES))
            met = [proxy.heal() for proxy in lanes]
            self._met[name] = Met(
                sum(each.connections for each in met), sum(each.data_bytes for each in met)
            )

    def heal(self) -> None:
        """Good on every way."""
        for name in NAMES:
            for lane in (WORK, CONSUME):
                self.ground.servers.proxy(name, lane).heal()

    def hits(self) -> int:
        """Connections that met it; none counts if one server was met by nobody."""
        met = [each.connections for each in self._met.values()]
        return sum(met) if len(met) == len(NAMES) and all(met) else 0


def _of(mode: Mode) -> Callable[[Ground, Load, Turn], Fault]:
    return lambda ground, load, turn: Network(ground, load, turn, mode=mode)


def specs() -> list[Spec]:
    """Every mode of a bad network."""
    return [
        Spec(
            Kind(name="network-latency", seconds=(3.0, 15.0)),
            f"{_LATENCY_SECONDS * 1000:.0f} ms more on every way of every piece of data",
            _of(Mode.LATENCY),
        ),
        Spec(Kind(name="network-cut", seconds=(3.0, 15.0)), "cut off", _of(Mode.CUT)),
        Spec(Kind(name="network-reset", seconds=(3.0, 15.0)), "reset", _of(Mode.RESET)),
        Spec(
            Kind(name="network-half-open", seconds=(4.5, 30.0)),
            "connections stay and nothing comes through",
            _of(Mode.HALF_OPEN),
        ),
    ]
