"""The part of the suite that runs on the installed wheel, by its own Python, far from here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from wheel_environment import LIMIT_SECONDS, clean_environment, run

HERE = Path(__file__).resolve().parent / "on_the_wheel"


@pytest.mark.process
@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.parametrize("file", sorted(file.name for file in HERE.glob("test_*.py")))
def test_file(installed: Path, empty_database_url: str, redis_url: str, tmp_path: Path, file: str):
    shutil.copytree(HERE, tmp_path / "tests")
    environment = clean_environment(installed, DATABASE_URL=empty_database_url, REDIS_URL=redis_url)
    command = [str(installed / "python"), "-m", "pytest", "-q", "-ra", f"tests/{file}"]
    output = run(command, cwd=tmp_path, env=environment)
    assert " passed" in output
