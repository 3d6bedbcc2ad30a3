from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from demo_evidence import ticket

from lab.demo.results import End, Results, end_of, reasons, tally
from lab.demo.submission import Submitted
from workers.errors import QuotaExceeded

OUT_OF_CREDITS = QuotaExceeded("insufficient_credits", "corvus", "page-capture", 1, 0)


class MemoryBackend:
    """A result backend in a dict; counts how often it is asked."""

    def __init__(self) -> None:
        self.stored: dict[str, dict[str, Any]] = {}
        self.asked: list[int] = []

    def get_key_for_task(self, task_id: str) -> bytes:
        return f"celery-task-meta-{task_id}".encode()

    def get_key_for_group(self, group_id: str, key: str) -> bytes:
        return f"celery-taskset-meta-{group_id}{key}".encode()

    def mget(self, keys: list[bytes]) -> list[Any]:
        self.asked.append(len(keys))
        return [self.stored.get(key.decode().removeprefix("celery-task-meta-")) for key in keys]

    def decode_result(self, payload: dict[str, Any]) -> dict[str, Any]:
        return payload

    def end(self, task_id: str, status: str, result: object = None) -> None:
        self.stored[task_id] = {"status": status, "result": result}


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def results(backend: MemoryBackend) -> Results:
    results = Results(backend)
    submitted = Submitted([ticket(each) for each in ("a1", "c1", "c2")], {"body": "corvus"}, ["g"])
    results.expect(submitted)
    return results


@pytest.mark.parametrize(
    ("state", "result", "end"),
    [
        ("SUCCESS", {"url": "x"}, End("succeeded")),
        ("FAILURE", OUT_OF_CREDITS, End("denied", "insufficient_credits")),
        ("FAILURE", ValueError("x"), End("failed", "ValueError")),
        ("REVOKED", RuntimeError("x"), End("failed", "RuntimeError")),
    ],
)
def test_an_end_is_told_by_state_and_exception(state: str, result: object, end: End):
    assert end_of(state, result) == end


def test_what_has_no_result_stays_pending(backend: MemoryBackend, results: Results):
    backend.end("a1", "SUCCESS")
    backend.end("c1", "STARTED")
    assert results.ask() == 1
    assert results.pending == 3
    assert results.ends == {"a1": End("succeeded")}


def test_a_retry_is_not_an_end(backend: MemoryBackend, results: Results):
    backend.end("a1", "RETRY", RuntimeError("busy"))
    assert results.ask() == 0


def test_what_has_ended_is_not_asked_for_again(backend: MemoryBackend, results: Results):
    for task_id in ("a1", "c1", "c2", "body"):
        backend.end(task_id, "SUCCESS")
    results.ask()
    assert results.pending == 0
    results.ask()
    assert backend.asked == [4]


def test_ends_are_counted_by_customer_without_the_chords_bodies(
    backend: MemoryBackend, results: Results
):
    backend.end("a1", "SUCCESS")
    backend.end("c1", "FAILURE", OUT_OF_CREDITS)
    backend.end("body", "FAILURE", RuntimeError("ChordError"))
    results.ask()
    assert results.by_customer() == {
        "atlas": Counter({End("succeeded"): 1}),
        "corvus": Counter({End("denied", "insufficient_credits"): 1}),
    }
    assert results.broken_chords() == {"corvus": 1}


def test_a_chord_that_succeeded_is_not_broken(backend: MemoryBackend, results: Results):
    backend.end("body", "SUCCESS")
    results.ask()
    assert results.broken_chords() == {}


def test_many_are_asked_for_in_several_questions(backend: MemoryBackend):
    results = Results(backend)
    results.expect(Submitted([ticket(f"a{number}") for number in range(1200)]))
    results.ask()
    assert backend.asked == [500, 500, 200]


def test_the_keys_of_everything_can_be_deleted_later(results: Results):
    assert set(results.keys()) == {
        "celery-task-meta-a1",
        "celery-task-meta-c1",
        "celery-task-meta-c2",
        "celery-task-meta-body",
        "celery-taskset-meta-g*",
    }


def test_ends_are_tallied_by_outcome_and_reason():
    ends = Counter({End("denied", "b"): 2, End("denied", "a"): 1, End("succeeded"): 5})
    assert tally(ends, "denied") == 3
    assert reasons(ends, "denied") == {"a": 1, "b": 2}
    assert tally(ends, "failed") == 0
