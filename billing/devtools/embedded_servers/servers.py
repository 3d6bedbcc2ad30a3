"""Starting and stopping the embedded servers of one folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from billing.devtools.embedded_servers import access
from billing.devtools.embedded_servers.launch import Launcher, Plan, Say
from billing.devtools.embedded_servers.postgres import Postgres
from billing.devtools.embedded_servers.process import (
    EndedAtStart,
    LocalServerError,
    Process,
    end,
    interrupts_deferred,
    spawn,
    terminated_as_interrupt,
    wait_ready,
)
from billing.devtools.embedded_servers.rabbitmq import (
    SCRIPT_FOLDERS,
    STANDARD_URL,
    RabbitMQ,
    answers,
)
from billing.devtools.embedded_servers.state import ServerRecord, ServersFile
from billing.devtools.embedded_servers.valkey import Valkey
from billing.server_urls import (
    BROKER_DATABASE,
    RESULT_DATABASE,
    Endpoints,
    masked,
    sibling_database,
)
from billing.settings import Settings

ALL_SERVERS: Final = frozenset({Postgres.name, Valkey.name, RabbitMQ.name})
_ATTEMPTS: Final = 3
"""A port found free may be taken before the server listens on it; then others are tried."""

_REUSE_SECONDS: Final = 10.0
"""The longest time for a server that runs already to answer before it is replaced."""

KOMBU_NOTE: Final = (
    "No RabbitMQ: tasks and events go through Kombu's Redis transport on the embedded Valkey. "
    "What that costs: no publisher confirms, no quorum copies, and a message whose worker died "
    "comes back only after the visibility timeout (the hard time limit and a minute)."
)


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One embedded server, as written down and as found."""

    name: str
    running: bool
    url: str
    """Without its password."""
    pids: tuple[int, ...]


def _silent(_: str) -> None:
    pass


