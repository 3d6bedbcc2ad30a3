"""The demo as a process: interrupted in the middle, and a second one in the same folder."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import eventually

from billing.server_urls import started_at

pytestmark = pytest.mark.worker

BARS = "submitted"


@pytest.fixture
def environment(
    tmp_path: Path, postgres_url: str, redis_url: str, rabbitmq_url: str
) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if "WEIGHBRIDGE" not in name}
    return {
        **kept,
        "DATABASE_URL": postgres_url,
        "REDIS_URL": redis_url,
        "AMQP_URL": rabbitmq_url,
        "WEIGHBRIDGE_LOCAL_DIR": str(tmp_path),
    }


@pytest.fixture
def demo(tmp_path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lab.demo"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        yield process
        process.terminate()
        process.wait(60)


def pids(folder: Path) -> list[int]:
    listed = json.loads((folder / "processes" / "servers.json").read_text())["servers"]
    return [process["pid"] for server in listed.values() for process in server["processes"]]


def test_ctrl_c_in_the_middle_stops_everything(tmp_path: Path, demo: subprocess.Popen[bytes]):
    folder = tmp_path / "demo"
    log = folder / "worker.log"
    eventually(
        lambda: "succeeded in" in log.read_text(), timeout=90, message="the worker is at work"
    )
    running = pids(folder)
    assert len(running) == 4
    demo.send_signal(signal.SIGINT)
    assert demo.wait(60) == 130
    assert [started_at(pid) for pid in running] == [None] * 4
    output = (tmp_path / "output").read_text()
    assert output.rstrip().endswith("Interrupted.")
    assert "Traceback" not in output


def test_a_second_demo_in_the_same_folder_does_not_begin(
    tmp_path: Path, environment: dict[str, str]
):
    with (tmp_path / "demo.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.run(
            [sys.executable, "-m", "lab.demo"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert second.returncode == 1
    assert "another demo is running" in " ".join(second.stdout.split())
