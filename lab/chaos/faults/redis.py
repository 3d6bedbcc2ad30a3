"""Redis: emptied, killed, replaced by a replica that lacks its newest data."""

from __future__ import annotations

import time
from typing import Final, cast

import redis as redis_py

from billing.devtools.embedded_servers.launch import free_ports
from billing.devtools.embedded_servers.process import Command, Process, end, spawn
from billing.devtools.embedded_servers.valkey import Valkey
from lab.chaos.errors import ChaosError
from lab.chaos.faults.base import Fault, Spec
from lab.chaos.proxy import Mode, Proxy
from lab.chaos.schedule import Kind
from lab.chaos.servers import REDIS

# Only while there is something in the outbox that only the nodes' journals can bring back.
_FLUSH_WITH_LOSS: Final = """
local waiting = 0
for _, stream in ipairs(KEYS) do
  waiting = waiting + redis.call('XLEN', stream)
end
if waiting > 0 then
  redis.call('FLUSHALL')
end
return waiting
"""
_SECONDS: Final = 15.0


class Flushed(Fault):
    """FLUSHALL: balances, holds, the outbox with what was not yet published, Celery's results."""

    def inject(self) -> None:
        """Empty it at a moment when events wait in the outbox."""
        self._lost = 0
        container = self.ground.container
        flush = container.redis.register_script(_FLUSH_WITH_LOSS)

        def lost() -> bool:
            self._lost = int(cast("int", flush(keys=container.keys.outbox_keys())))
            return self._lost > 0

        deadline = time.monotonic() + _SECONDS
        while not lost() and time.monotonic() < deadline:
            pass

    def heal(self) -> None:
        """Nothing to undo: accounts are rebuilt, journals published again."""

    def hits(self) -> int:
        """Events that were in the outbox and are gone from it."""
        return self._lost


class Killed(Fault):
    """SIGKILL with appendfsync everysec, and a start from its append-only file."""

    def inject(self) -> None:
        """Kill it."""
        self._pid = self.ground.servers.kill(REDIS)

    def heal(self) -> None:
        """Start it again."""
        self.ground.servers.start_one(REDIS)

    def hits(self) -> int:
        """One, if its process was there and ended."""
        return int(bool(self._pid))


class ReplicaPromoted(Fault):
    """The machine of Redis is gone for good; a replica that lags behind takes its place."""

    def inject(self) -> None:
        """A replica that has everything, then hears no more; the load goes on; the end of Redis."""
        self._behind = 0
        self._replica: Process | None = None
        servers = self.ground.servers
        primary = servers.direct_url(REDIS)
        password = primary.partition("://:")[2].partition("@")[0]
        self._proxy = Proxy(_port(primary))
        with self._proxy:
            url = self._start_replica(password)
            with _client(url) as replica, _client(primary) as before:
                self.until(lambda: _offset(replica) == _offset(before) > 0, _SECONDS, "a replica")
                self._proxy.set(Mode.HALF_OPEN)
                settled = len(self.load.sent)
                self.until(lambda: len(self.load.sent) > settled + 20, _SECONDS, "settlements")
                end_of_primary, end_of_replica = _offset(before), _offset(replica)
                servers.kill(REDIS)
                replica.execute_command("REPLICAOF", "NO", "ONE")
                self._behind = end_of_primary - end_of_replica
        servers.lead_to(REDIS, url)

    def heal(self) -> None:
        """It stays in place until the end of the turn; then a fresh start of the first from it.

        The first server is started on the replica's data, so that the run goes on as it began.
        """
        if self._replica is None:
            return
        servers = self.ground.servers
        end([self._replica])
        target = servers.folder / REDIS / "appendonlydir"
        source = self._folder / "appendonlydir"
        for old in target.iterdir():
            old.unlink()
        for new in source.iterdir():
            (target / new.name).write_bytes(new.read_bytes())
        servers.start_one(REDIS)

    def hits(self) -> int:
        """Bytes of the stream of changes that the replica never got."""
        return self._behind

    def _start_replica(self, password: str) -> str:
        (port,) = free_ports(1)
        self._folder = self.ground.folder / f"replica-{self.turn.number}"
        self._folder.mkdir()
        plan = Valkey().plan(self._folder, self.ground.say)
        arguments = [
            *plan.commands[0].arguments,
            "--port", str(port), "--requirepass", password, "--masterauth", password,
            "--replicaof", f"127.0.0.1 {self._proxy.port}", "--repl-diskless-sync-delay", "0",
        ]  # fmt: skip
        self._replica = spawn(
            Command("replica", arguments, self._folder, self._folder / "replica.log")
        )
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        self.until(lambda: Valkey().ready(url), _SECONDS, "the replica to start")
        return url


def _client(url: str) -> redis_py.Redis:
    return redis_py.Redis.from_url(url, socket_timeout=5)


def _offset(client: redis_py.Redis) -> int:
    """How far this server is in the stream of changes; of a replica: what it has got of it."""
    found = client.info("replication")
    name = "slave_repl_offset" if found["role"] == "slave" else "master_repl_offset"
    if found["role"] == "slave" and found["master_link_status"] != "up" and not found.get(name):
        return -1
    return int(found[name])


def _port(url: str) -> int:
    port = url.rpartition(":")[2].partition("/")[0]
    if not port.isdecimal():
        raise ChaosError("Redis's URL has no port")
    return int(port)


def specs() -> list[Spec]:
    """Every fault of Redis."""
    return [
        Spec(Kind(name="redis-flushed"), "FLUSHALL while events wait in the outbox", Flushed),
        Spec(
            Kind(name="redis-killed", seconds=(1.0, 3.0)),
            "Redis is killed with appendfsync everysec and starts from its file",
            Killed,
        ),
        Spec(
            Kind(name="redis-replica-promoted", last=True, seconds=(2.0, 10.0), quick=False),
            "Redis is gone and a replica without its newest data takes its place",
            ReplicaPromoted,
        ),
    ]
