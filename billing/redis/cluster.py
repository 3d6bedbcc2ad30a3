"""Redis Cluster behind the interface of one Redis: the part of it that Weighbridge uses.

Which node has which slot, and what to do about MOVED and ASK, is redis-py's. What is added: nothing
connects before it is used; a pipeline goes to each node through that node's ordinary client, so
that scripts are loaded where they are missing and a node that is away costs one time-out, not one
per command; and every trouble of the cluster is a ``redis.ConnectionError``, which all that talks
to one Redis already knows.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Self

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import (
    AskError,
    ClusterError,
    MasterDownError,
    NoScriptError,
    RedisClusterException,
    TryAgainError,
)
from redis.retry import Retry

from billing.redis.cluster_url import SCHEMES, nodes_of

_TRIES: Final = 2
_TROUBLE: Final = (RedisClusterException, ClusterError, AskError, TryAgainError)
_NODE_AWAY: Final = (redis.ConnectionError, redis.TimeoutError, MasterDownError, *_TROUBLE)

_PASSED_ON: Final = frozenset({"hgetall", "hkeys", "zrange", "xrange", "config_get"})
_QUEUED: Final = frozenset({"xrange", "xdel", "xlen", "set"})

_WORST: Final[Mapping[str, Callable[[list[Any]], Any]]] = {
    "maxmemory_policy": lambda said: next((p for p in said if p != "noeviction"), said[0]),
    "aof_enabled": lambda said: min(int(each) for each in said),
    "rdb_last_bgsave_status": lambda said: next((s for s in said if s != "ok"), said[0]),
    "aof_last_write_status": lambda said: next((s for s in said if s != "ok"), said[0]),
}


def is_cluster(url: str) -> bool:
    """Whether a URL names a cluster."""
    return url.partition("://")[0] in SCHEMES


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A node of a cluster. ``primary_id``: whom it is a replica of; None: it is a primary."""

    id: str
    address: str
    primary_id: str | None
    has_slots: bool
    failing: bool


class ClusterScript:
    """A script that is sent as a whole where a node does not know it, so that any node can run it.

    redis-py's own would load it into every primary, which fails while one of them is away.
    """

    def __init__(self, client: ClusterClient, text: str) -> None:
        self._client = client
        self.text = text
        self.sha = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - Redis names scripts so

    def __call__(
        self,
        keys: Sequence[str],
        args: Sequence[str | int | bytes] = (),
        client: ClusterPipeline | None = None,
    ) -> Any:  # noqa: ANN401 - each script's reply has a shape of its own
        """Run it on the node of its keys, or queue it in a pipeline."""
        if client is not None:
            client.run(self, keys, args)
            return None
        try:
            return self._client.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return self._client.execute_command("EVAL", self.text, len(keys), *keys, *args)


class ClusterClient:
    """A cluster, for whatever takes a ``redis.Redis`` here. May be shared by threads.

    Args:
        url: As ``nodes_of`` takes it.
        timeout_seconds: The longest wait for one answer of one node. A call is tried twice, and
            asks for the map of slots in between: with a node away it takes up to three of these.
    """

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self._nodes, self._options = nodes_of(url)
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._made: RedisCluster | None = None

    def register_script(self, text: str) -> ClusterScript:
        """As redis-py's; asks nothing of the cluster."""
        return ClusterScript(self, text)

    def execute_command(self, *command: Any) -> Any:  # noqa: ANN401 - as redis-py's
        """One command, on the node of its key."""
        with translated():
            return self.cluster.execute_command(*command)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Commands of redis-py that need no more than to be sent to the node of their key."""
        if name not in _PASSED_ON:
            raise AttributeError(name)

        def command(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401 - as redis-py's
            with translated():
                return getattr(self.cluster, name)(*arguments, **more)

        return command

    def ping(self) -> bool:
        """Whether every node that should answer does."""
        with translated():
            return bool(self.cluster.ping())

    def time(self) -> tuple[int, int]:
        """The clock of one node."""
        with translated():
            seconds, microseconds = self.cluster.time()
        return seconds, microseconds

    def info(self, section: str | None = None) -> dict[str, Any]:
        """``INFO`` of one primary, with the worst value of all where it matters (``_WORST``)."""
        asked = [section] if section else []
        said: list[dict[str, Any]] = []
        with translated():
            for node in self.cluster.get_primaries():
                # One that is away is shown by ``members``.
                with suppress(*_NODE_AWAY):
                    said.append(self.cluster.get_redis_connection(node).info(*asked))
        return combined(said)

    def members(self) -> list[Member]:
        """Every node, as the one that is asked sees it."""
        with translated():
            rows: dict[str, dict[str, Any]] = self.cluster.cluster_nodes()
        return [
            Member(
                id=row["node_id"],
                address=address,
                primary_id=None if row["master_id"] == "-" else row["master_id"],
                has_slots=bool(row["slots"]),
                failing=any("fail" in flag for flag in row["flags"].split(",")),
            )
            for address, row in rows.items()
        ]

    def lives(self, keys: Sequence[str]) -> list[str | None]:
        """The run id of the node that has each key; None where that does not answer."""
        with translated():
            names = [self.node_name(key) for key in keys]
            run_ids = {name: self._run_id(name) for name in set(names)}
        return [run_ids[name] for name in names]

    def pipeline(self, *, transaction: bool = False) -> ClusterPipeline:
        """Commands that are sent together, without a transaction."""
        if transaction:
            raise NotImplementedError("a transaction over a cluster's nodes does not exist")
        return ClusterPipeline(self)

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.close()

    @property
    def cluster(self) -> Any:  # noqa: ANN401 - redis-py types little of a cluster
        """redis-py's ``RedisCluster``; made, and the map of slots read, at the first use."""
        with self._lock:
            if self._made is None:
                self._made = RedisCluster(
                    startup_nodes=[ClusterNode(*node) for node in self._nodes],  # type: ignore[no-untyped-call]
                    socket_timeout=self._timeout_seconds,
                    socket_connect_timeout=self._timeout_seconds,
                    # One repeat; every verb may be repeated.
                    retry=Retry(NoBackoff(), _TRIES - 1),
                    # Shards of other nodes go on while one node is away.
                    require_full_coverage=False,
                    # A slot that moved is a failover here: learn all of the new map at once.
                    reinitialize_steps=1,
                    **self._options,
                )
            return self._made

    def send(self, node_name: str, fill: Callable[[Any], None]) -> list[Any]:
        """Send commands to one node; an answer may be an error of the command."""
        node = self.cluster.get_node(node_name=node_name)
        if node is None:
            raise redis.ConnectionError(f"{node_name} has left the cluster")
        with self.cluster.get_redis_connection(node).pipeline(transaction=False) as pipeline:
            fill(pipeline)
            return list(pipeline.execute(raise_on_error=False))

    def node_name(self, key: str) -> str:
        """The node that has a key, as far as is known."""
        return str(self.cluster.get_node_from_key(key).name)

    def learn(self) -> None:
        """Read the map of slots anew."""
        with translated():
            self.cluster.nodes_manager.initialize()

    def _run_id(self, name: str) -> str | None:
        try:
            (info,) = self.send(name, lambda pipeline: pipeline.info("server"))
        except _NODE_AWAY:
            return None
        return None if isinstance(info, Exception) else str(info["run_id"])


