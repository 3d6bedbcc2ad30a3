"""Calls of the Lua verbs, and the one list of errors that mean "Redis is away"."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any, Final

import redis
from redis.commands.core import Script

from billing.core.errors import QuotaUnavailable

MILLISECONDS: Final = 1000

_UNAVAILABLE_CODES: Final = (
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNKILLABLE",
)
_UNAVAILABLE: Final = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.InvalidResponse,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.NoPermissionError,
    redis.exceptions.NoScriptError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)


@cache
def script_text(verb: str) -> str:
    """The whole Lua text of a verb: what all share, then its own."""
    return "\n".join(own_text(name) for name in ("_common", "budget", verb))


def own_text(name: str) -> str:
    """A Lua file as it is, for a step that needs nothing of the quota's."""
    return (resources.files(__package__) / "lua" / f"{name}.lua").read_text("utf-8")


class LuaScripts:
    """Scripts by name, each sent over a connection that is kept for them.

    redis-py asks its pool, its retries and its telemetry at every command: measured, two thirds of
    the processor time of a short script. What it does in an error is done here as well: one more
    try where its own retries would make one, no connection used again whose answer is unknown.

    Args:
        client: Where to. A client that is more than one server, or a test's own, is asked itself.
        names: Files in ``lua/``.
    """

    def __init__(self, client: redis.Redis, names: Sequence[str]) -> None:
        self._client = client
        self._scripts: dict[str, Script] = {
            name: client.register_script(script_text(name)) for name in names
        }
        self._is_direct = type(client) is redis.Redis
        self._idle: deque[Any] = deque()
        self._pid = os.getpid()

    def run(self, name: str, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> Any:  # noqa: ANN401 - each script's reply has a shape of its own
        """Run a script; see ``answering`` for what it raises."""
        script = self._scripts[name]
        if self._is_direct:
            try:
                return self._call("EVALSHA", script.sha, len(keys), *keys, *arguments)
            except redis.exceptions.NoScriptError:
                pass
        return script(keys=keys, args=arguments)

    def _call(self, *command: str | int | bytes) -> Any:  # noqa: ANN401 - as above
        """Ask over a connection that nobody else uses meanwhile."""
        if self._pid != os.getpid():
            # A forked child must not say anything on its parent's connections.
            self._idle, self._pid = deque(), os.getpid()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._client.connection_pool.get_connection()
        try:
            return connection.retry.call_with_retry(
                lambda: _answer(connection, command), lambda _: connection.disconnect()
            )
        finally:
            self._idle.append(connection)


def packed(command: Sequence[str | int | bytes]) -> bytes:
    """A command as Redis reads it.

    Not by hiredis (3.5.0): its ``pack_command`` kills the process where a signal's exception, such
    as a soft time limit, strikes within.
    """
    parts = [b"*%d\r\n" % len(command)]
    for part in command:
        data = part if isinstance(part, bytes) else str(part).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def _answer(connection: Any, command: Sequence[str | int | bytes]) -> Any:  # noqa: ANN401 - redis-py's connection, and a reply
    try:
        connection.send_packed_command([packed(command)], check_health=False)
        return connection.read_response()
    except redis.exceptions.ResponseError:
        raise
    except BaseException:
        # A soft time limit may strike after the question and before the answer, which would then
        # be taken for that of the next question.
        connection.disconnect()
        raise


@contextmanager
def answering() -> Iterator[None]:
    """Tell "Redis cannot answer" apart from "the question was wrong"."""
    try:
        yield
    except _UNAVAILABLE as error:
        raise QuotaUnavailable(f"the quota store did not answer: {error}") from error
    except redis.exceptions.ResponseError as error:
        if str(error).startswith(_UNAVAILABLE_CODES):
            raise QuotaUnavailable(f"the quota store refused: {error}") from error
        raise


def text(value: bytes | str) -> str:
    """A reply as text, whatever the client makes of it."""
    return value.decode() if isinstance(value, bytes) else value


def texts(reply: Mapping[Any, Any] | Sequence[Any]) -> dict[str, str]:
    """A hash as text, from a reply that is a mapping or names and values in turn."""
    if isinstance(reply, Mapping):
        return {text(name): text(value) for name, value in reply.items()}
    parts = [text(part) for part in reply]
    return dict(zip(parts[::2], parts[1::2], strict=True))
