"""Builds the wheel and installs it where the checkout is out of sight."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PINS: Final = ROOT / "requirements" / "dist.txt"
LIMIT_SECONDS: Final = 600
"""The longest that a program may take: fifty packages are fetched where nothing is cached."""


def build_wheel(source: Path, folder: Path, target: str = "wheel") -> Path:
    """Build a wheel or an sdist of a checkout or of an unpacked sdist; nothing is fetched."""
    run([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)], cwd=source)
    (built,) = folder.iterdir()
    return built


def install(wheel: Path, folder: Path) -> Path:
    """The ``bin`` of an environment with the wheel, the core's dependencies and test tools.

    It is kept in ``folder``: what is as it was is not installed again. Several processes may ask.
    """
    bin_folder = folder / "bin"
    python = str(bin_folder / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        pins = f"{sys.version} {PINS.read_text()}"
        if _is_new(folder / "pins", pins):
            run([str(ROOT / "scripts/make-venv"), sys.executable, str(folder)], cwd=ROOT)
            run([*pip, "--require-hashes", "-r", str(PINS)], cwd=ROOT)
            (folder / "pins").write_text(pins)
        content = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if _is_new(folder / "wheel", content):
            run([*pip, "--force-reinstall", str(wheel)], cwd=folder)
            (folder / "wheel").write_text(content)
    return bin_folder


def clean_environment(bin_folder: Path, **variables: str) -> dict[str, str]:
    """Variables of a process that finds the installed wheel, and nothing of the checkout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "WEIGHBRIDGE"))}
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "VIRTUAL_ENV": str(bin_folder.parent), **variables}


def run(command: list[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """The output of a program that must succeed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def _is_new(file: Path, content: str) -> bool:
    return not file.exists() or file.read_text() != content


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
