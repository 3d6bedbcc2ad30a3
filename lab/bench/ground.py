"""The ground a benchmark stands on: servers, and names of its own on them.

Whoever the servers belong to, a run makes a database, a key prefix, queues and exchanges of its
own, and deletes them when it ends. Servers that it started itself go with all their data.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit, urlunsplit

import redis
import sqlalchemy as sa
from kombu.exceptions import OperationalError
from pydantic import SecretStr

from billing.container import Container
from billing.devtools.embedded_servers import Endpoints, LocalServers
from billing.devtools.embedded_servers.process import (
    Command,
    Process,
    end,
    interrupts_deferred,
    spawn,
)
from billing.devtools.embedded_servers.state import ServerRecord, ServersFile
from billing.devtools.embedded_servers.visit import (
    delete_keys,
    delete_queues,
    noting,
    run_statement,
)
from billing.postgres import migrations
from billing.settings import Settings
from billing.transport.topology import dead_exchange, dead_queue
from lab.bench.errors import BenchError
from lab.celery_exchanges import exchanges_of

Say = Callable[[str], None]

_STOP_SECONDS: Final = 10.0
_PATIENCE: Final[dict[str, object]] = {
    # Time-outs that a loaded machine must not reach; they do not change how fast anything is.
    "redis_timeout_ms": 10_000,
    "parent_redis_timeout_ms": 10_000,
    "publish_timeout_seconds": 60,
    "quarantine_seconds": 0,
    "failpoints": "",
    "relay_in_worker": True,
}


class Ground:
    """Servers, data and processes of one run; a context manager that leaves nothing behind.

    Args:
        folder: For this run alone; gone afterwards.
        given: What the environment says.
        say: Takes lines about what is going on.
    """

    def __init__(self, folder: Path, given: Settings, say: Say) -> None:
        self._folder = folder
        self._given = given
        self._servers = LocalServers(folder / "servers", say=say)
        self._processes = ServersFile(folder / "processes")
        self._running: list[Process] = []
        self._systems: list[Container] = []
        self._name = f"wbbench_{secrets.token_hex(4)}"
        self._database_made = False
        self._extra: list[str] = []
        self._queues: list[str] = []
        self._exchanges: list[str] = []
        self.left: list[str] = []
        self.endpoints: Endpoints

    def __enter__(self) -> Self:
        try:
            self._clear_leftovers()
            self._folder.mkdir(parents=True, exist_ok=True)
            self.endpoints = self._servers.start(self._given, need_rabbitmq=True, allow_kombu=True)
            run_statement(self.endpoints.database_url, f'CREATE DATABASE "{self._name}"')
            self._database_made = True
            migrations.upgrade(self._database_url())
        except BaseException:
            self._clear_away()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clear_away()

    @property
    def on_rabbitmq(self) -> bool:
        """Whether the broker is RabbitMQ; else Kombu's transport over Valkey takes its place."""
        return (self.endpoints.amqp_url or "").startswith("amqp")

    def folder_of(self, suite: str) -> Path:
        """The folder of one suite."""
        folder = self._folder / suite
        folder.mkdir(exist_ok=True)
        return folder

    def settings(self, suite: str) -> Settings:
        """Settings with names that are this suite's own."""
        own = f"{self._name}.{suite}"
        settings = self.endpoints.applied_to(self._given).model_copy(
            update={
                **_PATIENCE,
                "database_url": SecretStr(self._database_url()),
                "local_dir": self._folder,
                "spool_dir": self.folder_of(suite) / "spool",
                "redis_prefix": own,
                "usage_exchange": f"{own}.usage",
                "usage_queue": f"{own}.usage.log",
                "task_queue": f"{own}.tasks",
            }
        )
        usage = (settings.usage_queue, settings.usage_exchange)
        self.to_delete(usage[0], dead_queue(usage[0]), settings.task_queue)
        self._exchanges += [usage[1], dead_exchange(usage[1]), *exchanges_of(settings)]
        return settings

    def extra_database(self, name: str) -> str:
        """The URL of another database, migrated and empty; deleted with the ground."""
        own = f"{self._name}_{name}"
        run_statement(self.endpoints.database_url, f'CREATE DATABASE "{own}"')
        self._extra.append(own)
        url = urlunsplit(urlsplit(self.endpoints.database_url)._replace(path=f"/{own}"))
        migrations.upgrade(url)
        return url

    def to_delete(self, *queues: str) -> None:
        """Name queues that a suite declares, each with a direct exchange of its name or none."""
        self._queues += queues
        self._exchanges += queues

    def container(self, settings: Settings) -> Container:
        """This process's stores; closed with the ground."""
        container = Container(settings, endpoints=_endpoints(settings))
        self._systems.append(container)
        return container

    def start(self, name: str, arguments: list[str], settings: Settings, log: Path) -> Process:
        """Start a Celery worker with these settings; ended with the ground.

        Raises:
            LocalServerError: It could not be started.
        """
        environment = {**os.environ, **environment_of(settings)}
        # A cold shutdown: what it was doing is thrown away with the queues.
        command = Command(name, arguments, Path.cwd(), log, environment, stop_signal=signal.SIGQUIT)
        self._processes.folder.mkdir(exist_ok=True)
        with interrupts_deferred():
            process = spawn(command)
            self._running.append(process)
            self._processes.put(ServerRecord(name, processes=(process,)))
        return process

    def _database_url(self) -> str:
        return urlunsplit(urlsplit(self.endpoints.database_url)._replace(path=f"/{self._name}"))

    def _clear_leftovers(self) -> None:
        """End what a killed run left here."""
        if self._processes.exists:
            records = self._processes.records().values()
            end([process for record in records for process in record.processes])
        LocalServers(self._folder / "servers").remove()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _clear_away(self) -> None:
        with interrupts_deferred():
            end(self._running, timeout_seconds=_STOP_SECONDS)
            for container in self._systems:
                container.close()
            if hasattr(self, "endpoints"):
                self._delete_data()
            self._servers.stop_started()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _delete_data(self) -> None:
        for name in [*self._extra, *([self._name] if self._database_made else [])]:
            with noting(self.left, f"database {name}", sa.exc.SQLAlchemyError):
                drop = f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'
                run_statement(self.endpoints.database_url, drop)
        with noting(self.left, f"Redis keys {self._name}.*", redis.RedisError):
            delete_keys(self.endpoints.redis_url, [f"{self._name}.*"])
        if self.on_rabbitmq:
            with noting(self.left, f"queues {self._name}.*", OperationalError, OSError):
                delete_queues(self.endpoints.amqp_url or "", self._queues, self._exchanges)


def environment_of(settings: Settings) -> Mapping[str, str]:
    """Settings as the environment of a process. Prefixed names: they win over plain ones."""
    return {
        f"WEIGHBRIDGE_{name.upper()}": value.get_secret_value()
        if isinstance(value, SecretStr)
        else str(value)
        for name, value in settings
        if value is not None
    }


def _endpoints(settings: Settings) -> Endpoints:
    def url(given: SecretStr | None) -> str:
        if given is None:
            raise BenchError("the settings of a suite name every server")
        return given.get_secret_value()

    return Endpoints(
        url(settings.database_url),
        url(settings.redis_url),
        url(settings.amqp_url),
        url(settings.result_url),
    )
