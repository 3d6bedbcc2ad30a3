from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lab.demo.children import Children
from lab.demo.interrupts import Interrupts


class Interrupted:
    """Is interrupted while it is deleted, where Python drops what is raised."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_being_ended_from_outside_is_like_ctrl_c(number: signal.Signals):
    with Interrupts().handled(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_dropped_is_raised_at_the_next_check(tmp_path: Path):
    interrupts = Interrupts()
    children = Children(tmp_path, interrupts.check)
    with interrupts.handled():
        children.check()
        doomed = Interrupted()
        del doomed
        with pytest.raises(KeyboardInterrupt):
            children.check()


def test_afterwards_the_signals_mean_what_they_meant_before():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts().handled():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
