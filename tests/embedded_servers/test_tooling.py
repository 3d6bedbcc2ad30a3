"""Makefile, CI, Procfile and scripts: what they promise and what they name exists."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from billing.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {
    "help",
    "scale",
    "demo",
    "test",
    "test-unit",
    "test-ranges",
    "dist",
    "lint",
    "bench",
    "chaos",
    "up",
    "down",
    "docs",
    "pins",
    "clean",
}
OUR_FILES = ["Makefile", ".ci/run", "scripts/make-venv", "scripts/ensure_rabbitmq.py", "Dockerfile"]


def test_make_without_a_target_lists_every_target():
    listed = subprocess.check_output(["make", "-C", ROOT, "--no-print-directory"], text=True)
    assert set(re.findall(r"^  make (\S+)", listed, re.MULTILINE)) == TARGETS


@pytest.mark.parametrize("name", OUR_FILES)
def test_no_file_names_a_host_to_install_from(name: str):
    assert not re.search(r"https?://|--(extra-)?index[-]url|\bpypi\b", (ROOT / name).read_text())


@pytest.mark.parametrize("name", ["worker", "base", "local", "dist", "dev"])
def test_pins_are_exact_hashed_and_without_urls(name: str):
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert "://" not in text
    requirements = re.findall(r"^[a-z0-9].*$", text, re.MULTILINE)
    assert requirements
    for requirement in requirements:
        assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==\S+( ;.*)? \\", requirement), (
            requirement
        )
    assert text.count("--hash=sha256:") >= len(requirements)


def test_the_pins_have_what_debian_12s_python_needs_beyond_newer_ones():
    # redis-py: async-timeout; python_full_version < "3.11.3". Debian 12 has 3.11.2.
    assert "async-timeout" in {name for name, _ in _pins("worker")}


def test_a_smaller_set_of_pins_agrees_with_the_larger_ones():
    sets = [_pins(name) for name in ("worker", "base", "local", "dev")]
    assert sets[0] < sets[1] < sets[2] < sets[3]
    assert _pins("worker") < _pins("dist") < _pins("dev")


def test_a_worker_installs_no_extra():
    extras = {"fastapi", "uvicorn", "flower", "pyarrow", "selectolax", "httpx", "stripe"}
    assert extras & {name for name, _ in _pins("worker")} == set()
    assert extras <= {name for name, _ in _pins("base")}


@pytest.mark.parametrize("name", [".ci/run", "scripts/make-venv"])
def test_a_script_can_be_run_and_parses(name: str):
    assert os.access(ROOT / name, os.X_OK)
    shell = (ROOT / name).read_text().splitlines()[0].split("/")[-1].removeprefix("env ")
    subprocess.run([shell, "-n", ROOT / name], check=True)


def test_a_virtual_environment_is_made_and_can_install(tmp_path: Path):
    venv = tmp_path / "venv"
    subprocess.run([ROOT / "scripts/make-venv", sys.executable, venv], check=True, cwd=ROOT)
    assert "pip" in subprocess.check_output(
        [venv / "bin/python", "-m", "pip", "--version"], text=True
    )


def test_a_python_that_cannot_make_one_gets_the_remedy_and_leaves_nothing(tmp_path: Path):
    fake = _program(tmp_path / "python3", 'case "$*" in *version_info*) exit 0;; *) exit 1;; esac')
    # Without an apt-get on PATH, the one way left is to say what to do.
    made = subprocess.run(
        ["/bin/sh", ROOT / "scripts/make-venv", fake, tmp_path / "venv"],
        env={"PATH": str(_coreutils(tmp_path))},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 1
    assert "Remedy, on Debian: apt-get install python3-venv" in made.stderr
    assert not (tmp_path / "venv").exists()


def test_an_old_python_is_refused_by_version(tmp_path: Path):
    fake = _program(
        tmp_path / "python3", 'case "$*" in --version) echo Python 3.9.2;; *) exit 1;; esac'
    )
    made = subprocess.run(
        [ROOT / "scripts/make-venv", fake, tmp_path / "venv"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 1
    assert "needs Python 3.11 or newer" in made.stderr
    assert "Python 3.9.2" in made.stderr


def test_every_process_of_the_procfile_is_a_program_of_ours():
    lines = (ROOT / "Procfile").read_text().splitlines()
    commands = dict(line.split(": ", 1) for line in lines)
    assert set(commands) == {"worker", "consumer", "beat", "api", "flower"}
    for command in commands.values():
        program = command.split("exec ")[1].split()[0]
        assert program in {"celery", "billing"}
    (conf,) = re.findall(r"--conf=(\S+)", commands["flower"])
    assert (ROOT / conf).is_file()


def test_the_configuration_page_has_every_setting_with_its_names_and_default():
    page = _script("write_configuration").page()
    for field in Settings.model_fields:
        assert page.count(f"`WEIGHBRIDGE_{field.upper()}`") == 1
    assert "| `WEIGHBRIDGE_AMQP_URL`, `AMQP_URL` | unset | RabbitMQ" in page
    assert "| `WEIGHBRIDGE_REDIS_PREFIX` | `wb` |" in page


class TestInstallingRabbitMQ:
    """With an apt-get that only writes down how it was called."""

    @pytest.fixture
    def script(self) -> ModuleType:
        return _script("ensure_rabbitmq")

    @pytest.fixture
    def policy(self, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        policy = tmp_path / "policy-rc.d"
        services_not_started = script.services_not_started
        monkeypatch.setattr(script, "services_not_started", lambda: services_not_started(policy))
        return policy

    def test_it_is_said_aloud_and_no_service_is_started(
        self, script: ModuleType, policy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ):
        calls = tmp_path / "calls"
        apt = _program(
            tmp_path / "apt-get", f'echo "$@" >>{calls}; {policy} >>{calls}; echo $? >>{calls}'
        )
        script.install(str(apt))
        update, update_policy, install, install_policy = calls.read_text().splitlines()
        assert update.endswith("update")
        assert install.endswith("install -y --no-install-recommends rabbitmq-server")
        assert (update_policy, install_policy) == ("101", "101")
        assert "installing Debian's rabbitmq-server" in capfd.readouterr().err
        assert not policy.exists()

    def test_a_policy_that_is_there_already_stays(
        self, script: ModuleType, policy: Path, tmp_path: Path
    ):
        policy.write_text("the operator's own")
        script.install(str(_program(tmp_path / "apt-get", "exit 0")))
        assert policy.read_text() == "the operator's own"

    def test_a_failure_is_said_and_the_policy_goes(
        self, script: ModuleType, policy: Path, tmp_path: Path
    ):
        with pytest.raises(subprocess.CalledProcessError):
            script.install(str(_program(tmp_path / "apt-get", "exit 100")))
        assert not policy.exists()

    def test_nothing_is_installed_where_a_url_names_one(
        self, script: ModuleType, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("AMQP_URL", "amqp://somewhere//")
        monkeypatch.setattr(script, "install", pytest.fail)
        script.main()


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _program(file: Path, body: str) -> Path:
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    return file


def _coreutils(folder: Path) -> Path:
    """A PATH with just what the script itself needs."""
    path = folder / "bin"
    path.mkdir()
    for name in ("id", "rm", "awk"):
        (path / name).symlink_to(
            next(p for p in (Path("/usr/bin"), Path("/bin")) if (p / name).exists()) / name
        )
    return path


def _pins(name: str) -> set[tuple[str, str]]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return set(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", text, re.MULTILINE))
