"""Engines for PostgreSQL: one form of URL, and connections that run under a role."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Dialect, Engine

from billing.core.errors import InvalidValue
from billing.postgres.schema import WRITER_ROLE

_DRIVER: Final = "postgresql+psycopg"
_REPLICA_CONNECT_SECONDS: Final = 3
REPLICA_PAUSE_SECONDS: Final = 30.0
"""The pause after which a replica that did not answer is tried again, and the greatest age of a
connection to the primary in its place."""
_BOUNDED_WAITS: Final = {
    "connect_timeout": 10,  # seconds
    # A server that vanished is noticed although nobody closed the connection.
    "tcp_user_timeout": 30_000,  # milliseconds
    "keepalives_idle": 30,  # seconds
}
_KNOWN: Final = frozenset({"postgresql", "postgres", _DRIVER})


def sqlalchemy_url(url: str) -> str:
    """Convert ``url`` to the form that SQLAlchemy takes for psycopg 3.

    Args:
        url: ``postgresql://``, ``postgres://`` or ``postgresql+psycopg://`` and the rest.

    Raises:
        InvalidValue: It is of another kind of server.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in _KNOWN:
        # What follows the scheme, or all of it where there is none, may hold a password.
        shown = f"{scheme}://…" if mark else "…"
        raise InvalidValue("database_url", shown, "write postgresql://user@host/database")
    return f"{_DRIVER}://{rest}"


def owner_engine(url: str, *, pool_size: int = 5) -> Engine:
    """Make an engine as the URL's own login, which owns the schema.

    Args:
        url: In a form that ``sqlalchemy_url`` takes.
        pool_size: The most connections kept.
    """
    return _engine(url, None, pool_size)


def writer_engine(url: str, *, pool_size: int = 2) -> Engine:
    """Make an engine whose connections may insert into and read the log, and nothing more of it.

    Args:
        url: In a form that ``sqlalchemy_url`` takes; its login is a member of the writer role.
        pool_size: The most connections kept.
    """
    return _engine(url, WRITER_ROLE, pool_size)


def replica_engine(
    url: str,
    primary_url: str,
    *,
    pool_size: int = 5,
    monotonic: Callable[[], float] = time.monotonic,
) -> Engine:
    """Make an engine that reads from a replica, and from the primary while the replica is away.

    Transactions are read-only on either, so that nothing can come to depend on where it ran. A
    statement that a replica breaks off (it stops, or a query conflicts with what it has to replay)
    fails and may be repeated.

    Args:
        url: The replica's, as ``sqlalchemy_url`` takes it.
        primary_url: The primary's, for while the replica is away.
        pool_size: The most connections kept.
        monotonic: Seconds that only grow.
    """
    read_only = "-c default_transaction_read_only=on"
    engine = sa.create_engine(
        _with_option(sa.make_url(sqlalchemy_url(url)), read_only),
        pool_size=pool_size,
        pool_pre_ping=True,
        pool_recycle=int(REPLICA_PAUSE_SECONDS),
        connect_args=_BOUNDED_WAITS | {"connect_timeout": _REPLICA_CONNECT_SECONDS},
    )
    instead = _with_option(sa.make_url(sqlalchemy_url(primary_url)), read_only)
    arguments, named = engine.dialect.create_connect_args(instead)
    primary = (arguments, {**named, **_BOUNDED_WAITS})
    sa.event.listen(engine, "do_connect", _ReplicaFirst(primary, monotonic).connect)
    return engine


class _ReplicaFirst:
    """Connects to the replica, else to the primary; remembers for a while which it was."""

    def __init__(
        self, primary: tuple[Sequence[str], dict[str, Any]], monotonic: Callable[[], float]
    ) -> None:
        self._primary = primary
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._not_before = -math.inf

    def connect(
        self,
        dialect: Dialect,
        _record: object,
        arguments: Sequence[Any],
        named: dict[str, Any],
    ) -> Any:  # noqa: ANN401 - a connection of the driver
        """SQLAlchemy's ``do_connect``."""
        if self._may_try():
            try:
                return dialect.connect(*arguments, **named)
            except dialect.loaded_dbapi.OperationalError:
                # Every answer (its ``AsOf``) and the doctor say so.
                with self._lock:
                    self._not_before = self._monotonic() + REPLICA_PAUSE_SECONDS
        arguments, named = self._primary
        return dialect.connect(*arguments, **named)

    def _may_try(self) -> bool:
        with self._lock:
            return self._monotonic() >= self._not_before


def _engine(url: str, role: str | None, pool_size: int) -> Engine:
    target = sa.make_url(sqlalchemy_url(url))
    if role is not None:
        target = _with_option(target, f"-c role={role}")
    return sa.create_engine(
        target, pool_size=pool_size, pool_pre_ping=True, connect_args=dict(_BOUNDED_WAITS)
    )


def _with_option(url: sa.URL, option: str) -> sa.URL:
    """Add an option to the start-up packet: it is in force before the first statement."""
    given = url.query.get("options", "")
    before = given if isinstance(given, str) else " ".join(given)
    return url.update_query_dict({"options": f"{before} {option}".strip()})
