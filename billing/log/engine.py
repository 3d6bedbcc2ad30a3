"""Engines for PostgreSQL: one form of URL, and connections that run under a role."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.core.errors import InvalidValue
from billing.tables import READER_ROLE, WRITER_ROLE

_DRIVER: Final = "postgresql+psycopg"
_BOUNDED_WAITS: Final = {
    "connect_timeout": 10,  # seconds
    # A server that vanished is noticed although nobody closed the connection.
    "tcp_user_timeout": 30_000,  # milliseconds
    "keepalives_idle": 30,  # seconds
}
_KNOWN: Final = frozenset({"postgresql", "postgres", _DRIVER})


def sqlalchemy_url(url: str) -> str:
    """``url`` as SQLAlchemy takes it for psycopg 3.

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
    """An engine as the URL's own login, which owns the schema.

    Args:
        url: As ``sqlalchemy_url`` takes it.
        pool_size: The most connections kept.
    """
    return _engine(url, None, pool_size)


def writer_engine(url: str, *, pool_size: int = 2) -> Engine:
    """An engine whose connections may insert into and read the log, and nothing more of it.

    Args:
        url: As ``sqlalchemy_url`` takes it; its login is a member of the writer role.
        pool_size: The most connections kept.
    """
    return _engine(url, WRITER_ROLE, pool_size)


def reader_engine(url: str, *, pool_size: int = 5) -> Engine:
    """An engine whose connections may only read.

    Args:
        url: As ``sqlalchemy_url`` takes it; its login is a member of the reader role.
        pool_size: The most connections kept.
    """
    return _engine(url, READER_ROLE, pool_size)


def _engine(url: str, role: str | None, pool_size: int) -> Engine:
    target = sa.make_url(sqlalchemy_url(url))
    if role is not None:
        # In the start-up packet, so that no statement ever runs as the login itself.
        given = target.query.get("options", "")
        before = given if isinstance(given, str) else " ".join(given)
        target = target.update_query_dict({"options": f"{before} -c role={role}".strip()})
    return sa.create_engine(
        target, pool_size=pool_size, pool_pre_ping=True, connect_args=dict(_BOUNDED_WAITS)
    )
