"""Idempotency keys: the stored answer of a first request, replayed to every repeat."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from billing.devtools.stripe_sandbox import errors
from billing.devtools.stripe_sandbox.clock import MovableClock

MAX_KEY: Final = 255
V1_SECONDS: Final = 24 * 3_600
V2_SECONDS: Final = 30 * 86_400


@dataclass(slots=True, kw_only=True)
class Reply:
    """An answer: status, JSON text and the headers beside the usual ones."""

    status: int
    content: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    path: str
    params: dict[str, Any]
    reply: Reply
    at: float


class IdempotencyKeys:
    """The keys of this sandbox, v1's and v2's apart as their lifetimes are."""

    def __init__(self, clock: MovableClock) -> None:
        self._clock = clock
        self._stored: dict[bool, OrderedDict[str, _Stored]] = {
            False: OrderedDict(),
            True: OrderedDict(),
        }

    def replay(self, key: str, path: str, params: dict[str, Any], *, v2: bool) -> Reply | None:
        """The stored answer, or None where the key is new or forgotten.

        Raises:
            Refusal: The key is too long, or was used for something else.
        """
        if len(key) > MAX_KEY:
            raise errors.parameter(
                f"Idempotency keys may be up to {MAX_KEY} characters long.", "Idempotency-Key"
            )
        self._forget(v2=v2)
        stored = self._stored[v2].get(key)
        if stored is None:
            return None
        if stored.path != path:
            raise errors.other_endpoint(key, stored.path)
        if stored.params != params:
            raise errors.other_parameters(key)
        headers = {**stored.reply.headers, "Idempotent-Replayed": "true"}
        return Reply(status=stored.reply.status, content=stored.reply.content, headers=headers)

    def store(self, key: str, path: str, params: dict[str, Any], reply: Reply, *, v2: bool) -> None:
        """Remember an answer. v2 remembers successes only: a failed request may be tried again."""
        if v2 and reply.status != 200:  # noqa: PLR2004 - the one status of success
            return
        self._stored[v2][key] = _Stored(
            path=path, params=params, reply=reply, at=self._clock.seconds()
        )

    def _forget(self, *, v2: bool) -> None:
        kept = self._stored[v2]
        oldest_kept = self._clock.seconds() - (V2_SECONDS if v2 else V1_SECONDS)
        while kept and next(iter(kept.values())).at < oldest_kept:
            kept.popitem(last=False)
