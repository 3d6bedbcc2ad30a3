"""Errors as an operator meets them: every kind, its remedy, and nothing secret."""

from __future__ import annotations

import io
import sys

import pytest
import redis
import sqlalchemy as sa
import typer
from pydantic import ValidationError
from support import eventually
from typer.testing import CliRunner

from billing.cli.failures import CleanGroup, message_of
from billing.cli.services import reporting
from billing.core.errors import (
    AlreadyExists,
    ConfigurationError,
    InvalidValue,
    NotFound,
    PublishFailed,
    QuotaUnavailable,
)
from billing.settings import Settings
from billing.transport.outbox import OutboxUnavailable


class _DriverError(Exception):
    """What a driver raises, with PostgreSQL's code."""

    def __init__(self, message: str, sqlstate: str | None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


def database(kind: type[sa.exc.DBAPIError], message: str, sqlstate: str | None) -> Exception:
    return kind("SELECT secret", {"password": "secret"}, _DriverError(message, sqlstate))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InvalidValue("price", "x", "write digits"), "price='x': write digits"),
        (NotFound("customer", "a", "see the list"), "no customer 'a': see the list"),
        (AlreadyExists("it is there"), "it is there"),
        (ConfigurationError("A_URL", "not set", "set it"), "A_URL: not set. Remedy: set it"),
        (QuotaUnavailable("no answer"), "no answer. Remedy: see REDIS_URL and billing doctor"),
        (OutboxUnavailable("no answer"), "no answer. Remedy: see REDIS_URL and billing doctor"),
        (PublishFailed("no confirm"), "no confirm. Remedy: see AMQP_URL and billing doctor"),
        (redis.ConnectionError("refused"), "refused. Remedy: see REDIS_URL and billing doctor"),
        (OSError(28, "No space left"), "No space left. Remedy: run with --debug"),
        (
            database(sa.exc.OperationalError, "connection refused\nmore", None),
            "PostgreSQL: connection refused. Remedy: see DATABASE_URL",
        ),
        (
            database(sa.exc.ProgrammingError, 'relation "x" does not exist', "42P01"),
            'PostgreSQL: relation "x" does not exist. Remedy: billing migrate',
        ),
        (
            database(sa.exc.DataError, "out of range", "22003"),
            "PostgreSQL: out of range. Remedy: run with --debug and report it",
        ),
        (database(sa.exc.OperationalError, "", None), "PostgreSQL: no message"),
    ],
)
def test_every_error_has_a_message_with_its_remedy(error: Exception, said: str):
    message = message_of(error)
    assert message is not None
    assert said in message
    assert "secret" not in message


def test_an_error_that_is_not_ours_is_not_ours_to_tell():
    assert message_of(KeyError("x")) is None
    assert message_of(typer.Exit(2)) is None


def test_a_wrong_setting_is_named_without_its_value():
    with pytest.raises(ValidationError) as caught:
        Settings(currency="secret")
    message = message_of(caught.value)
    assert message is not None
    assert "currency" in message
    assert "secret" not in message


def command_that(raises: BaseException) -> typer.Typer:
    app = typer.Typer(cls=CleanGroup, pretty_exceptions_enable=False)

    @app.callback()
    def begin(debug: bool = False) -> None: ...

    @app.command()
    def go() -> None:
        raise raises

    return app


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("customer", "a", "see the list"), 1),
        (KeyboardInterrupt(), 130),
        (typer.Exit(7), 7),
        (typer.BadParameter("no"), 2),
    ],
)
def test_the_exit_code_tells_refusal_usage_and_interruption_apart(error: BaseException, code: int):
    result = CliRunner().invoke(command_that(error), ["go"])
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_debug_lets_the_error_through():
    error = NotFound("customer", "a", "see the list")
    result = CliRunner().invoke(command_that(error), ["--debug", "go"])
    assert result.exception is error


def test_a_defect_keeps_its_traceback():
    error = KeyError("x")
    result = CliRunner().invoke(command_that(error), ["go"])
    assert result.exception is error


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_figures_are_one_live_line(monkeypatch: pytest.MonkeyPatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    shown: list[int] = []

    def figures() -> dict[str, object]:
        shown.append(1)
        return {"events_per_second": 12.5}

    with reporting("consumer", figures, every_seconds=0.01):
        eventually(lambda: len(shown) >= 20, message="twenty views")
    assert "consumer: " in terminal.getvalue()
