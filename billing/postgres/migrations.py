"""The schema's version: upgrading it, and the revision of a database.

The scripts are in ``alembic/``: beside the ``billing`` package in a checkout, inside it where it
was installed from a wheel.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from alembic import command
from billing.core.errors import ConfigurationError
from billing.postgres.engines import sqlalchemy_url


def upgrade(url: str, revision: str = "head", *, scripts: Path | None = None) -> None:
    """Bring the database to ``revision``.

    Args:
        url: PostgreSQL, as ``postgresql://user:password@host/database``.
        revision: A revision or ``head``.
        scripts: The folder with ``env.py`` and ``versions``; found if not given.

    Raises:
        ConfigurationError: There is no such folder.
    """
    command.upgrade(_config(url, scripts), revision)


def current(url: str) -> str | None:
    """Read the database's revision; None where it was never migrated."""
    engine = sa.create_engine(sqlalchemy_url(url), poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def head(*, scripts: Path | None = None) -> str:
    """Read the newest revision that has a script.

    Raises:
        ConfigurationError: There is no folder of migrations, or none in it.
    """
    newest = ScriptDirectory(str(scripts_folder(scripts))).get_current_head()
    if newest is None:
        raise ConfigurationError(
            "migrations", "the folder has no revision", "use the folder alembic/ of this release"
        )
    return newest


def scripts_folder(given: Path | None = None) -> Path:
    """Find the folder of migrations: the one given, else the one in or beside the package.

    Raises:
        ConfigurationError: None of them has an ``env.py``.
    """
    package = Path(__file__).resolve().parents[1]
    # In the package where it was installed from a wheel, beside it in a checkout.
    found = [package / "alembic", package.parent / "alembic"]
    candidates = [given] if given is not None else found
    for folder in candidates:
        if (folder / "env.py").is_file() and (folder / "versions").is_dir():
            return folder
    raise ConfigurationError(
        "migrations",
        f"no env.py in {' or '.join(str(folder) for folder in candidates)}",
        "name the folder alembic/ of this release",
    )


def _config(url: str, scripts: Path | None) -> Config:
    # Without an ini file: nothing but the folder and the URL, and logging is left alone.
    config = Config()
    config.set_main_option("script_location", str(scripts_folder(scripts)).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["url"] = url
    return config
