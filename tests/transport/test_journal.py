"""Journal and spool: nothing appended is lost, whoever dies, drains or deletes at any moment."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import NOW, eventually, make_event

from billing.core.clock import ManualClock, SystemClock
from billing.core.errors import PublishFailed
from billing.core.usage_event import UsageEvent
from billing.transport.journal import Journal

FORK = multiprocessing.get_context("fork")


class Sink:
    """A publisher that confirms, until told not to."""

    def __init__(self) -> None:
        self.got: list[UsageEvent] = []
        self.fails_after: int | None = None

    def publish(self, events: Sequence[UsageEvent]) -> None:
        if self.fails_after is not None and len(self.got) + len(events) > self.fails_after:
            raise PublishFailed
        self.got.extend(events)

    @property
    def task_ids(self) -> set[str]:
        return {event.task_id for event in self.got}


@pytest.fixture
def sink() -> Sink:
    return Sink()


def events(count: int) -> list[UsageEvent]:
    return [make_event() for _ in range(count)]


def written(journal: Journal) -> list[UsageEvent]:
    return [event for segment in journal.segments() for event in journal.read(segment).events]


def test_what_is_appended_is_read_in_order(journal: Journal):
    sent = events(5)
    journal.append(sent[:2])
    journal.append(sent[2:])
    assert written(journal) == sent
    assert len(journal.segments()) == 1


def test_appending_nothing_makes_no_file(journal: Journal):
    journal.append([])
    assert journal.segments() == []
    assert not journal.directory.exists()


def test_segments_are_readable_by_their_owner_only(journal: Journal):
    journal.append(events(1))
    (segment,) = journal.segments()
    assert stat.S_IMODE(segment.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.directory.stat().st_mode) == 0o700


def test_a_segment_names_its_process_and_its_start(journal: Journal):
    journal.append(events(1))
    (segment,) = journal.segments()
    assert segment.name.startswith(f"{int(NOW.timestamp() * 1000)}-{os.getpid()}-")


def test_a_new_segment_begins_when_the_old_one_is_full(tmp_path: Path, clock: ManualClock):
    journal = Journal(tmp_path, clock=clock, max_segment_bytes=2000)
    for event in events(10):
        journal.append([event])
    assert len(journal.segments()) > 2
    assert all(segment.stat().st_size < 3000 for segment in journal.segments())


def test_a_new_segment_begins_when_the_old_one_is_old(journal: Journal, clock: ManualClock):
    journal.append(events(1))
    clock.advance(timedelta(seconds=59))
    journal.append(events(1))
    assert len(journal.segments()) == 1
    clock.advance(timedelta(seconds=1))
    journal.append(events(1))
    assert len(journal.segments()) == 2


def test_a_new_segment_begins_when_the_clock_has_stepped_back(journal: Journal, clock: ManualClock):
    journal.append(events(1))
    clock.advance(timedelta(seconds=-1))
    journal.append(events(1))
    assert len(journal.segments()) == 2


def test_a_torn_last_line_is_told_apart_from_the_whole_ones(journal: Journal):
    sent = events(2)
    journal.append(sent)
    (segment,) = journal.segments()
    with segment.open("ab") as file:
        file.write(b'{"schema":1,"id":"01')
    contents = journal.read(segment)
    assert contents.events == sent
    assert contents.torn == b'{"schema":1,"id":"01'
    assert contents.unreadable == []


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(min_value=0, max_value=3000))
def test_wherever_a_segment_is_torn_every_whole_line_before_is_read(
    cut: int, tmp_path_factory: pytest.TempPathFactory
):
    journal = Journal(tmp_path_factory.mktemp("torn"), clock=ManualClock(NOW))
    sent = events(3)
    journal.append(sent)
    (segment,) = journal.segments()
    whole = segment.read_bytes()
    os.truncate(segment, min(cut, len(whole)))
    contents = journal.read(segment)
    assert contents.events == sent[: whole[:cut].count(b"\n")]
    assert contents.unreadable == []


def test_a_drain_publishes_everything_and_leaves_nothing(spool: Journal, sink: Sink):
    sent = events(7)
    spool.append(sent)
    assert spool.drain(sink.publish, batch=3) == 7
    assert sink.got == sent
    assert spool.segments() == []
    assert spool.drain(sink.publish) == 0


def test_a_drain_whose_publish_fails_keeps_the_segment(spool: Journal, sink: Sink):
    sent = events(5)
    spool.append(sent)
    sink.fails_after = 4
    with pytest.raises(PublishFailed):
        spool.drain(sink.publish, batch=2)
    assert written(spool) == sent
    sink.fails_after = None
    spool.drain(sink.publish)
    assert sink.task_ids == {event.task_id for event in sent}
    assert spool.segments() == []


def test_a_living_writer_goes_on_in_a_new_segment_after_a_drain(spool: Journal, sink: Sink):
    first, second = events(1), events(1)
    spool.append(first)
    spool.drain(sink.publish)
    spool.append(second)
    assert written(spool) == second
    spool.drain(sink.publish)
    assert sink.got == first + second


def test_a_writer_does_not_wait_for_a_drain_in_progress(spool: Journal, sink: Sink):
    first, during = events(1), events(1)
    spool.append(first)

    def publish(batch: Sequence[UsageEvent]) -> None:
        if not sink.got:
            spool.append(during)
        sink.publish(batch)

    spool.drain(publish)
    assert sink.got == first
    assert written(spool) == during


def test_two_drains_do_not_publish_the_same_segment_at_once(spool: Journal, sink: Sink):
    spool.append(events(2))
    second = Sink()

    def publish(batch: Sequence[UsageEvent]) -> None:
        assert spool.drain(second.publish) == 0
        sink.publish(batch)

    spool.drain(publish)
    assert (len(sink.got), len(second.got)) == (2, 0)


def test_lines_that_are_no_event_are_kept_beside_and_the_rest_is_published(
    spool: Journal, sink: Sink
):
    sent = events(2)
    spool.append(sent[:1])
    (segment,) = spool.segments()
    with segment.open("ab") as file:
        file.write(b"not an event\n")
    spool.append(sent[1:])
    with segment.open("ab") as file:
        file.write(b"torn")
    spool.drain(sink.publish)
    assert sink.got == sent
    assert spool.segments() == []
    (kept,) = spool.directory.iterdir()
    assert kept.suffix == ".unreadable"
    assert kept.read_bytes() == b"not an event\ntorn"


def test_pruning_deletes_what_is_old_and_keeps_what_may_be_young(
    journal: Journal, clock: ManualClock
):
    journal.append(events(1))
    assert journal.prune(clock.now() + timedelta(seconds=60)) == 0
    assert journal.prune(clock.now() + timedelta(seconds=60, milliseconds=1)) == 1
    assert journal.segments() == []


def test_a_writer_whose_segment_was_pruned_opens_a_new_one(journal: Journal, clock: ManualClock):
    journal.append(events(1))
    journal.prune(clock.now() + timedelta(days=1))
    later = events(1)
    journal.append(later)
    assert written(journal) == later


def test_a_writer_whose_directory_was_deleted_makes_it_again(journal: Journal):
    journal.append(events(1))
    (segment,) = journal.segments()
    segment.unlink()
    journal.directory.rmdir()
    later = events(1)
    journal.append(later)
    assert written(journal) == later


def test_a_file_of_another_name_is_not_pruned(journal: Journal, clock: ManualClock):
    journal.directory.mkdir()
    stranger = journal.directory / "notes.jsonl"
    stranger.write_text("")
    assert journal.prune(clock.now() - timedelta(days=1)) == 0
    assert stranger.exists()


def test_a_full_disk_leaves_no_half_line_and_says_so(spool: Journal):
    """The limit on a file's size stands in for the disk's end."""
    sent = events(1)
    spool.append(sent)
    (segment,) = spool.segments()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (segment.stat().st_size + 100, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            spool.append(events(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert spool.read(segment).torn == b""
    after = events(1)
    spool.append(after)
    assert {event.id for event in written(spool)} == {event.id for event in sent + after}


def test_a_forked_child_writes_a_segment_of_its_own(journal: Journal):
    mine, childs = events(2), events(1)
    journal.append(mine[:1])
    child = FORK.Process(target=journal.append, args=[childs])
    child.start()
    child.join(60)
    assert child.exitcode == 0
    journal.append(mine[1:])
    assert [journal.read(segment).events for segment in journal.segments()] in (
        [mine, childs],
        [childs, mine],
    )


def test_a_child_forked_under_the_parents_lock_is_not_locked_out(journal: Journal):
    journal.append(events(1))
    with journal._writers.get().lock:
        child = FORK.Process(target=journal.append, args=[events(1)])
        child.start()
        child.join(60)
        assert child.exitcode == 0


def test_a_segment_locked_by_a_stranger_is_left_and_another_is_begun(journal: Journal):
    journal.append(events(1))
    (segment,) = journal.segments()
    with segment.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        journal.append(events(1))
    assert len(journal.segments()) == 2


def test_threads_share_a_segment_and_no_line_is_mixed(journal: Journal):
    batches = [events(5) for _ in range(16)]
    threads = [threading.Thread(target=journal.append, args=[batch]) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(event.task_id for event in written(journal)) == sorted(
        event.task_id for batch in batches for event in batch
    )
    assert len(journal.segments()) == 1


def write_many(directory: Path, name: str, count: int) -> None:
    spool = Journal(directory, clock=SystemClock(), max_segment_bytes=4000)
    for number in range(count):
        spool.append([make_event(task_id=f"{name}-{number}")])


def test_drains_and_living_writers_at_full_speed_lose_nothing(tmp_path: Path):
    writers = [FORK.Process(target=write_many, args=[tmp_path, f"w{n}", 400]) for n in range(3)]
    spool = Journal(tmp_path, clock=SystemClock())
    sinks = [Sink(), Sink()]
    for writer in writers:
        writer.start()
    done = threading.Event()

    def drain(sink: Sink) -> None:
        while not done.is_set():
            spool.drain(sink.publish, batch=50)

    drainers = [threading.Thread(target=drain, args=[sink]) for sink in sinks]
    for drainer in drainers:
        drainer.start()
    for writer in writers:
        writer.join(60)
    done.set()
    for drainer in drainers:
        drainer.join(60)
    spool.drain(sinks[0].publish)
    got = Counter(event.task_id for sink in sinks for event in sink.got)
    assert got == Counter(f"w{n}-{number}" for n in range(3) for number in range(400))
    assert spool.segments() == []


WRITER = """
import sys
from pathlib import Path
from support import make_event
from billing.core.clock import SystemClock
from billing.transport.journal import Journal

