"""What a command works with: one ``Container``, built when first used and closed at the end."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from billing.cli.output import warn
from billing.container import Container
from billing.core.errors import QuotaUnavailable
from billing.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
CustomerId = Annotated[str, typer.Argument(help="A customer's id.", metavar="CUSTOMER")]
Month = Annotated[
    str | None,
    typer.Option(help="Year and month, such as 2026-11. Unset: this month.", metavar="YYYY-MM"),
]


class Session:
    """One run of the command."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._settings: Settings | None = None
        self._system: Container | None = None

    @property
    def settings(self) -> Settings:
        """The settings, read once."""
        if self._settings is None:
            # Every field has a default or an alias read from the environment.
            self._settings = Settings()
        return self._settings

    @property
    def container(self) -> Container:
        """The system of these settings."""
        if self._system is None:
            self._system = self._open.enter_context(Container(self.settings))
        return self._system

    def close(self) -> None:
        """Close what was opened."""
        self._open.close()


def session_of(context: typer.Context) -> Session:
    """The session of this run."""
    found = context.find_object(Session)
    if found is None:
        raise RuntimeError(f"commands are run through {__package__}.main")
    return found


def container_of(context: typer.Context) -> Container:
    """The system of this run."""
    return session_of(context).container


def sync(container: Container, customer: str) -> bool:
    """Tell Redis what PostgreSQL has just been told; whether it was told.

    A Redis that is away is only a warning: PostgreSQL is the truth.
    """
    try:
        container.sync(customer)
    except QuotaUnavailable as error:
        warn(f"PostgreSQL has it; Redis gets it with the next balance check ({error})")
        return False
    return True
