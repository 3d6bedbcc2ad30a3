from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import eventually

from billing.server_urls import started_at
from lab.demo import programs
from lab.demo.children import Children, Program
from lab.demo.errors import DemoError

READY = "print('at work', flush=True); import time; time.sleep(60)"


def program(code: str, *, name: str = "helper", start_seconds: float = 20) -> Program:
    return Program(
        name=name,
        arguments=[sys.executable, "-c", code],
        ready=lambda log: "at work" in log,
        start_seconds=start_seconds,
    )


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    children = Children(tmp_path)
    yield children
    children.stop()


def test_a_process_is_ready_when_its_log_says_so(children: Children):
    helper = program(READY)
    children.start(helper, {})
    children.wait_ready(helper)
    children.check()
    assert "at work" in children.log_of("helper").read_text()


def test_a_process_gets_what_it_is_told_beside_our_environment(
    children: Children, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OURS", "kept")
    helper = program(
        f"import os; print(os.environ['OURS'], os.environ['TOLD'], flush=True); {READY}"
    )
    children.start(helper, {"TOLD": "this"})
    children.wait_ready(helper)
    assert children.log_of("helper").read_text().startswith("kept this")


def test_a_process_that_ends_is_told_with_the_end_of_its_log(children: Children):
    helper = program("raise SystemExit('no such broker')")
    children.start(helper, {})
    with pytest.raises(DemoError, match=r"(?s)the helper has ended.*no such broker"):
        children.wait_ready(helper)


def test_a_process_that_does_not_get_ready_is_told(children: Children):
    helper = program(
        "print('thinking', flush=True); import time; time.sleep(60)", start_seconds=0.3
    )
    children.start(helper, {})
    with pytest.raises(DemoError, match=r"waited 0\.3 s for the helper to start"):
        children.wait_ready(helper)


def test_stopping_ends_all_and_nothing_is_written_down_any_more(tmp_path: Path):
    children = Children(tmp_path)
    pids = []
    for name in ("one", "two"):
        helper = program(f"import os; print(os.getpid(), flush=True); {READY}", name=name)
        children.start(helper, {})
        children.wait_ready(helper)
        pids.append(int(children.log_of(name).read_text().split()[0]))
    children.stop()
    assert [started_at(pid) for pid in pids] == [None, None]
    assert Children(tmp_path).end_leftovers() == []
    children.check()


def test_what_a_killed_demo_left_running_is_ended_by_the_next(tmp_path: Path):
    killed = Children(tmp_path)
    helper = program(f"import os; print(os.getpid(), flush=True); {READY}")
    killed.start(helper, {})
    killed.wait_ready(helper)
    pid = int(killed.log_of("helper").read_text().split()[0])
    assert Children(tmp_path).end_leftovers() == ["helper"]
    killed.stop()
    assert started_at(pid) is None


def test_a_folder_without_a_past_has_no_leftovers(tmp_path: Path):
    assert Children(tmp_path / "never").end_leftovers() == []


def test_a_wait_ends_as_soon_as_it_is_over(children: Children):
    eventually(lambda: children.wait(lambda: True, 1, lambda: "nothing") is None)


def test_the_worker_is_a_prefork_one_with_the_demos_tasks():
    worker = programs.worker("demo-1", 3)
    arguments = " ".join(worker.arguments)
    assert "-A workers worker --pool prefork --concurrency 3 --task-events" in arguments
    assert "--hostname demo-1@%h" in arguments
    assert "--include lab.demo.tasks" in arguments
    assert worker.ready("[…] demo-1@vm ready.")
    assert not worker.ready("[…] already there")


def test_beat_keeps_its_schedule_in_the_demos_folder(tmp_path: Path):
    assert str(tmp_path / "beat-schedule") in programs.beat(tmp_path).arguments
