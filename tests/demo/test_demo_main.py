from __future__ import annotations

import sys
from pathlib import Path

import pytest
from celery.exceptions import Retry
from support import eventually

from billing.core.errors import WeighbridgeError
from lab.demo import __main__ as entry
from lab.demo.children import Children, Program
from lab.demo.errors import DemoError
from lab.demo.tasks import digest, patient_capture
from workers.tasks.errors import BadStatusError


class FakeDemo:
    """A demo that ends as its test says."""

    def __init__(self, end: bool | BaseException) -> None:
        self.end = end

    def __call__(self, *_: object) -> FakeDemo:
        return self

    @property
    def stages(self) -> FakeDemo:
        return self

    @property
    def ground(self) -> FakeDemo:
        return self

    elapsed_seconds = 61.2
    keeps_data = True
    denied_task = "c2"

    def run(self) -> bool:
        if isinstance(self.end, BaseException):
            raise self.end
        return self.end


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIGHBRIDGE_LOCAL_DIR", str(tmp_path))
    return tmp_path / "demo"


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        (True, 0, "61 s altogether"),
        (False, 1, "61 s altogether"),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (DemoError("the worker has ended"), 1, "could not go on: the worker has ended"),
        (WeighbridgeError("no PostgreSQL"), 1, "could not go on: no PostgreSQL"),
    ],
)
def test_the_exit_code_says_how_it_went(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    end: bool | BaseException,
    code: int,
    told: str,
):
    monkeypatch.setattr(entry, "Demo", FakeDemo(end))
    assert entry.main() == code
    assert told in capsys.readouterr().out
    assert folder.is_dir()


def test_it_says_how_to_look_at_the_data_afterwards(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(entry, "Demo", FakeDemo(end=True))
    entry.main()
    out = capsys.readouterr().out
    assert f"export WEIGHBRIDGE_LOCAL_DIR={folder}" in out
    assert "billing explain c2" in out


def test_data_that_is_gone_is_not_spoken_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    demo = FakeDemo(end=True)
    demo.keeps_data = False
    monkeypatch.setattr(entry, "Demo", demo)
    entry.main()
    assert "What to look at next" not in capsys.readouterr().out
    assert folder.is_dir()


def test_every_demo_begins_in_an_empty_folder(folder: Path):
    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    entry._start_anew(folder)
    assert list(folder.iterdir()) == []


def test_what_a_killed_demo_left_running_is_ended_first(folder: Path):
    left = Children(folder)
    program = Program(
        name="left",
        arguments=[sys.executable, "-c", "import time; time.sleep(60)"],
        ready=lambda _: True,
    )
    folder.mkdir()
    left.start(program, {})
    entry._start_anew(folder)

    def ended() -> bool:
        with pytest.raises(DemoError):
            left.check()
        return True

    assert eventually(ended)
    left.stop()


def test_a_demo_is_alone_in_its_folder(folder: Path):
    another = pytest.raises(DemoError, match="another demo is running")
    with entry._alone(folder), another, entry._alone(folder):
        pass
    with entry._alone(folder):
        pass


def test_a_digest_adds_up_what_captures_found():
    captures = [{"text_characters": 3}, {"text_characters": 4}]
    assert digest(captures) == {"pages": 2, "text_characters": 7}
    assert digest([]) == {"pages": 0, "text_characters": 0}


def test_a_patient_capture_comes_back_when_the_host_is_busy(monkeypatch: pytest.MonkeyPatch):
    def busy(url: str) -> None:
        raise BadStatusError(url, "503")

    monkeypatch.setattr("lab.demo.tasks.capture_page", type("Fake", (), {"run": busy}))
    asked: list[dict[str, object]] = []

    def retry(**options: object) -> Retry:
        asked.append(options)
        return Retry()

    task = patient_capture._get_current_object()
    monkeypatch.setattr(task, "retry", retry)
    with pytest.raises(Retry):
        task.run("http://busy/")
    assert isinstance(asked[0]["exc"], BadStatusError)
    assert (task.max_retries, task.default_retry_delay, task.sku) == (3, 1, "page-capture")
