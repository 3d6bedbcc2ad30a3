"""Places to die at: billing/core/failpoints.py."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import billing
from billing.core import failpoints
from billing.core.errors import InvalidValue
from billing.settings import Settings

SCRIPT = """
import sys
from pathlib import Path
from billing.core.failpoints import arm, reach

arm(sys.argv[1], Path(sys.argv[2]))
for name in sys.argv[3:]:
    reach(name)
    print(name, flush=True)
"""


@pytest.fixture(autouse=True)
def disarmed(tmp_path: Path) -> Iterator[None]:
    """No test leaves a point armed in the process that runs the tests."""
    yield
    failpoints.arm("", tmp_path / "none")


def walk(specification: str, record: Path, *names: str) -> tuple[int, list[str]]:
    """Reach the names in a process of their own; its exit code and those it got past."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, specification, str(record), *names],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        start_new_session=True,  # a group of its own, or "!" would end the tests
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.split()


def test_an_unarmed_point_is_passed(tmp_path: Path):
    failpoints.arm("", tmp_path / "hits")

    for name in failpoints.NAMES:
        failpoints.reach(name)

    assert not (tmp_path / "hits").exists()


@pytest.mark.process
def test_an_armed_point_kills_at_its_turn_and_not_before(tmp_path: Path):
    record = tmp_path / "hits"

    code, passed = walk("settle.after=3", record, *["settle.after"] * 5)

    assert code == -signal.SIGKILL
    assert passed == ["settle.after"] * 2
    assert record.read_text() == "settle.after\n"


@pytest.mark.process
def test_other_points_are_passed_while_one_is_armed(tmp_path: Path):
    record = tmp_path / "hits"

    code, passed = walk("hold.after=1", record, "hold.before", "body.after", "hold.after")

    assert code == -signal.SIGKILL
    assert passed == ["hold.before", "body.after"]


@pytest.mark.process
def test_the_restarted_process_goes_on_past_a_point_that_was_hit(tmp_path: Path):
    record = tmp_path / "hits"
    walk("hold.before=1", record, "hold.before")

    code, passed = walk("hold.before=1", record, *["hold.before"] * 3)

    assert code == 0
    assert passed == ["hold.before"] * 3
    assert record.read_text() == "hold.before\n"


@pytest.mark.process
def test_several_points_each_kill_once(tmp_path: Path):
    record = tmp_path / "hits"
    way = ("hold.before", "settle.after")

    codes = [walk("hold.before=1,settle.after=1", record, *way)[0] for _ in range(3)]

    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert record.read_text().split() == list(way)


FAMILY = """
import os, sys, time
from pathlib import Path
from billing.core.failpoints import arm, reach

arm(sys.argv[1], Path(sys.argv[2]))
if os.fork() == 0:
    reach("hold.before")
print("parent waits", flush=True)
os.wait()
print("parent lives", flush=True)
"""


def family(specification: str, record: Path) -> tuple[int, list[str]]:
    """A parent whose child reaches a point; the parent's exit code and what it could say."""
    done = subprocess.run(
        [sys.executable, "-c", FAMILY, specification, str(record)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        start_new_session=True,
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.process
def test_a_point_kills_the_process_that_reached_it_and_not_its_parent(tmp_path: Path):
    code, said = family("hold.before=1", tmp_path / "hits")

    assert code == 0
    assert said[-1] == "parent lives"


@pytest.mark.process
def test_a_point_with_an_exclamation_mark_kills_the_whole_group(tmp_path: Path):
    record = tmp_path / "hits"

    code, said = family("hold.before=1!", record)

    assert code == -signal.SIGKILL
    assert "parent lives" not in said
    assert record.read_text() == "hold.before\n"


CROWD = """
import os, sys
from pathlib import Path
from billing.core.failpoints import arm, reach

arm(sys.argv[1], Path(sys.argv[2]))
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        reach("hold.before")
        os._exit(0)
    children.append(child)
print(sum(os.WIFSIGNALED(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.process
def test_of_many_processes_that_reach_a_point_at_once_one_dies(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", CROWD, "hold.before=1", str(tmp_path / "hits")],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        start_new_session=True,
    )

    assert done.stdout == "1\n"
    assert (tmp_path / "hits").read_text() == "hold.before\n"


@pytest.mark.process
def test_the_folder_of_the_record_is_made(tmp_path: Path):
    record = tmp_path / "spool" / "deep" / "hits"

    code, _ = walk("hold.before=1", record, "hold.before")

    assert code == -signal.SIGKILL
    assert record.exists()


def test_arming_anew_forgets_what_was_armed(tmp_path: Path):
    failpoints.arm("hold.before=1", tmp_path / "hits")
    failpoints.arm("", tmp_path / "hits")

    failpoints.reach("hold.before")


@pytest.mark.parametrize(
    "specification",
    ["nowhere=1", "=1", "hold.before", "hold.before=", "hold.before=0", "hold.before=-1",
     "hold.before=1.5", "hold.before=!", "hold.before=1!!", "hold.before!", "hold.before=x",
     "hold.before=1,nowhere=1", " "],
)  # fmt: skip
def test_a_specification_that_cannot_be_right_is_refused_and_arms_nothing(
    tmp_path: Path, specification: str
):
    failpoints.arm("", tmp_path / "hits")

    with pytest.raises(InvalidValue, match="failpoint"):
        failpoints.arm(specification, tmp_path / "hits")

    failpoints.reach("hold.before")


def test_spaces_and_empty_parts_are_no_fault(tmp_path: Path):
    failpoints.arm(" hold.before=2, settle.after=1,", tmp_path / "hits")

    failpoints.reach("hold.before")


def test_the_names_are_the_points_that_the_engine_reaches():
    folder = Path(billing.__file__).parent
    source = "\n".join(path.read_text() for path in folder.rglob("*.py"))

    reached = set(re.findall(r'\breach\("([^"]+)"\)', source))

    assert reached == failpoints.NAMES


def test_nothing_is_armed_unless_the_settings_say_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WEIGHBRIDGE_FAILPOINTS", raising=False)

    assert Settings().failpoints == ""
