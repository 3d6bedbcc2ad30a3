"""Alembic's entry: one transaction for the whole run, one run at a time per database."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from alembic import context
from billing.postgres.engines import sqlalchemy_url
from billing.postgres.locks import AdvisoryLock, lock
from billing.postgres.partitions import is_partition_name
from billing.postgres.schema import metadata
from billing.settings import Settings


def _include_object(
    obj: object, name: str | None, kind: str, reflected: bool, compare_to: object
) -> bool:
    """Leave partitions out of comparisons: they come and go with the months."""
    del obj, compare_to
    return not (kind == "table" and reflected and name is not None and is_partition_name(name))


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_object=_include_object,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        lock(connection, AdvisoryLock.MIGRATION)
        context.run_migrations()


def _url() -> str:
    given = context.config.attributes.get("url")
    if given is None:
        configured = Settings().database_url
        if configured is None:
            raise SystemExit("DATABASE_URL is not set; set it, or use: billing migrate")
        given = configured.get_secret_value()
    return sqlalchemy_url(given)


if context.is_offline_mode():
    raise SystemExit("offline SQL is not offered: the migrations look at the database they change")

_engine = sa.create_engine(_url(), poolclass=sa.NullPool)
with _engine.connect() as _connection:
    _migrate(_connection)
_engine.dispose()
