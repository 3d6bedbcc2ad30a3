"""What commands print: nothing a terminal would act on, nothing wider than promised."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.cli.output import (
    WIDTH,
    Column,
    instant,
    print_facts,
    print_json,
    print_table,
    printable,
    say,
    warn,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Äcme 日本", "Äcme 日本"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\r\nb", "a\\r\\nb"),
        ("\x07", "\\x07"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("[red]", "[red]"),
    ],
)
def test_what_a_terminal_would_act_on_is_written_out(text: str, shown: str):
    assert printable(text) == shown


@given(st.text())
def test_whatever_is_printed_is_printable(text: str):
    assert printable(text).isprintable()


def test_an_instant_is_shown_in_utc_whatever_its_zone():
    noon = datetime(2026, 11, 21, 13, tzinfo=timezone(timedelta(hours=1)))
    assert instant(noon) == "2026-11-21 12:00:00"
    assert instant(None) == "-"


def test_a_table_folds_what_is_long_and_keeps_all_of_it(capsys: pytest.CaptureFixture[str]):
    long = "".join(chr(ord("a") + n % 26) for n in range(300))
    print_table("T", [Column("name"), Column("n", numeric=True)], [(long, 1_234_567), (None, 0)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert long in "".join("".join(lines).split()).replace("1,234,567", "")


def test_an_empty_table_is_a_sentence(capsys: pytest.CaptureFixture[str]):
    print_table("Things", [Column("name")], [], empty="none yet")
    assert capsys.readouterr().out == "Things: none yet\n"


def test_markup_in_a_cell_is_text(capsys: pytest.CaptureFixture[str]):
    print_table("[bold]T", [Column("name")], [("[red]x[/red] :smile:",)])
    print_facts("[bold]F", [("name", "[red]y")])
    out = capsys.readouterr().out
    for text in ("[bold]T", "[red]x[/red] :smile:", "[bold]F", "[red]y"):
        assert text in out


def test_results_and_warnings_go_to_different_streams(capsys: pytest.CaptureFixture[str]):
    say("result")
    warn("careful")
    captured = capsys.readouterr()
    assert captured.out == "result\n"
    assert captured.err == "warning: careful\n"


def test_json_is_one_document_of_plain_values(capsys: pytest.CaptureFixture[str]):
    print_json(
        {
            "at": datetime(2026, 11, 21, 12, tzinfo=UTC),
            "sum": Decimal(9007199254740993),
            "text": "\x1b",
            "none": None,
        }
    )
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert json.loads(out) == {
        "at": "2026-11-21T12:00:00.000Z",
        "sum": 9007199254740993,
        "text": "\x1b",
        "none": None,
    }