class LocalServers:
    """The embedded servers of one folder. Starting is idempotent: what runs already is used.

    Args:
        folder: For data, logs and ``servers.json``.
        say: Takes lines about what is going on.
        durable: False gives up data safety for speed; for tests.
        rabbitmq_folders: Searched for ``rabbitmq-server`` beside PATH.
        standard_amqp_url: Tried for a running RabbitMQ before a private one is started.
    """

    def __init__(
        self,
        folder: Path,
        *,
        say: Say = _silent,
        durable: bool = True,
        rabbitmq_folders: Sequence[Path] = SCRIPT_FOLDERS,
        standard_amqp_url: str = STANDARD_URL,
    ) -> None:
        self._folder = folder.resolve()
        self._state = ServersFile(self._folder)
        self._say = say
        self._durable = durable
        self._rabbitmq = RabbitMQ(rabbitmq_folders)
        self._standard_amqp_url = standard_amqp_url
        self._started: set[str] = set()

    def start(self, settings: Settings, *, need_rabbitmq: bool, allow_kombu: bool) -> Endpoints:
        """Start what the settings leave open. If one fails, those started by this call are stopped.

        Args:
            settings: Their URLs are used where set.
            need_rabbitmq: Whether a message broker is needed at all.
            allow_kombu: Whether Valkey may take RabbitMQ's place; the notes then say the cost.

        Raises:
            LocalServerError: A server cannot be had.
        """
        notes: list[str] = []
        before = set(self._started)
        try:
            database_url = _given(settings.database_url) or self.postgres()
            redis_url = _given(settings.redis_url) or self.valkey()
            amqp_url = _given(settings.amqp_url)
            if amqp_url is None and need_rabbitmq:
                amqp_url = self._broker(notes, allow_kombu=allow_kombu)
                with self._state.locked():
                    self._state.put_broker_url(amqp_url)
        except BaseException:
            self._stop(self._started - before)
            raise
        result_url = _given(settings.result_url) or sibling_database(redis_url, RESULT_DATABASE)
        return Endpoints(database_url, redis_url, amqp_url, result_url, tuple(notes))

    def postgres(self) -> str:
        """The URL of the embedded PostgreSQL, started if it does not run."""
        return self._ensure(Postgres(durable=self._durable))

    def valkey(self) -> str:
        """The URL of the embedded Valkey, started if it does not run."""
        return self._ensure(Valkey(durable=self._durable))

    def rabbitmq(self) -> str:
        """The URL of a RabbitMQ: the one on the standard port, else a private node.

        Raises:
            LocalServerError: There is neither.
        """
        if answers(self._standard_amqp_url):
            return self._standard_amqp_url
        return self._ensure(self._rabbitmq)

    def stop(self) -> list[str]:
        """Stop every server of this folder, whichever process started it; their names."""
        return self._stop(ALL_SERVERS)

    def stop_started(self) -> list[str]:
        """Stop what this object started, and leave alone what it found running; their names."""
        return self._stop(self._started)

    def remove(self) -> None:
        """Stop every server and delete the folder with all data."""
        if self._folder.exists():
            self.stop()
            shutil.rmtree(self._folder, ignore_errors=True)

    def status(self) -> list[ServerStatus]:
        """Every server that was started here and not stopped since."""
        return [
            ServerStatus(r.name, r.alive, masked(r.url), tuple(p.pid for p in r.processes))
            for r in self._state.records().values()
        ]

    def _broker(self, notes: list[str], *, allow_kombu: bool) -> str:
        try:
            return self.rabbitmq()
        except LocalServerError as error:
            if not allow_kombu:
                raise
            if self._rabbitmq.installed():
                notes.append(f"The installed RabbitMQ could not be started: {error}")
            notes.append(KOMBU_NOTE)
        return sibling_database(self.valkey(), BROKER_DATABASE)

    def _ensure(self, launcher: Launcher) -> str:
        with self._state.locked():
            record = self._state.records().get(launcher.name)
            if record and record.alive and self._still_ready(launcher, record):
                return record.url
            if record:
                self._say(f"{launcher.name}: clearing up after an earlier run")
                self._end(record)
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    return self._launch(launcher)
                except EndedAtStart:
                    if attempt == _ATTEMPTS:
                        raise
        raise AssertionError  # the loop returns or raises

    def _launch(self, launcher: Launcher) -> str:
        folder = self._folder / launcher.name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with access.way_kept_open():
                self._open_way(launcher, folder)
                plan = launcher.plan(folder, self._say)
                self._say(f"{launcher.name}: starting")
                processes = self._spawn(launcher.name, plan)
                wait_ready(
                    launcher.name,
                    lambda: launcher.ready(plan.url),
                    processes,
                    log=plan.log,
                    timeout_seconds=launcher.start_seconds,
                )
        except BaseException:
            self._stop([launcher.name], locked=True)
            raise
        self._say(f"{launcher.name}: ready at {masked(plan.url)}")
        return plan.url

    def _still_ready(self, launcher: Launcher, record: ServerRecord) -> bool:
        try:
            wait_ready(
                launcher.name,
                lambda: launcher.ready(record.url),
                record.processes,
                log=self._folder / launcher.name,
                timeout_seconds=_REUSE_SECONDS,
            )
        except LocalServerError:
            return False
        return True

    def _open_way(self, launcher: Launcher, folder: Path) -> None:
        opened = tuple(access.closed_folders(launcher.reached_by_others(folder)))
        if opened:
            first = opened[0][0] + (f" and {len(opened) - 1} more folders" if opened[1:] else "")
            self._say(f"{launcher.name}: lets its system user pass through {first} until it stops")
            # Written down first: whoever stops it can give the modes back, whatever happens here.
            self._state.put(ServerRecord(launcher.name, opened=opened))
            access.open_folders(opened)

    def _spawn(self, name: str, plan: Plan) -> Sequence[Process]:
        record = self._state.records().get(name, ServerRecord(name))
        record = replace(record, url=plan.url)
        for command in plan.commands:
            with interrupts_deferred():
                record = replace(record, processes=(*record.processes, spawn(command)))
                self._state.put(record)
                self._started.add(name)
        return record.processes

    def _stop(self, names: Collection[str], *, locked: bool = False) -> list[str]:
        if not names or not self._folder.exists():
            return []
        with interrupts_deferred(), contextlib.nullcontext() if locked else self._state.locked():
            records = [r for r in self._state.records().values() if r.name in names]
            self._end(*records)
            self._started.difference_update(list(names))
            if not self._state.records():
                self._state.put_broker_url(None)
        return [record.name for record in records]

    def _end(self, *records: ServerRecord) -> None:
        # All servers at once; of one server the last started first: a node before its epmd.
        for depth in range(1, max((len(r.processes) for r in records), default=0) + 1):
            end([r.processes[-depth] for r in records if len(r.processes) >= depth])
        for record in records:
            access.close_folders(record.opened)
            self._state.forget(record.name)


@contextlib.contextmanager
def running(
    settings: Settings, *, need_rabbitmq: bool = True, allow_kombu: bool = True, say: Say = _silent
) -> Iterator[Endpoints]:
    """Servers for the length of a block, in ``settings.local_dir``; then stops what it started.

    Also after Ctrl-C and SIGTERM, both of which end the block with ``KeyboardInterrupt``.

    Raises:
        LocalServerError: A server cannot be had.
    """
    servers = LocalServers(settings.local_dir, say=say)
    with terminated_as_interrupt():
        try:
            yield servers.start(settings, need_rabbitmq=need_rabbitmq, allow_kombu=allow_kombu)
        finally:
            servers.stop_started()


def stop_abandoned(base: Path) -> None:
    """Stop and delete the folders in ``base`` that a killed run left behind."""
    for folder in base.glob("*/"):
        state = ServersFile(folder)
        if state.exists and not state.owner_alive():
            LocalServers(folder).remove()


def _given(url: SecretStr | None) -> str | None:
    return None if url is None else url.get_secret_value()
