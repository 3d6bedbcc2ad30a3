"""What the demo's servers were asked for, and an address where nobody answers."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from lab.demo.hosts import LOOPBACK


def count_visits(
    *,
    site_url: str,
    site_log: Path,
    difficult_url: str,
    difficult: Iterable[str],
    proxy: Iterable[str],
) -> Counter[str]:
    """How often each URL was asked for.

    Args:
        site_url: Of the documentation server, without a slash at its end.
        site_log: Its log: one path and query per line.
        difficult_url: Of the difficult host, as above.
        difficult: The paths it was asked for.
        proxy: The whole URLs that the proxy was asked for; it asks the site in its turn.
    """
    visits = Counter(f"{site_url}{path}" for path in site_log.read_text("utf-8").splitlines())
    visits.update(f"{difficult_url}{path}" for path in difficult)
    visits.update(proxy)
    return visits


@contextlib.contextmanager
def closed_port() -> Iterator[str]:
    """The URL of a port that refuses connections: taken, so that nobody else listens there."""
    with contextlib.closing(socket.socket()) as taken:
        taken.bind((LOOPBACK, 0))
        yield f"http://{LOOPBACK}:{taken.getsockname()[1]}"
