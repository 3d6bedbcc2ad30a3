"""Logs of long-running commands: billing/cli/logs.py."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from billing.cli.logs import configure_logs
from billing.core.errors import ConfigurationError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def structlog_as_it_was() -> Iterator[None]:
    before = structlog.get_config() if structlog.is_configured() else None
    yield
    structlog.reset_defaults()
    if before is not None:
        structlog.configure(**before)


def log_a_failure() -> None:
    password = "".join(reversed("retnuh"))
    try:
        raise ConnectionError("no answer")  # noqa: TRY301 - its own frame is what is looked at
    except ConnectionError:
        structlog.get_logger().exception("relay_failed", shown=len(password))


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_a_traceback_names_places_and_no_variables(
    kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
):
    told = kind()
    monkeypatch.setattr("sys.stderr", told)
    configure_logs("INFO")
    log_a_failure()

    assert "log_a_failure" in told.getvalue()
    assert "no answer" in told.getvalue()
    assert "hunter" not in told.getvalue()


def test_beside_a_terminal_each_line_is_json_of_the_level_and_above(
    monkeypatch: pytest.MonkeyPatch,
):
    told = io.StringIO()
    monkeypatch.setattr("sys.stderr", told)
    configure_logs("warning")
    structlog.get_logger().info("not told")
    structlog.get_logger().warning("told", events=3)

    (line,) = map(json.loads, told.getvalue().splitlines())
    assert (line["event"], line["events"], line["level"]) == ("told", 3, "warning")


def test_a_level_that_does_not_exist_is_refused():
    with pytest.raises(ConfigurationError, match="WEIGHBRIDGE_LOG_LEVEL"):
        configure_logs("chatty")
