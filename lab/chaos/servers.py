"""The private servers of a run: started, killed, stopped and started again, each behind proxies.

A server that is started again has other ports; the proxies follow it, and clients need not know.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from billing.devtools.embedded_servers import LocalServers
from billing.devtools.embedded_servers.launch import Say
from billing.devtools.embedded_servers.rabbitmq import RabbitMQ
from billing.devtools.embedded_servers.state import ServersFile
from lab.chaos.errors import ChaosError
from lab.chaos.proxy import Proxy

RABBITMQ: Final = "rabbitmq"
REDIS: Final = "valkey"
POSTGRES: Final = "postgres"
NAMES: Final = (POSTGRES, REDIS, RABBITMQ)

WORK: Final = "work"
"""The way of the workers, the relay and beat; faults are done to it."""
CONSUME: Final = "consume"
"""The way of the consumers; faults are done to it."""
WATCH: Final = "watch"
"""The way of the driver and the checker; always good."""
LANES: Final = (WORK, CONSUME, WATCH)

_NOBODY: Final = "amqp://127.0.0.1:1//"
"""Where no RabbitMQ is, so that a private one is started whatever runs on the standard port."""
_GONE_SECONDS: Final = 20.0
_RABBITMQCTL_SECONDS: Final = 60
_POLL_SECONDS: Final = 0.05


class Servers:
    """PostgreSQL, Valkey and RabbitMQ of this run alone.

    Args:
        folder: Their data and logs.
        say: Takes lines about what is going on.
    """

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder = folder
        self._say = say
        self._state = ServersFile(folder)
        self._local = LocalServers(folder, say=say, standard_amqp_url=_NOBODY)
        self._proxies: dict[tuple[str, str], Proxy] = {}
        self._urls: dict[str, str] = {}
        self._stack = ExitStack()

    def start(self) -> None:
        """Start all three and the proxies.

        Raises:
            LocalServerError: One cannot be had.
        """
        for name in NAMES:
            self.start_one(name)

    def start_one(self, name: str) -> None:
        """Start a server that does not run; its proxies then lead to it."""
        begin = {
            POSTGRES: self._local.postgres,
            REDIS: self._local.valkey,
            RABBITMQ: self._local.rabbitmq,
        }[name]
        self.lead_to(name, begin())

    def lead_to(self, name: str, url: str) -> None:
        """From now on the proxies of a server lead to this URL."""
        self._urls[name] = url
        port = urlsplit(url).port
        if port is None:
            raise ChaosError(f"{name}: a URL without a port")
        for lane in LANES:
            proxy = self._proxies.get((name, lane))
            if proxy is None:
                self._proxies[name, lane] = self._stack.enter_context(Proxy(port))
            else:
                proxy.target = port

    def proxy(self, name: str, lane: str) -> Proxy:
        """The proxy of a server on one of ``LANES``."""
        return self._proxies[name, lane]

    def url(self, name: str, lane: str) -> str:
        """Where a server is found on one of ``LANES``, for good."""
        return self.proxy(name, lane).url(self._urls[name])

    def direct_url(self, name: str) -> str:
        """Where it is at this moment, past all proxies."""
        return self._urls[name]

    def log_of(self, name: str) -> Path:
        """Its log."""
        return self.folder / name / f"{name}.log"

    def kill(self, name: str) -> int:
        """SIGKILL: the machine lost power. Returns when nothing of it is left; the killed pid."""
        pid = self._pid(name)
        children = children_of(pid)
        for each in (pid, *children):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        self._await_gone(name, [pid, *children])
        return pid

    def stop(self, name: str) -> int:
        """An orderly stop; the pid that was stopped."""
        record = self._state.records()[name]
        pid = self._pid(name)
        children = children_of(pid)
        record.processes[-1].send(record.processes[-1].stop_signal)
        self._await_gone(name, [pid])
        for each in children:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        return pid

    def alive(self, name: str) -> bool:
        """Whether it runs."""
        record = self._state.records().get(name)
        return record is not None and record.alive

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on the private node; what it printed.

        Raises:
            ChaosError: It failed, or took a minute.
        """
        script = RabbitMQ().installed()
        if script is None:
            raise ChaosError("rabbitmqctl is not installed beside rabbitmq-server")
        # The node's own environment says where its name, cookie and port mapper are.
        raw = Path(f"/proc/{self._pid(RABBITMQ)}/environ").read_bytes()
        pairs = (item.decode().partition("=") for item in raw.split(b"\0") if b"=" in item)
        environment = {name: value for name, _, value in pairs}
        environment.pop("RABBITMQ_DIST_PORT", None)
        try:
            done = subprocess.run(  # noqa: S603 - our own command line, no shell
                [str(script.with_name("rabbitmqctl")), *arguments],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
                timeout=_RABBITMQCTL_SECONDS,
            )
        except subprocess.CalledProcessError as error:
            raise ChaosError(f"rabbitmqctl {arguments[0]}: {error.stderr[-500:]}") from error
        except subprocess.TimeoutExpired as error:
            raise ChaosError(f"rabbitmqctl {arguments[0]} took too long") from error
        return done.stdout

    def remove(self) -> None:
        """Stop everything and delete the data."""
        self._stack.close()
        self._local.remove()

    def _pid(self, name: str) -> int:
        return self._state.records()[name].processes[-1].pid

    def _await_gone(self, name: str, pids: list[int]) -> None:
        deadline = time.monotonic() + _GONE_SECONDS
        # Through the state's own handles, so that a child of ours is reaped.
        while self._local_alive(name) or any(_runs(pid) for pid in pids[1:]):
            if time.monotonic() > deadline:
                raise ChaosError(f"{name} did not go")
            time.sleep(_POLL_SECONDS)

    def _local_alive(self, name: str) -> bool:
        found = [status for status in self._local.status() if status.name == name]
        last = self._state.records().get(name)
        return bool(found) and last is not None and last.processes[-1].alive


def children_of(pid: int) -> list[int]:
    """Every process under this one, at any depth."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, IndexError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(stat[1]), []).append(int(entry.name))
    found: list[int] = []
    front = [pid]
    while front:
        front = [child for parent in front for child in parents.get(parent, [])]
        found += front
    return found


def _runs(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
