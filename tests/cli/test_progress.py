"""How far a command is: shown on a terminal, and nowhere else."""

from __future__ import annotations

import pytest

from billing.cli.report_run import ReportRun
from billing.cli.services import with_progress
from billing.providers.port import ProviderCause
from billing.reporting.read_back import ReadBackResult
from billing.reporting.usage_report import ReportState


@pytest.mark.parametrize("total", [3, None])
@pytest.mark.parametrize("terminal", [False, True])
def test_everything_passes_and_only_a_terminal_sees_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    total: int | None, terminal: bool,
):  # fmt: skip
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(with_progress(iter("abc"), name="linking customers", total=total)) == [
        "a",
        "b",
        "c",
    ]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("linking customers" in captured.err) == terminal


def test_what_fails_in_the_middle_fails_here():
    def three() -> object:
        yield 1
        raise LookupError

    with pytest.raises(LookupError):
        list(with_progress(three(), name="reading"))  # type: ignore[arg-type]  # a generator of anything


def test_a_run_shows_how_far_it_is():
    run = ReportRun()
    assert run.figures() == {
        "planned": 0, "accepted": 0, "unknown": 0, "parked": 0, "confirmed": 0, "per_second": 0.0,
    }  # fmt: skip
    run.advance.planned = 30
    run.advance.became[ReportState.ACCEPTED] += 20
    run.advance.causes[ProviderCause.TAKEN] += 20
    run.readings.append(ReadBackResult(confirmed=7))
    first = run.figures()
    assert (first["planned"], first["accepted"], first["confirmed"]) == (30, 20, 7)
    assert first["per_second"] == 2.0
    # What was counted is not counted again.
    assert run.figures()["per_second"] == 2.0


def test_whoever_stopped_the_run_is_named_once():
    run = ReportRun(readings=[ReadBackResult(stopped="no answer"), ReadBackResult()])
    run.advance.stopped["stripe"] = "key_refused: no"
    assert run.stopped == {"stripe": "key_refused: no", "reading back": "no answer"}
