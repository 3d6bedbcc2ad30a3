from __future__ import annotations

import io
import json
from collections import Counter

import msgspec
from demo_evidence import CREDIT, PLANS, good_books, good_evidence, reported
from rich.console import Console

from lab.demo.bars import Bars, note
from lab.demo.checks import Check, invariants
from lab.demo.report import (
    about,
    print_checklist,
    print_delivery,
    print_next,
    print_overview,
    print_receipts,
)
from lab.demo.reported import Delivery
from lab.demo.results import End
from lab.demo.scenario import CUSTOMERS
from lab.demo.stages import WIDTH, Stages
from lab.demo.summary import plain_credits, summarise


def console_of(encoding: str = "utf-8") -> tuple[Console, io.TextIOWrapper]:
    text = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    console = Console(file=text, width=WIDTH, highlight=False, markup=False, emoji=False)
    return console, text


def lines_of(text: io.TextIOWrapper) -> list[str]:
    buffer = text.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode(text.encoding).splitlines()


def row(lines: list[str], start: str) -> list[str]:
    return next(line.split() for line in lines if line.strip().startswith(start))


def test_the_overview_has_one_row_per_customer_that_fits_the_terminal():
    console, text = console_of()
    print_overview(console, PLANS, good_books(), credit_value="0.01", currency="USD")
    lines = lines_of(text)
    assert max(map(len, lines)) <= WIDTH
    # tasks, done, failed, denied, granted, held, settled, balance, cost, margin
    assert row(lines, "atlas")[1:] == ["3", "2", "1", "0", "10", "3", "2", "8", "0.004", "0.016"]
    assert row(lines, "corvus")[1:] == ["3", "1", "0", "2", "1", "1", "1", "0", "0.000", "0.010"]


def test_the_overview_says_why_tasks_were_denied_and_failed():
    console, text = console_of()
    print_overview(console, PLANS, good_books(), credit_value="0.01", currency="USD")
    lines = [line.strip() for line in lines_of(text)]
    assert "2 denied: out of credits (insufficient_credits)" in lines
    assert "1 failed: the page could not be had; not charged (exception)" in lines


def test_receipts_show_quantity_credits_cost_and_subject():
    console, text = console_of()
    print_receipts(console, PLANS, good_books(), currency="USD")
    lines = lines_of(text)
    assert max(map(len, lines)) <= WIDTH
    assert any(line.startswith("atlas: the last 2 lines") for line in lines)
    assert row(lines, "12:30:00")[1:] == ["page-capture", "succeeded", "1", "1", "-", "/a2"]
    assert any("0.0040" in line for line in lines)


def test_a_receipt_line_is_about_its_subject_without_the_host():
    assert about("http://127.0.0.1:4000/abc.html?atlas-1", "") == "/abc.html?atlas-1"
    assert about("http://127.0.0.1:4000", "") == "/"
    assert about(None, "budget_exceeded") == "budget_exceeded"
    assert about("python", "exception") == "exception: python"
    assert about(None, "") == "-"


def test_a_page_cannot_write_on_the_terminal_through_its_subject():
    console, text = console_of()
    books = good_books()
    latest = books.customers[0].latest[0]
    msgspec.structs.force_setattr(latest, "subject", "\x1b[2Jgone")
    print_receipts(console, PLANS, books, currency="USD")
    assert "\x1b" not in "".join(lines_of(text))


def test_the_checklist_names_every_violation():
    console, text = console_of()
    checks = [Check("all is well", "3 = 3"), Check("nothing is lost", "2 of 3", ["task a1 is"])]
    print_checklist(console, checks, "✓")
    assert [line.strip() for line in lines_of(text)][1:] == [
        "Invariants",
        "✓ all is well",
        "3 = 3",
        "x nothing is lost",
        "2 of 3",
        "task a1 is",
    ]


def test_what_to_look_at_next_is_aligned():
    console, text = console_of()
    print_next(console, {"make up": "everything", "billing receipt corvus": "lines"})
    lines = lines_of(text)
    assert lines[-1].index("lines") == lines[-2].index("everything")


def test_a_stages_line_says_what_came_of_it_and_how_long_it_took():
    console, text = console_of()
    seconds = iter([0.0, 1.0, 3.5])
    stages = Stages(console, monotonic=lambda: next(seconds))
    with stages.stage("Servers") as stage:
        stage.show("starting")
        stage.outcome = "three of them " + "and more " * 20
    (line,) = [line for line in lines_of(text) if "Servers" in line]
    assert len(line) <= WIDTH
    assert line.startswith("  ✓ Servers")
    assert line.endswith("2.5 s")


def test_a_terminal_without_unicode_gets_ascii_marks():
    console, text = console_of("ascii")
    stages = Stages(console)
    stages.done("Servers", "ready", 1.0)
    assert lines_of(text)[0].startswith("  + Servers")


def test_a_remark_is_wrapped_to_the_width():
    console, text = console_of()
    Stages(console).note("no RabbitMQ " * 30)
    assert max(map(len, lines_of(text))) <= WIDTH


def test_the_bars_end_with_the_last_state_of_everybody():
    console, text = console_of()
    with Bars(console, CUSTOMERS) as bars:
        ends = {"corvus": {End("succeeded"): 100, End("denied", "insufficient_credits"): 105}}
        bars.show(submitted=1119, logged=7, by_customer=counted(ends))
    lines = lines_of(text)
    assert any("corvus" in line and "205/205" in line and "105 denied" in line for line in lines)
    assert any("in the log" in line and "7/1119" in line for line in lines)
    assert max(map(len, lines)) <= WIDTH


def counted(ends: dict[str, dict[End, int]]) -> dict[str, Counter[End]]:
    return {customer: Counter(found) for customer, found in ends.items()}


def test_a_bars_note_leaves_out_what_there_is_none_of():
    ends = Counter({End("failed", "UnreachableError"): 3, End("succeeded"): 9})
    assert note(ends, "asks for much") == "asks for much, 3 failed"


def test_the_summary_has_exactly_the_agreed_names():
    evidence = good_evidence()
    summary = json.loads(summarise(evidence, invariants(evidence)).to_json())
    assert summary == {
        "tasks_submitted": 6,
        "tasks_succeeded": 3,
        "tasks_failed": 1,
        "tasks_denied": 2,
        "events_logged": 6,
        "credits_settled": "3",
        "credits_logged": "3",
        "credits_rolled_up": "3",
        "credits_reported": "3",
        "credits_confirmed": "3",
        "open_holds": 0,
        "duplicates": 0,
        "discrepancies": 0,
    }


def test_the_summary_counts_every_violation():
    found = [Check("a", "", ["x", "y"]), Check("b", ""), Check("c", "", ["z"])]
    assert summarise(good_evidence(), found).discrepancies == 3


def test_credits_for_machines_have_no_thousands_separator():
    assert plain_credits(1_234_500_000) == "1234.5"
    assert plain_credits(-CREDIT) == "-1"


def test_the_table_of_reports_has_the_same_figure_four_times():
    console, text = console_of()
    rows = (reported("atlas", 2 * CREDIT), reported("corvus", CREDIT, confirmed=0))
    print_delivery(console, Delivery(rows=rows, requests=2, events=1119), "a local Stripe")
    lines = lines_of(text)
    assert row(lines, "atlas") == ["atlas", "page-capture", "2", "2", "2", "2"]
    assert row(lines, "corvus") == ["corvus", "page-capture", "1", "1", "1", "0"]
    assert any("2 requests for 1,119 lines of the log" in line for line in lines)
