"""Commands that run for long: how they end, and what they show."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from support import eventually

from billing.cli.services import Rate, reporting, until_signalled


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_and_a_second_one_acts_as_before(number: signal.Signals):
    before = signal.getsignal(number)
    with until_signalled() as stop:
        assert signal.getsignal(number) is not before
        os.kill(os.getpid(), number)
        eventually(stop.is_set, message="the signal arrives")
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before


def test_without_a_signal_the_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with until_signalled() as stop:
        assert not stop.is_set()
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_a_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen: list[bool] = []

    def run() -> None:
        with until_signalled() as stop:
            seen.append(stop.is_set())
            seen.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(timeout=60)
    assert seen == [False, True]


def test_a_rate_is_the_mean_of_the_last_ten_seconds():
    now = [100.0]
    rate = Rate(monotonic=lambda: now[0])
    assert rate.per_second() == 0
    rate.add(50)
    now[0] += 5
    rate.add(30)
    assert rate.per_second() == 8
    now[0] += 5
    assert rate.per_second() == 3
    now[0] += 5
    assert rate.per_second() == 0
    assert rate.total == 80


def test_figures_are_asked_for_again_and_again_until_the_end():
    asked: list[int] = []

    def figures() -> dict[str, object]:
        asked.append(1)
        return {"events": len(asked)}

    with reporting("test", figures, every_seconds=0.01):
        eventually(lambda: len(asked) >= 3, message="three reports")
    after = len(asked)
    assert threading.active_count() >= 1
    assert not [thread for thread in threading.enumerate() if thread.name == "test-report"]
    assert len(asked) == after


def test_a_view_that_fails_does_not_end_what_it_looks_at():
    asked: list[int] = []

    def figures() -> dict[str, object]:
        asked.append(1)
        raise RuntimeError("no answer")

    with reporting("test", figures, every_seconds=0.01):
        eventually(lambda: len(asked) >= 2, message="it goes on asking")
