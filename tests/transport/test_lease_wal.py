"""Slips: what was appended is on the disk; a dead process's are found, a living one's are not."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import NOW, eventually, make_event

from billing.core.clock import ManualClock
from billing.core.errors import InvalidValue
from billing.transport.lease_wal import SUFFIX, AbandonedSegment, LeaseWal
from billing.transport.lease_wal_entry import LeaseWalEntry
from billing.transport.segment_files import UNREADABLE_SUFFIX

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def book(tmp_path: Path, clock: ManualClock) -> LeaseWal:
    return LeaseWal(tmp_path / "slips", clock=clock)


def slip(task: str = "t1", lease: str = "lease:a") -> LeaseWalEntry:
    return LeaseWalEntry(
        lease_id=lease,
        customer="acme",
        promised_microcredits=7,
        events=(make_event(task_id=task),),
    )


def files(book: LeaseWal) -> list[Path]:
    return sorted(book.directory.glob(f"*{SUFFIX}")) if book.directory.exists() else []


def found(book: LeaseWal) -> list[str]:
    """The tasks whose slips dead processes left."""
    with book.abandoned() as segments:
        return [slip.events[0].task_id for left in segments for slip in left.entries]


@contextmanager
def dead_process(book: LeaseWal, *slips: LeaseWalEntry) -> Iterator[None]:
    """Another process appended these and was killed."""

    def append() -> None:
        for each in slips:
            book.append(each.to_line())
        os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=append)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    yield


# -- a slip ----------------------------------------------------------------------------------------


def test_a_slip_is_read_as_it_was_written():
    one = slip()
    assert LeaseWalEntry.from_line(one.to_line()) == one
    assert one.to_line().endswith(b"}\n")
    assert one.to_line().count(b"\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"lease":"l","customer":"acme","promised":-1,"events":[]}',
        b'{"lease":"l","customer":"acme","promised":1.5,"events":[]}',
        b'{"lease":1,"customer":"acme","promised":1,"events":[]}',
        b'{"lease":"l","customer":"acme","promised":1,"events":[{}]}',
        b'{"lease":"l","customer":"acme","promised":1,"events":[1]}',
    ],
)
def test_what_is_no_slip_is_refused(line: bytes):
    with pytest.raises(InvalidValue):
        LeaseWalEntry.from_line(line)


@given(st.binary(max_size=80))
def test_no_line_makes_reading_fail_in_another_way(line: bytes):
    with pytest.raises(InvalidValue):
        LeaseWalEntry.from_line(line)


# -- living and dead -------------------------------------------------------------------------------


def test_the_slips_of_a_living_process_are_left_alone(book: LeaseWal, clock: ManualClock):
    book.append(slip().to_line())
    assert found(LeaseWal(book.directory, clock=clock)) == []
    assert found(book) == []


def test_the_slips_of_a_killed_process_are_found(book: LeaseWal):
    book.append(slip("mine").to_line())
    with dead_process(book, slip("t1"), slip("t2", "lease:b")), book.abandoned() as segments:
        (left,) = segments
        assert [each.events[0].task_id for each in left.entries] == ["t1", "t2"]
        assert left.leases == {("acme", "lease:a"), ("acme", "lease:b")}
        left.finish()
    assert found(book) == []
    assert len(files(book)) == 1


@pytest.mark.parametrize("sync", [True, False])
def test_a_slip_is_synced_unless_the_operator_does_without_and_outlives_its_process_anyway(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, sync: bool
):
    synced: list[int] = []
    really = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        synced.append(descriptor)
        really(descriptor)

    monkeypatch.setattr("os.fdatasync", fdatasync)
    book = LeaseWal(tmp_path / "slips", clock=clock, sync=sync)
    book.append(slip("mine").to_line())
    assert bool(synced) == sync
    with dead_process(book, slip("t1")):
        assert found(book) == ["t1"]


def test_slips_that_were_found_and_not_finished_are_found_again(book: LeaseWal):
    with dead_process(book, slip("t1")):
        assert found(book) == ["t1"]
        assert found(book) == ["t1"]


def test_two_relays_of_a_node_do_not_find_the_same(book: LeaseWal, clock: ManualClock):
    with dead_process(book, slip("t1")), book.abandoned() as segments:
        assert len(segments) == 1
        assert found(LeaseWal(book.directory, clock=clock)) == []


def test_a_forked_child_neither_writes_into_its_parents_segment_nor_lets_go_of_it(
    book: LeaseWal,
):
    book.append(slip("parent").to_line())
    with dead_process(book, slip("child")):
        assert found(book) == ["child"]


def test_a_killed_process_leaves_its_leases_announced_in_every_segment(
    book: LeaseWal, clock: ManualClock
):
    def announce() -> None:
        book.announce("acme", "lease:a")
        book.announce("acme", "lease:b")
        book.forget("lease:b")
        book.append(slip("t1").to_line())
        clock.advance(timedelta(minutes=2))
        book.append(slip("t2", "lease:c").to_line())
        os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=announce)
    process.start()
    process.join(60)
    with book.abandoned() as segments:
        assert [left.leases for left in segments] == [
            {("acme", "lease:a"), ("acme", "lease:b")},
            {("acme", "lease:a"), ("acme", "lease:c")},
        ]


# -- what is torn, unreadable, full ----------------------------------------------------------------


def test_a_line_that_was_being_written_is_no_slip(book: LeaseWal):
    with dead_process(book, slip("t1"), slip("t2")):
        (file,) = files(book)
        file.write_bytes(file.read_bytes().rstrip(b"\0")[:-20])
        assert found(book) == ["t1"]


def test_lines_that_are_no_slips_are_kept_beside(book: LeaseWal):
    with dead_process(book, slip("t1")):
        (file,) = files(book)
        file.write_bytes(b"\0\0\0\n" + file.read_bytes())
        with book.abandoned() as segments:
            (left,) = segments
            assert (len(left.entries), left.unreadable) == (1, 1)
            left.finish()
    assert files(book) == []
    assert file.with_suffix(UNREADABLE_SUFFIX).exists()


def test_a_full_disk_refuses_and_leaves_nothing_half(tmp_path: Path, clock: ManualClock):
    def fill(size: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        small = LeaseWal(tmp_path / "slips", clock=clock, max_segment_bytes=size)
        small.append(slip("t1").to_line())
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            small.append(slip("t2").to_line())
        except OSError as error:
            os._exit(0 if error.errno == errno.EFBIG else 1)
        os._exit(2)

    room = len(slip("t1").to_line()) + 100
    process = FORK.Process(target=fill, args=(room,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    book = LeaseWal(tmp_path / "slips", clock=clock)
    assert found(book) == ["t1"]
    with book.abandoned() as (left,):
        assert left.unreadable == 0


def test_segments_can_be_read_by_their_owner_only(book: LeaseWal):
    book.append(slip().to_line())
    (file,) = files(book)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(book.directory.stat().st_mode) == 0o700


# -- ends ------------------------------------------------------------------------------------------


def test_a_segment_goes_when_it_is_over_and_everything_in_it_is_settled(
    book: LeaseWal, clock: ManualClock
):
    first, second = book.append(slip("t1").to_line()), book.append(slip("t2").to_line())
    assert first is second
    clock.advance(timedelta(minutes=2))
    third = book.append(slip("t3").to_line())
    assert len(files(book)) == 2
    book.settled(first)
    assert len(files(book)) == 2
    book.settled(second)
    assert files(book) == [third.file.path]


def test_a_segment_that_is_large_enough_gets_no_more(tmp_path: Path, clock: ManualClock):
    book = LeaseWal(tmp_path, clock=clock, max_segment_bytes=1)
    assert book.append(slip().to_line()) is not book.append(slip().to_line())


def test_tidying_ends_an_old_segment_and_one_of_no_lease(book: LeaseWal, clock: ManualClock):
    book.announce("acme", "lease:a")
    book.settled(book.append(slip().to_line()))
    book.tidy()
    (young,) = files(book)
    clock.advance(timedelta(minutes=2))
    book.tidy()
    (fresh,) = files(book)
    assert fresh != young
    assert b"lease:a" in fresh.read_bytes()
    book.forget("lease:a")
    book.tidy()
    assert files(book) == []


def test_tidying_leaves_what_is_not_settled(book: LeaseWal, clock: ManualClock):
    segment = book.append(slip().to_line())
    book.tidy()
    clock.advance(timedelta(minutes=2))
    book.tidy()
    assert files(book) == [segment.file.path]
    book.settled(segment)
    assert files(book) == []


def test_a_closed_book_leaves_what_is_not_settled_to_be_found(book: LeaseWal, clock: ManualClock):
    book.append(slip("old").to_line())
    clock.advance(timedelta(minutes=2))
    settled = book.append(slip("new").to_line())
    book.settled(settled)
    book.close()
    assert found(book) == ["old"]


# -- threads ---------------------------------------------------------------------------------------


def test_threads_that_append_at_once_lose_nothing(book: LeaseWal):
    def append() -> None:
        def write(number: int) -> None:
            for count in range(20):
                book.append(slip(f"{number}-{count}").to_line())

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=append)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert sorted(found(book)) == sorted(f"{n}-{c}" for n in range(8) for c in range(20))


def test_a_relay_that_looks_while_a_segment_is_begun_takes_none_away(
    tmp_path: Path, clock: ManualClock
):
    stop = threading.Event()
    seen: list[AbandonedSegment] = []

    def look() -> None:
        other = LeaseWal(tmp_path, clock=clock)
        while not stop.is_set():
            with other.abandoned() as segments:
                for left in segments:
                    seen.extend([left] if left.entries else [])
                    left.finish()

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        book = LeaseWal(tmp_path, clock=clock, max_segment_bytes=1)
        kept = [book.append(slip(f"t{n}").to_line()) for n in range(200)]
    finally:
        stop.set()
        watcher.join(60)
    assert seen == []
    assert all(segment.file.path.exists() for segment in kept)
    eventually(lambda: len(files(book)) == 200)
