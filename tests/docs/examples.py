"""Runs the examples of the documentation: as files of a project, in a process of its own.

A Python block whose first line is ``# shop.py`` is that file. What a page leaves to its reader
(Django's other settings, a login) is written beside it by the test.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from docs_pages import ROOT, Page

AS_INSTALLED: Final = ROOT / "tests" / "docs" / "as_installed"
"""The folder with the ``weighbridge`` of a checkout."""

_FILE: Final = re.compile(r"# ([\w/]+\.py)\b")
_EXPORT: Final = re.compile(r"export (\w+)=(\S+)")
_NOWHERE: Final = {
    "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "AMQP_URL": "memory://",
    "RESULT_URL": "cache+memory://",
}
"""Servers that do not answer, and Celery's own in memory: for examples that need none."""


def python_blocks(page: Page, section: str = "") -> list[str]:
    """The Python of a page, or of its section of that heading."""
    text = page.text
    if section:
        _, found, text = text.partition(f"\n## {section}\n")
        assert found, f"{page.name} has no section {section!r}"
        text = text.partition("\n## ")[0]
    return Page(page.path, text).blocks("python")


def files_of(blocks: list[str]) -> dict[str, str]:
    """The blocks that are files, by their names."""
    named = ((_FILE.match(block), block) for block in blocks)
    return {match[1]: block for match, block in named if match}


def exports(page: Page) -> dict[str, str]:
    """The variables that a page exports, with its example values."""
    return {
        match[1]: match[2]
        for block in page.blocks("")
        for line in block.splitlines()
        if (match := _EXPORT.match(line))
    }


def command_lines(page: Page, first: str) -> list[str]:
    """The lines of the block that begins with a command, without comments."""
    (block,) = [block for block in page.blocks("") if block.startswith(first)]
    return [line.partition(" #")[0].strip() for line in block.splitlines()]


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write them, with the folders between."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """That of a program of the project in a folder, with ``weighbridge`` to import."""
    path = os.pathsep.join([str(folder), str(AS_INSTALLED), str(ROOT)])
    return {**os.environ, **_NOWHERE, "PYTHONPATH": path, **variables}


def run_file(folder: Path, name: str, **variables: str) -> str:
    """Run a file of the project; its standard output."""
    ended = subprocess.run(
        [sys.executable, name],
        check=False,
        cwd=folder,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
