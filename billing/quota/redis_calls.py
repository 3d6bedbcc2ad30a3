"""Calling the Lua verbs of the quota store, and telling apart why a call failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any, Final

import redis

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
    folder = resources.files("billing.quota") / "lua"
    return "\n".join((folder / f"{name}.lua").read_text("utf-8") for name in ("_common", verb))


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
