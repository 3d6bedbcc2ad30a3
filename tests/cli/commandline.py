"""Runs the ``billing`` command in this process and checks what every command promises."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from typer.testing import CliRunner, Result

from billing.cli.main import app
from billing.cli.output import WIDTH
from billing.settings import Settings

_PASSED_ON: Final = (
    "redis_prefix",
    "usage_exchange",
    "usage_queue",
    "task_queue",
    "spool_dir",
    "local_dir",
    "quarantine_seconds",
)


def environment_of(settings: Settings) -> dict[str, str | None]:
    """The environment in which ``Settings()`` is ``settings``."""
    found: dict[str, str | None] = {
        f"WEIGHBRIDGE_{name.upper()}": str(getattr(settings, name)) for name in _PASSED_ON
    }
    for name in ("database_url", "redis_url", "amqp_url"):
        url = getattr(settings, name)
        found[f"WEIGHBRIDGE_{name.upper()}"] = url.get_secret_value()
    return found


@dataclass
class Billing:
    """Runs the command. ``environment`` may be changed by a test; None unsets a name."""

    environment: dict[str, str | None]

    def run(self, *arguments: str, code: int = 0) -> Result:
        """Run it and expect an exit code."""
        result = CliRunner().invoke(app, list(arguments), env=self.environment)
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        return result

    def table(self, *arguments: str, code: int = 0) -> str:
        """The output for people; asserts that no line of it is too wide."""
        stdout = self.run(*arguments, code=code).stdout
        wide = [line for line in stdout.splitlines() if len(line) > WIDTH]
        assert not wide
        return stdout

    def json(self, *arguments: str, code: int = 0) -> Any:
        """The one JSON document printed with ``--json``."""
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def error(self, *arguments: str, code: int = 1) -> str:
        """The message of a command that must fail; asserts that it is clean."""
        result = self.run(*arguments, code=code)
        assert "Traceback" not in result.output
        assert result.stdout == ""
        return " ".join(result.stderr.split())