spool = Journal(Path(sys.argv[1]), fsync=True, clock=SystemClock())
for number in range(1_000_000):
    spool.append([make_event(task_id=f"task-{number}")])
    print(number, flush=True)
"""


@pytest.mark.process
def test_what_was_appended_before_a_sigkill_is_drained_by_another_process(
    tmp_path: Path, sink: Sink, pytestconfig: pytest.Config
):
    paths = [str(pytestconfig.rootpath), str(pytestconfig.rootpath / "tests")]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert writer.stdout is not None
    appended = [writer.stdout.readline() for _ in range(50)]
    writer.send_signal(signal.SIGKILL)
    appended += writer.stdout.readlines()
    assert writer.wait(60) == -signal.SIGKILL
    spool = Journal(tmp_path, clock=SystemClock())
    spool.drain(sink.publish)
    assert {f"task-{int(line)}" for line in appended if line.endswith("\n")} <= sink.task_ids
    assert spool.segments() == []


def killed_drain(directory: Path, after: int) -> None:
    count = 0

    def publish(batch: Sequence[UsageEvent]) -> None:
        nonlocal count
        count += len(batch)
        if count >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal(directory, clock=SystemClock()).drain(publish, batch=1)


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_drain_killed_at_any_event_leaves_all_of_them_to_the_next(
    spool: Journal, sink: Sink, after: int
):
    sent = events(5)
    spool.append(sent)
    drainer = FORK.Process(target=killed_drain, args=[spool.directory, after])
    drainer.start()
    drainer.join(60)
    assert drainer.exitcode == -signal.SIGKILL
    eventually(lambda: spool.drain(sink.publish))
    assert sink.got == sent


def test_an_interrupted_append_leaves_its_half_line_last(
    spool: Journal, sink: Sink, monkeypatch: pytest.MonkeyPatch
):
    """As Celery's soft time limit does, between any two instructions."""
    first, after = events(1), events(1)
    spool.append(first)
    real_write = os.pwrite

    def interrupted(descriptor: int, data: bytes, at: int) -> int:
        real_write(descriptor, data[:10], at)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.pwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            spool.append(events(1))
    spool.append(after)
    spool.drain(sink.publish)
    assert sink.got == first + after
