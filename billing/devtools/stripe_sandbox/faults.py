"""Faults to order: what goes wrong with the next requests that match."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Literal, get_args

from billing.devtools.stripe_sandbox import errors
from billing.devtools.stripe_sandbox.errors import Refusal

FaultKind = Literal[
    "rate_limit",
    "lock_timeout",
    "server_error",
    "timeout",
    "latency",
    "decline",
    "unauthorized",
    "forbidden",
]
KINDS: tuple[str, ...] = get_args(FaultKind)


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong with the next ``times`` requests to a path that fits, after ``skip`` others.

    ``seconds`` is how long ``latency`` waits before the effect and ``timeout`` holds the connection
    after it. ``effect`` says whether the request is carried out all the same: by default it is for
    ``timeout``, and not for ``server_error``.
    """

    kind: FaultKind
    method: str = "*"
    path: str = "*"
    times: int = 1
    skip: int = 0
    seconds: float = 0.0
    reason: str = "endpoint-rate"
    effect: bool | None = None

    @property
    def carried_out(self) -> bool:
        """Whether the request has its effect."""
        return self.effect if self.effect is not None else self.kind != "server_error"

    def instead(self) -> Refusal | None:
        """The refusal that comes before anything is looked at, if this is such a fault."""
        if self.kind == "rate_limit":
            return errors.rate_limited(self.reason)
        if self.kind == "lock_timeout":
            return errors.lock_timeout()
        if self.kind == "unauthorized":
            return errors.wrong_key("sk_test_revoked")
        return errors.no_permission() if self.kind == "forbidden" else None


class Faults:
    """The faults that are ordered. The first that fits a request is used up by it."""

    def __init__(self) -> None:
        self.ordered: list[Fault] = []

    def order(self, fault: Fault) -> None:
        """Order one."""
        self.ordered.append(fault)

    def take(self, method: str, path: str) -> Fault | None:
        """The fault of this request, if any."""
        for fault in self.ordered:
            if not fnmatch.fnmatchcase(method, fault.method):
                continue
            if not fnmatch.fnmatchcase(path, fault.path):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.times -= 1
            if fault.times <= 0:
                self.ordered.remove(fault)
            return fault
        return None
