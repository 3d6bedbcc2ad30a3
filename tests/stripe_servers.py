"""The local Stripe of a test: the one that ``STRIPE_API_BASE`` names, else one of its own.

Tests order faults and move time, so a named one is used where it has the control API that
``billing stripe-sandbox`` has; what they left in it is deleted before and after.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import httpx

from billing.core.clock import ManualClock
from billing.devtools.stripe_sandbox import SandboxServer


class StripeServer(Protocol):
    """Where it is."""

    url: str


@dataclass
class Named:
    """A local Stripe that somebody else runs."""

    url: str


def named_stripe() -> str:
    """Its address; empty where none is named, or what is named takes no orders."""
    base = os.environ.get("STRIPE_API_BASE", "").rstrip("/")
    if not base:
        return ""
    try:
        answer = httpx.get(f"{base}/_sandbox/clock", trust_env=False, timeout=5)
    except httpx.HTTPError:
        return ""
    return base if answer.status_code == httpx.codes.OK else ""


@contextmanager
def stripe_server(at: datetime | None = None) -> Iterator[StripeServer]:
    """An empty one.

    Args:
        at: The instant it lives at; the machine's clock if not given.
    """
    base = named_stripe()
    if not base:
        with SandboxServer(ManualClock(at) if at else None) as server:
            yield server
        return
    with httpx.Client(base_url=base, trust_env=False, timeout=10) as http:
        http.post("/_sandbox/reset").raise_for_status()
        if at is not None:
            offset = (at - datetime.now(UTC)).total_seconds()
            http.post("/_sandbox/clock", json={"offset_seconds": offset}).raise_for_status()
        yield Named(base)
        http.post("/_sandbox/reset").raise_for_status()
