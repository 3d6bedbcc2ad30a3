"""Everything in the foreground, on a Procfile of the test's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import is_current
from support import eventually

from billing.devtools.embedded_servers import LocalServerError, LocalServers
from billing.devtools.embedded_servers.up import up
from billing.settings import Settings

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

PROBE = """\
import json, os, signal, sys, time
from pathlib import Path
Path(sys.argv[1]).write_text(json.dumps(dict(os.environ)))
time.sleep(60)
"""


@pytest.fixture
def local() -> Iterator[Path]:
    """Straight in /tmp: see ``place`` in test_local_servers.py."""
    with tempfile.TemporaryDirectory(prefix="weighbridge-") as name:
        yield Path(name).resolve() / "local"


@pytest.fixture
def procfile(tmp_path: Path) -> Path:
    """One process, which writes its environment down and waits."""
    (tmp_path / "probe.py").write_text(PROBE)
    file = tmp_path / "Procfile"
    file.write_text(f"probe: exec python {tmp_path / 'probe.py'} {tmp_path / 'environment.json'}\n")
    return file


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_migrates_runs_the_procfile_with_the_urls_and_stops_everything(
    procfile: Path, tmp_path: Path, local: Path, number: signal.Signals
):
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from billing.devtools.embedded_servers.up import up\n"
        "from billing.settings import Settings\n"
        "settings = Settings(local_dir=Path(sys.argv[1]), amqp_url='amqp://elsewhere//')\n"
        "say = lambda line: print(line, flush=True)\n"
        "sys.exit(up(settings, say=say, procfile=Path(sys.argv[2])))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_URL")}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(local), str(procfile)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        told = tmp_path / "environment.json"
        # The file is there before its content is.
        seen = eventually(
            lambda: process.poll() is None and json.loads(told.read_text()), timeout=60
        )
        assert seen["AMQP_URL"] == "amqp://elsewhere//"
        assert seen["REDIS_URL"].endswith("/0")
        assert seen["RESULT_URL"].endswith("/1")
        assert seen["WEIGHBRIDGE_FLOWER_BASIC_AUTH"].startswith("weighbridge:")
        assert is_current(seen["DATABASE_URL"])
    finally:
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        # Shown where anything above failed.
        print(output)  # noqa: T201
    assert process.returncode == 0
    assert "probe" in output
    assert LocalServers(local).status() == []
    LocalServers(local).remove()


def test_up_without_a_procfile_starts_nothing_and_says_so(tmp_path: Path):
    settings = Settings(local_dir=tmp_path / "local")
    with pytest.raises(LocalServerError, match="run this where it is"):
        up(settings, say=print, procfile=tmp_path / "Procfile")
    assert not (tmp_path / "local").exists()


def test_when_one_process_ends_up_ends_with_its_exit_code(
    procfile: Path, tmp_path: Path, database_url: str, redis_url: str
):
    procfile.write_text(f"{procfile.read_text()}broken: exit 3\n")
    settings = Settings(
        local_dir=tmp_path / "local",
        database_url=database_url,
        redis_url=redis_url,
        amqp_url="amqp://elsewhere//",
        flower_basic_auth="a:b",
    )
    said: list[str] = []
    assert up(settings, say=said.append, procfile=procfile) == 3
    assert not any("Flower" in line for line in said)
