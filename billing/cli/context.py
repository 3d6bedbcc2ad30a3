"""The session of a command: one ``Container``, built when first used and closed at the end."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from billing.cli.output import warn
from billing.core.errors import QuotaUnavailable
from billing.settings import Settings

if TYPE_CHECKING:
    from billing.container import Container

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
        self._container: Container | None = None

    @property
    def settings(self) -> Settings:
        """The settings, read once."""
        if self._settings is None:
            # Every field has a default or an alias read from the environment.
            self._settings = Settings()
        return self._settings

    @property
    def container(self) -> Container:
        """The container of these settings."""
        if self._container is None:
            # Loads every driver, which a command's help does not need.
            from billing.container import Container  # noqa: PLC0415

            self._container = self._open.enter_context(Container(self.settings))
        return self._container

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
    """The container of this run."""
    return session_of(context).container


def sync(container: Container, customer: str) -> bool:
    """Send a customer's account from PostgreSQL to Redis; False where Redis did not answer.

    A Redis that is away is only a warning: PostgreSQL is the truth.
    """
    try:
        container.sync(customer)
    except QuotaUnavailable as error:
        warn(f"PostgreSQL has it; Redis gets it with the next balance check ({error})")
        return False
    return True
