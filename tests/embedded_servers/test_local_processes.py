"""Detached processes: known again by pid and start, ended by pid, never mistaken for another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import eventually

from billing.devtools.embedded_servers.process import (
    Command,
    EndedAtStart,
    LocalServerError,
    Process,
    end,
    interrupts_deferred,
    spawn,
    wait_ready,
)
from billing.devtools.embedded_servers.state import ServerRecord, ServersFile, secret
from billing.server_urls import started_at

STUBBORN = (
    "import signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('up', flush=True); time.sleep(60)"
)


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Process]:
    process = spawn(_command(tmp_path, "import time; time.sleep(60)"))
    yield process
    end([process])


def test_a_process_is_the_same_each_time_it_is_looked_at():
    assert started_at(os.getpid()) is not None
    assert started_at(os.getpid()) == started_at(os.getpid())


def test_a_process_that_ended_is_not_there_even_before_it_is_reaped():
    child = subprocess.Popen([sys.executable, "-c", ""])
    eventually(lambda: started_at(child.pid) is None)
    child.wait()


def test_where_there_is_no_proc_ps_tells_the_same(
    monkeypatch: pytest.MonkeyPatch, sleeper: Process
):
    if not Path("/bin/ps").exists():
        pytest.skip("this machine has no ps")
    monkeypatch.setattr("billing.server_urls._PROC", Path("/nonexistent"))
    assert started_at(sleeper.pid) is not None
    end([Process("sleeper", sleeper.pid, sleeper.started, signal.SIGTERM, sleeper.child)])
    os.kill(sleeper.pid, signal.SIGKILL)
    eventually(lambda: started_at(sleeper.pid) is None)


def test_a_server_has_a_session_of_its_own_so_that_the_terminals_ctrl_c_passes_it_by(
    sleeper: Process,
):
    assert os.getsid(sleeper.pid) == sleeper.pid != os.getsid(0)


def test_a_server_sees_no_setting_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret@somewhere/x")
    process = spawn(_command(tmp_path, "import os; print(sorted(os.environ), flush=True)"))
    eventually(lambda: not process.alive)
    assert "DATABASE_URL" not in (tmp_path / "log").read_text()


def test_a_process_that_stops_when_asked_is_not_killed(tmp_path: Path):
    polite = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), sys.exit()))\n"
        "print('up', flush=True); time.sleep(60)"
    )
    process = spawn(_command(tmp_path, polite))
    eventually(lambda: "up" in (tmp_path / "log").read_text())
    end([process])
    assert not process.alive
    assert "bye" in (tmp_path / "log").read_text()


def test_a_process_that_does_not_stop_in_time_is_killed(tmp_path: Path):
    process = spawn(_command(tmp_path, STUBBORN))
    eventually(lambda: "up" in (tmp_path / "log").read_text())
    end([process], timeout_seconds=0.2)
    assert not process.alive


def test_another_program_that_got_the_pid_is_left_alone(sleeper: Process):
    stale = Process("valkey", sleeper.pid, "another boot:1", signal.SIGKILL)
    assert not stale.alive
    end([stale])
    assert sleeper.alive


def test_a_program_that_is_not_there_is_said_to_be_so(tmp_path: Path):
    command = Command("valkey", ["/nonexistent/valkey-server"], tmp_path, tmp_path / "log")
    with pytest.raises(LocalServerError, match="valkey: /nonexistent/valkey-server does not start"):
        spawn(command)


def test_a_server_that_ends_at_start_is_reported_with_the_end_of_its_log(tmp_path: Path):
    process = spawn(_command(tmp_path, "print('port already in use'); raise SystemExit(1)"))
    with pytest.raises(EndedAtStart, match=r"(?s)ended at start.*port already in use"):
        _wait(process, tmp_path, ready=False)


def test_a_server_that_does_not_answer_is_given_up_in_time(sleeper: Process, tmp_path: Path):
    began = time.monotonic()
    with pytest.raises(LocalServerError, match=r"no answer within 0\.2 s"):
        _wait(sleeper, tmp_path, ready=False, timeout_seconds=0.2)
    assert time.monotonic() - began < 2


def test_a_server_that_answers_is_ready(sleeper: Process, tmp_path: Path):
    _wait(sleeper, tmp_path, ready=True)


def test_an_interrupt_waits_for_the_end_of_a_deferring_block():
    steps = []
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():  # noqa: PT012 - it is the test
        signal.raise_signal(signal.SIGINT)
        steps.append("finished")
    assert steps == ["finished"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_passwords_are_for_their_owner_only_and_stay_the_same(tmp_path: Path):
    file = tmp_path / "deep" / "password"
    first = secret(file)
    assert len(first) >= 32
    assert secret(file) == first
    assert file.stat().st_mode & 0o077 == 0


def test_what_is_written_down_is_read_by_another_process(tmp_path: Path, sleeper: Process):
    ServersFile(tmp_path).put(
        ServerRecord("valkey", "redis://x", (sleeper,), (("/closed", 0o700),))
    )
    (record,) = ServersFile(tmp_path).records().values()
    assert record == ServerRecord("valkey", "redis://x", (sleeper,), (("/closed", 0o700),))
    assert record.alive
    assert (tmp_path / "servers.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"servers": 5}', '{"servers": {"valkey": {"pid": 7}}}', "\x00"]
)
def test_a_file_that_makes_no_sense_counts_as_empty(tmp_path: Path, content: str):
    (tmp_path / "servers.json").write_text(content)
    assert ServersFile(tmp_path).records() == {}
    ServersFile(tmp_path).put(ServerRecord("valkey"))
    assert set(ServersFile(tmp_path).records()) == {"valkey"}


def test_the_lock_keeps_a_second_process_out(tmp_path: Path):
    script = (
        "import fcntl, sys\n"
        "with open(sys.argv[1], 'a') as lock:\n"
        "    try: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "    except BlockingIOError: print('busy')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "servers.lock")]
    with ServersFile(tmp_path).locked():
        assert subprocess.check_output(command) == b"busy\n"
    assert subprocess.check_output(command) == b""


def _command(folder: Path, program: str) -> Command:
    return Command("sleeper", [sys.executable, "-c", program], folder, folder / "log")


def _wait(process: Process, folder: Path, *, ready: bool, timeout_seconds: float = 10) -> None:
    wait_ready(
        "valkey", lambda: ready, [process], log=folder / "log", timeout_seconds=timeout_seconds
    )
