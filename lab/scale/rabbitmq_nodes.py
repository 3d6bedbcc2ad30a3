"""A RabbitMQ cluster on this machine: private nodes that share a port mapper and a cookie."""

from __future__ import annotations

import shutil
import signal
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from billing.devtools.embedded_servers.process import (
    Command,
    LocalServerError,
    Process,
    end,
    environment,
    spawn,
    wait_ready,
)
from billing.devtools.embedded_servers.rabbitmq import RabbitMQ, answers

_START_SECONDS: Final = 120.0
_ASK_SECONDS: Final = 60


@dataclass(slots=True)
class Node:
    """One RabbitMQ; ``url`` speaks to it alone."""

    name: str
    url: str
    command: Command
    process: Process | None = None


class RabbitNodes:
    """``count`` nodes that find each other by their configuration, and end with all their data.

    Args:
        folder: Nobody else's.
        count: How many.
    """

    def __init__(self, folder: Path, count: int = 3) -> None:
        self._folder = folder
        self._count = count
        self._mapper: Process | None = None
        self.nodes: list[Node] = []

    @property
    def url(self) -> str:
        """All nodes, for ``AMQP_URL``."""
        return ";".join(node.url for node in self.nodes)

    def start(self) -> None:
        """Start the first, then the others, which join it.

        Raises:
            LocalServerError: There is no RabbitMQ here, or a node does not start.
        """
        self._plan()
        first, *others = self.nodes
        self._launch(first)
        self._wait(first)
        for node in others:
            self._launch(node)
        for node in others:
            self._wait(node)

    def kill(self, node: Node) -> None:
        """As a crash of its machine."""
        if node.process is not None:
            node.process.send(signal.SIGKILL)
            end([node.process])

    def restart(self, node: Node) -> None:
        """Start a node again, with the data it has."""
        self._launch(node)
        self._wait(node)

    def ask(self, node: Node, program: str, *arguments: str) -> str:
        """What ``rabbitmqctl`` or ``rabbitmq-queues`` answers.

        Raises:
            LocalServerError: It failed.
        """
        script = (RabbitMQ().installed() or Path()).with_name(program)
        answer = subprocess.run(  # noqa: S603 - our own command line, no shell
            [str(script), "-n", node.name, "-q", *arguments],
            env=environment(dict(node.command.environment)),
            capture_output=True,
            text=True,
            check=False,
            timeout=_ASK_SECONDS,
        )
        if answer.returncode:
            raise LocalServerError("RabbitMQ", (answer.stderr or answer.stdout)[-500:], "see it")
        return answer.stdout

    def leader(self, queue: str) -> Node:
        """The node that leads a quorum queue."""
        for node in self.nodes:
            if node.process is not None and node.process.alive:
                listed = self.ask(node, "rabbitmqctl", "list_queues", "name", "leader")
                for line in listed.splitlines():
                    name, _, leader = line.partition("\t")
                    if name == queue:
                        return next(each for each in self.nodes if each.name == leader.strip())
        raise LocalServerError("RabbitMQ", f"no queue {queue}", "see the logs")

    def remove(self) -> None:
        """Stop all and delete their data."""
        end([node.process for node in self.nodes if node.process is not None])
        if self._mapper is not None:
            end([self._mapper])
        shutil.rmtree(self._folder, ignore_errors=True)

    def _plan(self) -> None:
        server = RabbitMQ()
        home = self._folder / "home"
        home.mkdir(parents=True)
        plans = []
        for number in range(self._count):
            folder = self._folder / f"node{number}"
            folder.mkdir()
            plans.append((folder, server.plan(folder, lambda _: None)))
        mapper = plans[0][1].commands[0]
        shared = {"HOME": str(home), "ERL_EPMD_PORT": mapper.environment["ERL_EPMD_PORT"]}
        self._mapper = spawn(replace(mapper, environment={**mapper.environment, **shared}))
        login = urlsplit(plans[0][1].url).netloc.rpartition("@")[0]
        for _, plan in plans:
            command = plan.commands[1]
            parts = urlsplit(plan.url)
            self.nodes.append(
                Node(
                    command.environment["RABBITMQ_NODENAME"],
                    # Who joins takes over the users of the first node.
                    urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{parts.port}")),
                    replace(command, environment={**command.environment, **shared}),
                )
            )
        found = "".join(
            f"cluster_formation.classic_config.nodes.{number} = {node.name}\n"
            for number, node in enumerate(self.nodes, 1)
        )
        for folder, _ in plans:
            with (folder / "rabbitmq.conf").open("a") as configuration:
                configuration.write(
                    "cluster_formation.peer_discovery_backend = classic_config\n"
                    "cluster_formation.randomized_startup_delay_range.max = 0\n" + found
                )

    def _launch(self, node: Node) -> None:
        node.process = spawn(node.command)

    def _wait(self, node: Node) -> None:
        assert node.process is not None  # noqa: S101 - launched by the caller
        wait_ready(
            node.name, lambda: answers(node.url), [node.process], log=node.command.log,
            timeout_seconds=_START_SECONDS,
        )  # fmt: skip
