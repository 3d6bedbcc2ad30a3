"""What is only true of files: their form, and what a crash leaves behind."""

from __future__ import annotations

import csv
import json
from datetime import timedelta
from pathlib import Path

import pytest
from support import NOW

from billing.core.errors import NotFound
from billing.providers.files import COLUMNS, FileProvider
from billing.providers.port import ProviderCause, ProviderUnavailable, UsageReport

HOUR = NOW.replace(minute=0)
STEM = f"usage-{HOUR:%Y-%m-%d}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "reports"


def report(number: int) -> UsageReport:
    return UsageReport(
        identifier=f"r{number}",
        customer_ref="acme",
        meter="m",
        hour=HOUR,
        value=number,
        timestamp=HOUR + timedelta(minutes=30),
    )


def rows(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    lines = (folder / f"{STEM}.jsonl").read_text().splitlines()
    with (folder / f"{STEM}.csv").open(newline="") as file:
        return (
            [{key: str(value) for key, value in json.loads(line).items()} for line in lines],
            list(csv.DictReader(file)),
        )


def test_both_files_hold_the_same_rows_under_the_same_names(folder: Path) -> None:
    provider = FileProvider(folder)
    for number in (1, 2):
        provider.report_usage(report(number))
    from_json, from_csv = rows(folder)
    assert from_json == from_csv
    assert [row["value"] for row in from_csv] == ["1", "2"]
    assert tuple(from_csv[0]) == COLUMNS
    assert from_csv[0]["hour"] == f"{HOUR:%Y-%m-%dT%H}:00:00.000Z"


def test_an_unfinished_line_was_never_taken(folder: Path) -> None:
    FileProvider(folder).report_usage(report(1))
    with (folder / f"{STEM}.jsonl").open("a") as file:
        file.write('{"identifier":"r2","custo')
    after = FileProvider(folder)
    assert after.read_back("acme", "m", HOUR.date()) == {HOUR: 1}
    assert after.report_usage(report(2)).cause is ProviderCause.TAKEN
    from_json, from_csv = rows(folder)
    assert from_json == from_csv
    assert [row["identifier"] for row in from_json] == ["r1", "r2"]


@pytest.mark.parametrize("damage", ["missing", "short", "torn", "empty"])
def test_a_csv_file_that_a_crash_left_behind_is_made_anew(folder: Path, damage: str) -> None:
    before = FileProvider(folder)
    for number in (1, 2):
        before.report_usage(report(number))
    path = folder / f"{STEM}.csv"
    text = path.read_text()
    damaged = {"short": text[: text.index("r2")], "torn": text[:-3], "empty": ""}
    if damage == "missing":
        path.unlink()
    else:
        path.write_text(damaged[damage])
    assert FileProvider(folder).report_usage(report(3)).cause is ProviderCause.TAKEN
    from_json, from_csv = rows(folder)
    assert from_json == from_csv
    assert len(from_csv) == 3


def test_a_long_running_writer_mends_what_another_one_left_behind(folder: Path) -> None:
    staying, dying = FileProvider(folder), FileProvider(folder)
    staying.report_usage(report(1))
    path = folder / f"{STEM}.csv"
    text = path.read_text()
    dying.report_usage(report(2))
    path.write_text(text)  # as if it had died before the CSV row
    staying.report_usage(report(3))
    from_json, from_csv = rows(folder)
    assert from_json == from_csv
    assert len(from_csv) == 3


def test_a_folder_that_cannot_be_written_to_is_no_definite_answer(folder: Path) -> None:
    folder.write_text("a file is in the way")
    provider = FileProvider(folder)
    assert provider.report_usage(report(1)).cause is ProviderCause.SERVER_ERROR
    with pytest.raises(ProviderUnavailable):
        provider.read_back("acme", "m", HOUR.date())
    with pytest.raises(ProviderUnavailable):
        provider.open_invoice("key", "acme", "USD", [])


def test_an_invoices_number_cannot_lead_out_of_the_folder(folder: Path) -> None:
    provider = FileProvider(folder)
    with pytest.raises(NotFound):
        provider.finalise_invoice("../x")


def test_reading_a_day_without_usage_makes_no_file(folder: Path) -> None:
    assert FileProvider(folder).read_back("acme", "m", HOUR.date()) == {}
    assert list(folder.glob("usage-*")) == []
