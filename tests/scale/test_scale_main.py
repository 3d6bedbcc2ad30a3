"""The command ``python -m scale``: what it offers and how it prints."""

from __future__ import annotations

import pytest

from lab.scale.__main__ import _lines, main


def test_a_run_that_does_not_exist_names_those_that_do(
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(SystemExit) as refused:
        main(["moon"])
    assert refused.value.code == 2
    assert "redis-cluster" in capsys.readouterr().err


def test_figures_are_printed_by_name_and_parts_are_indented():
    printed = _lines({"attempts": 3814, "ok": True, "books": {"over_ceiling": 0}})
    assert printed == "attempts: 3,814\nok: True\nbooks:\n  over ceiling: 0"