class ClusterPipeline:
    """Commands queued by node, each node's sent at once."""

    def __init__(self, client: ClusterClient) -> None:
        self._client = client
        self._queued: list[tuple[str, Callable[[Any], object]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._queued.clear()

    def execute_command(self, *command: Any) -> None:  # noqa: ANN401 - as redis-py's
        """Queue a command whose first argument is its key."""
        self._queue(command[1], lambda pipeline: pipeline.execute_command(*command))

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Commands of redis-py whose first argument is their key, to be queued."""
        if name not in _QUEUED:
            raise AttributeError(name)
        return lambda key, *arguments, **more: self._queue(
            key, lambda pipeline: getattr(pipeline, name)(key, *arguments, **more)
        )

    def run(
        self, script: ClusterScript, keys: Sequence[str], args: Sequence[str | int | bytes]
    ) -> None:
        """Queue a script; the node's pipeline loads it where it is missing."""

        def queue(pipeline: Any) -> None:  # noqa: ANN401 - redis-py's pipeline
            redis.commands.core.Script(pipeline, script.text)(keys=keys, args=args, client=pipeline)

        self._queue(keys[0], queue)

    def execute(self, *, raise_on_error: bool = True) -> list[Any]:
        """Send all; what failed is tried once more by a new map of slots.

        Args:
            raise_on_error: Raise the first error; else it is in its command's place.

        Raises:
            redis.RedisError: A node did not answer (``ConnectionError``) or refused.
        """
        queued, self._queued = self._queued, []
        answers: list[Any] = [None] * len(queued)
        unanswered = list(range(len(queued)))
        for attempt in range(_TRIES):
            if attempt:
                self._client.learn()
            self._send(queued, unanswered, answers)
            unanswered = [index for index in unanswered if isinstance(answers[index], _NODE_AWAY)]
            if not unanswered:
                break
        for index, answer in enumerate(answers):
            if isinstance(answer, _TROUBLE):
                answers[index] = redis.ConnectionError(str(answer))
        if raise_on_error:
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers

    def _queue(self, key: str, command: Callable[[Any], object]) -> None:
        self._queued.append((key, command))

    def _send(
        self,
        queued: Sequence[tuple[str, Callable[[Any], object]]],
        wanted: Sequence[int],
        answers: list[Any],
    ) -> None:
        by_node: dict[str, list[int]] = {}
        for index in wanted:
            try:
                by_node.setdefault(self._client.node_name(queued[index][0]), []).append(index)
            except _TROUBLE as error:
                answers[index] = error
        for name, indexes in by_node.items():

            def fill(pipeline: Any, indexes: list[int] = indexes) -> None:  # noqa: ANN401 - as above
                for index in indexes:
                    queued[index][1](pipeline)

            try:
                found = self._client.send(name, fill)
            except _NODE_AWAY as error:
                found = [error] * len(indexes)
            for index, answer in zip(indexes, found, strict=True):
                answers[index] = answer


def combined(said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One answer for several nodes: the first one's, and of what matters the worst."""
    if not said:
        raise redis.ConnectionError("the cluster has no primaries")
    worst = {name: rule([each[name] for each in said]) for name, rule in _WORST.items()
             if all(name in each for each in said)}  # fmt: skip
    return {**said[0], **worst}


@contextmanager
def translated() -> Iterator[None]:
    """Raise trouble of the cluster as a whole as ``redis.ConnectionError``."""
    try:
        yield
    except _TROUBLE as error:
        raise redis.ConnectionError(f"Redis Cluster: {error}") from error
