"""``billing local``, ``up`` and the logs of long-running commands, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from commandline import Billing
from support import eventually

from billing.container import Container
from billing.server_urls import started_at

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture
def without_redis_url(billing: Billing) -> Iterator[Billing]:
    """The command where no URL names a Redis: the embedded one is used, and stopped afterwards."""
    billing.environment |= {"WEIGHBRIDGE_REDIS_URL": None, "REDIS_URL": None}
    yield billing
    billing.run("local", "stop")


def environment(billing: Billing) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    return inherited | {name: value for name, value in billing.environment.items() if value}


def test_without_a_url_or_a_server_the_remedy_is_named(without_redis_url: Billing):
    message = without_redis_url.error("holds", "list")
    assert "REDIS_URL" in message
    assert "billing local start" in message


def test_a_command_of_the_database_alone_needs_no_other_server(without_redis_url: Billing):
    assert without_redis_url.json("customers", "list") == []


def test_local_servers_are_started_used_listed_and_stopped(
    without_redis_url: Billing, tmp_path: Path
):
    billing = without_redis_url
    started = billing.json("local", "start")
    assert {"DATABASE_URL", "REDIS_URL", "AMQP_URL", "RESULT_URL", "notes"} <= set(started)
    (server,) = billing.json("local", "status")
    assert set(server) == {"name", "running", "url", "pids"}
    assert (server["name"], server["running"]) == ("valkey", True)
    password = server["url"].partition("://")[2].partition("@")[0]
    assert not password or "***" in password
    assert "running" in billing.table("local", "status")

    billing.run("customers", "add", "acme", "Acme")
    assert billing.json("credits", "balance", "acme")["redis_error"] is None
    assert billing.json("local", "start")["REDIS_URL"] == started["REDIS_URL"]

    assert billing.json("local", "stop") == {"stopped": ["valkey"]}
    assert billing.json("local", "status") == []
    assert "nothing was running" in billing.table("local", "stop")
    assert (tmp_path / "local").is_dir()


def test_up_runs_the_procfile_on_the_servers_and_stops_what_it_started(
    without_redis_url: Billing, tmp_path: Path
):
    told = tmp_path / "told.json"
    program = tmp_path / "tell.py"
    program.write_text(
        "import json, os, pathlib, shutil, sys\n"
        "names = ('DATABASE_URL', 'REDIS_URL', 'AMQP_URL', 'RESULT_URL')\n"
        "found = {name: os.environ.get(name) for name in names}\n"
        "found['billing'] = shutil.which('billing')\n"
        f"pathlib.Path({str(told)!r}).write_text(json.dumps(found))\n"
    )
    procfile = tmp_path / "Procfile"
    procfile.write_text(f"tell: {sys.executable} {program}\n")
    without_redis_url.run("up", "--procfile", str(procfile))
    found = json.loads(told.read_text())
    assert all(found.values())
    assert Path(found["billing"]).parent == Path(sys.executable).parent
    with (
        redis.Redis.from_url(found["REDIS_URL"], socket_connect_timeout=1) as client,
        pytest.raises(redis.ConnectionError),
    ):
        client.ping()
    assert without_redis_url.json("local", "status") == []


def test_up_ends_everything_in_order_when_told_to_stop(billing: Billing, tmp_path: Path):
    alive = tmp_path / "alive"
    program = tmp_path / "wait.py"
    program.write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(alive)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(120)\n"
    )
    procfile = tmp_path / "Procfile"
    procfile.write_text(f"wait: {sys.executable} {program}\n")
    command = [sys.executable, "-m", "billing.cli", "up", "--procfile", str(procfile)]
    process = subprocess.Popen(command, env=environment(billing), stdout=subprocess.DEVNULL)
    try:
        pid = int(eventually(lambda: alive.is_file() and alive.read_text(), timeout=30) or 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(60)
    eventually(lambda: started_at(pid) is None, message="the Procfile's process is gone")


def test_up_without_a_procfile_says_where_to_run_it(billing: Billing, tmp_path: Path):
    message = billing.error("up", "--procfile", str(tmp_path / "nothing"))
    assert "Procfile" in message
    assert "name it" in message


@pytest.mark.rabbitmq
@pytest.mark.parametrize("command", ["consumer", "relay"])
def test_a_process_logs_json_lines_and_ends_in_order_on_sigterm(
    billing: Billing, tmp_path: Path, command: str
):
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "billing.cli", command],
            env=environment(billing),
            stderr=stderr,
            stdout=subprocess.PIPE,
        )
        try:
            eventually(lambda: f"{command}_started" in log.read_text(), timeout=30)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait(60)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"event", "level", "timestamp"} <= set(lines[0])


@pytest.mark.rabbitmq
def test_a_log_level_that_is_none_is_refused(billing: Billing):
    billing.environment["WEIGHBRIDGE_LOG_LEVEL"] = "LOUD"
    assert "WEIGHBRIDGE_LOG_LEVEL" in billing.error("consumer", "--drain")


def test_the_version_and_the_help_need_no_server(billing: Billing):
    billing.environment |= dict.fromkeys(
        f"{prefix}{name}_URL"
        for prefix in ("", "WEIGHBRIDGE_")
        for name in ("DATABASE", "REDIS", "AMQP")
    )
    assert billing.run("--version").stdout.startswith("weighbridge ")
    for command in (
        (), ("customers",), ("skus",), ("credits",), ("usage",), ("receipt",), ("explain",),
        ("dead",), ("holds",), ("consumer",), ("relay",), ("local",), ("up",), ("doctor",),
        ("migrate",),
    ):  # fmt: skip
        assert "Usage:" in billing.run(*command, "--help").stdout


def test_the_console_script_is_the_same_command(container: Container):
    assert container.settings
    script = Path(sys.executable).parent / "billing"
    answer = subprocess.run([script, "nonsense"], capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
