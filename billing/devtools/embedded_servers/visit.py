"""Leaving somebody's servers as they were found: deleting what a demo, a benchmark or a test made.

Every name is the caller's own; nothing else is touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import redis
import sqlalchemy as sa
from kombu import Connection

from billing.postgres.engines import sqlalchemy_url

_SECONDS: Final = 10
_SCAN: Final = 500


@contextlib.contextmanager
def noting(left: list[str], what: str, *errors: type[Exception]) -> Iterator[None]:
    """Go on after one of ``errors``, and note in ``left`` what could not be deleted and why."""
    try:
        yield
    except errors as error:
        left.append(f"{what}: {str(error).partition(chr(10))[0]}")


def run_statement(url: str, statement: str) -> None:
    """Run one statement outside a transaction, as CREATE and DROP DATABASE need it."""
    engine = sa.create_engine(
        sqlalchemy_url(url), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(sa.text(statement))


def delete_keys(url: str, keys: Iterable[str]) -> None:
    """Delete Redis keys; one with a ``*`` stands for all that match it."""
    with redis.Redis.from_url(url, socket_timeout=_SECONDS) as client:
        names = [name for key in keys for name in _matching(client, key)]
        for start in range(0, len(names), _SCAN):
            client.unlink(*names[start : start + _SCAN])


def delete_queues(url: str, queues: Iterable[str], exchanges: Iterable[str]) -> None:
    """Delete queues and exchanges; those that are not there do not matter."""
    with Connection(url, connect_timeout=_SECONDS) as connection:
        channel: Any = connection.channel()
        for queue in queues:
            channel.queue_delete(queue)
        for exchange in exchanges:
            channel.exchange_delete(exchange)


def _matching(client: redis.Redis, key: str) -> list[Any]:
    return list(client.scan_iter(match=key, count=_SCAN)) if "*" in key else [key]
