"""What tests do with whole databases and the product never does."""

from __future__ import annotations

import sqlalchemy as sa

from alembic import command
from billing.postgres import migrations
from billing.postgres.engines import sqlalchemy_url
from billing.postgres.schema import READER_ROLE


def downgrade(url: str, revision: str) -> None:
    """Take a database back to ``revision`` (``base``: nothing of ours but the roles)."""
    command.downgrade(migrations._config(url, None), revision)


def is_current(url: str) -> bool:
    """Whether a database is at this release's revision."""
    return migrations.current(url) == migrations.head()


def reader_engine(url: str) -> sa.Engine:
    """An engine whose connections may only read, as an operator's reporting tool has it."""
    target = sa.make_url(sqlalchemy_url(url)).update_query_dict(
        {"options": f"-c role={READER_ROLE}"}
    )
    return sa.create_engine(target)
