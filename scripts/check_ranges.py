"""``make test-ranges``: the worker's tests at the ends of the ranges in ``pyproject.toml``.

Each set is an environment of its own under ``.local/ranges``, kept for the next run. A table of the
results is printed; the whole output of a set is in ``.local/ranges/NAME.log``.

    python scripts/check_ranges.py [SET ...] [-- ARGUMENTS OF PYTEST]
"""  # noqa: INP001 - a script, run by its path

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = ROOT / ".local" / "ranges"
SHOWN: Final = ("celery", "kombu", "redis", "sqlalchemy", "psycopg")
SETS: Final[dict[str, list[str]]] = {
    "oldest": [],  # every lower bound, see oldest()
    "celery-5.6": ["celery==5.6.*", "kombu==5.6.*", "redis==6.*", "sqlalchemy==2.0.*"],
    "redis-7": [
        "celery==5.6.*",
        "kombu==5.6.*",
        "redis==7.*",
        "sqlalchemy==2.1.*",
        "psycopg==3.2.*",
    ],
    "newest": [],  # what the ranges allow today
}
PRODUCTION: Final = ("api", "stripe", "flower", "archive", "ingestion")
EXTRAS: Final = (*PRODUCTION, "local", "build")
TOOLS: Final = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "gevent", "pyyaml")
RETRIED: Final = (
    "tests/workers/test_kills_live.py::test_a_child_killed_on_the_way_of_a_task_costs_nothing_twice",
    (
        "tests/workers/test_leased_live.py"
        "::test_a_child_killed_anywhere_leaves_no_task_unbilled_nor_billed_twice"
    ),
    "tests/workers/test_ends_live.py::test_exits_and_lost_children_give_their_holds_back",
)
"""Before Celery 5.7 there is no task_retry_on_worker_lost: a lost child's task fails, where these
wait for it to run again. With task_reject_on_worker_lost the first two pass there as they are."""
TEST_SECONDS: Final = 120
TESTS: Final = (
    "tests/workers",
    "tests/quota/test_quota_contract.py",
    "tests/quota/test_redis_quota.py",
    "tests/quota/test_lease_contract.py",
    "tests/usage_log/test_log_consumer.py",
    "tests/usage_log/test_log_writer.py",
    "tests/transport",
    "tests/migrations",
)


def project() -> dict[str, Any]:
    """The table ``project`` of ``pyproject.toml``."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def requirements() -> list[str]:
    """The core's, those of every extra that a test needs, and the test tools'."""
    extras = project()["optional-dependencies"]
    tools = [line for line in extras["dev"] if Requirement(line).name in TOOLS]
    return [*project()["dependencies"], *(line for name in EXTRAS for line in extras[name]), *tools]


def oldest() -> list[str]:
    """Pins at the lower bounds of the core and of production's extras."""
    extras = project()["optional-dependencies"]
    lines = [*project()["dependencies"], *(line for name in PRODUCTION for line in extras[name])]
    return [
        f"{one.name}=={bound.version}"
        for one in map(Requirement, lines)
        for bound in one.specifier
        if bound.operator == ">="
    ]


def environment(name: str) -> Path:
    """The Python of a set, installed anew unless it stands already."""
    folder = FOLDER / name
    pins = oldest() if name == "oldest" else SETS[name]
    lines = "\n".join([*requirements(), *pins, ""])
    listed = folder / "requirements.txt"
    python = folder / "bin" / "python"
    if not (listed.exists() and listed.read_text() == lines):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([ROOT / "scripts/make-venv", sys.executable, folder], check=True, cwd=ROOT)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        draft = folder / "draft.txt"
        draft.write_text(lines)
        subprocess.run([*pip, "--only-binary=:all:", "-r", draft], check=True, cwd=ROOT)
        checkout = ["--no-deps", "--no-build-isolation", "-e", ROOT]
        subprocess.run([*pip, *checkout], check=True, cwd=ROOT)
        draft.rename(listed)
    return python


def versions(python: Path) -> dict[str, str]:
    """What an environment has, by name."""
    listed = subprocess.check_output(
        [python, "-m", "pip", "--disable-pip-version-check", "list", "--format", "freeze"],
        text=True,
    )
    found = (line.split("==") for line in listed.splitlines() if "==" in line)
    return {canonicalize_name(name): version for name, version in found}


def result(name: str, python: Path, celery: str, arguments: list[str]) -> tuple[bool, str]:
    """Whether a set's tests passed, and pytest's last line."""
    log = FOLDER / f"{name}.log"
    left_out = RETRIED if Version(celery) < Version("5.7") else ()
    command = [str(python), "-m", "pytest", "-q", "--dist", "loadfile", f"--timeout={TEST_SECONDS}"]
    command += [f"--deselect={test}" for test in left_out]
    command += arguments or ["-n", "2", *TESTS]
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("w") as output:
        code = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PATH": path},
            stdout=output,
            stderr=output,
            check=False,
        ).returncode
    lines = re.findall(r"^.*(?:passed|failed|error).*$", log.read_text(), re.MULTILINE)
    return code == 0, lines[-1].strip("= ") if lines else f"exit code {code}"


def main() -> int:
    """Run the sets that are named, or all of them; returns the exit code."""
    names, _, arguments = " ".join(sys.argv[1:]).partition("--")
    rows, passed = [], True
    for name in names.split() or SETS:
        print(f"{name}: installing")
        python = environment(name)
        there = versions(python)
        print(f"{name}: testing; {FOLDER.name}/{name}.log")
        good, line = result(name, python, there["celery"], arguments.split())
        passed = passed and good
        rows.append([name, *(there[shown] for shown in SHOWN), line])
    for row in [["set", *SHOWN, "tests"], *rows]:
        print("  ".join(f"{cell:<11}" for cell in row))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
