"""An archive that is not what was sealed, or files that are not what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from archiving import Attic, by_id

from billing.archive.catalog import (
    ArchiveRefusedError,
    ArchiveState,
    archive_of,
)
from billing.archive.parquet_files import RowsFile, read_rows
from billing.audit.verification_report import FindingKind
from billing.core.errors import NotFound
from billing.core.event_ids import event_id


def test_a_month_that_is_not_what_was_sealed_is_refused(attic: Attic):
    events = attic.fill()
    attic.bench.seal()
    attic.bench.change(events[8].id, "amount_microcredits", 999)
    with pytest.raises(ArchiveRefusedError, match="--despite-findings"):
        attic.archive()
    assert attic.state() is None
    assert attic.archive(despite_findings=True).state is ArchiveState.DROPPED
    (finding,) = attic.verify()
    assert (finding.kind, finding.event_id) == (FindingKind.CHANGED, events[8].id)
    assert finding.amount_microcredits == 999
    with pytest.raises(ArchiveRefusedError, match="not what was sealed"):
        attic.restore()
    assert attic.state() == "dropped"
    attic.restore(despite_findings=True)
    (finding,) = attic.verify()
    assert finding.event_id == events[8].id


def test_a_removed_and_an_added_row_stay_findings_of_the_archive(attic: Attic):
    events = attic.fill()
    attic.bench.seal()
    false = event_id("false", "page-capture", events[4].metered_at)
    attic.bench.forge(events[4].id, false)
    attic.bench.remove(events[9].id)
    attic.archive(despite_findings=True)
    found = {(finding.kind, finding.event_id) for finding in attic.verify()}
    assert found == {(FindingKind.ADDED, false), (FindingKind.REMOVED, events[9].id)}


def rewritten(attic: Attic, change: Any) -> None:
    """The archive's rows written anew by somebody who knows the format, and the database told."""
    rows = [row for each in read_rows(attic.rows_file) if (row := change(each))]
    with RowsFile(attic.rows_file) as file:
        for row in rows:
            file.write(row)
        file.finish({})


def test_a_row_changed_in_the_file_is_named(attic: Attic):
    events = attic.fill()
    attic.archive()
    rewritten(
        attic,
        lambda row: {**row, "amount_microcredits": 7} if row["id"] == events[8].id else row,
    )
    found = attic.verify()
    assert [finding.kind for finding in found] == [FindingKind.CHAIN_BROKEN, FindingKind.CHANGED]
    assert "not the one that was written" in found[0].words
    assert (found[1].event_id, found[1].amount_microcredits) == (events[8].id, 7)
    assert "+0.000001 credits" in found[1].money


def test_a_row_removed_from_the_file_is_named(attic: Attic):
    events = attic.fill()
    attic.archive()
    rewritten(attic, lambda row: None if row["id"] == events[8].id else row)
    found = attic.verify()
    assert [finding.kind for finding in found] == [FindingKind.CHAIN_BROKEN, FindingKind.REMOVED]
    assert found[1].event_id == events[8].id


def flipped(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("which", ["rows_file", "seals_file"])
@pytest.mark.parametrize("at", [0.1, 0.5, 0.95])
def test_a_flipped_byte_of_a_file_is_found(attic: Attic, which: str, at: float):
    attic.fill()
    attic.archive()
    flipped(getattr(attic, which), at)
    found = attic.verify()
    assert FindingKind.CHAIN_BROKEN in {finding.kind for finding in found}
    assert any(getattr(attic, which).name in finding.words for finding in found)


def test_a_file_that_is_not_there_is_told_with_the_remedy(attic: Attic):
    attic.fill()
    attic.archive()
    attic.rows_file.unlink()
    assert any("is not there" in finding.words for finding in attic.verify())
    with pytest.raises(NotFound, match="WEIGHBRIDGE_ARCHIVE_DIR"):
        attic.receipts.lines("acme", attic.month)
    with pytest.raises(NotFound, match="WEIGHBRIDGE_ARCHIVE_DIR"):
        attic.restore()


def test_a_table_made_for_an_archived_month_is_found(attic: Attic):
    attic.fill()
    attic.archive()
    attic.bench.tamper(f"CREATE TABLE {attic.name} (LIKE usage_events)")
    assert any("although its month was archived" in finding.words for finding in attic.verify())


def stopped_at(attic: Attic, state: ArchiveState) -> None:
    """Archive up to a state, as a killed run leaves it."""
    archiver = attic.archiver()
    archiver._begin(attic.month, attic.later, despite_findings=False)
    steps = {
        ArchiveState.EXPORTED: lambda a: archiver._export(a, ArchiveState.EXPORTED),
        ArchiveState.VERIFIED: lambda a: archiver._read_back(
            a, attic.later, ArchiveState.VERIFIED, despite_findings=False
        ),
        ArchiveState.DETACHED: archiver._detach,
    }
    for reached, step in steps.items():
        if attic.state() != state.value:
            with attic.engine.connect() as connection:
                archive = archive_of(connection, attic.month)
            assert archive is not None
            step(archive)
            assert attic.state() == reached.value
    assert attic.state() == state.value


@pytest.mark.parametrize("harm", ["unlink", "flip"])
@pytest.mark.parametrize("which", ["rows_file", "seals_file"])
def test_files_lost_before_the_drop_are_written_again(attic: Attic, which: str, harm: str):
    attic.fill()
    rows, before = attic.table_rows(), attic.answers()
    stopped_at(attic, ArchiveState.DETACHED)
    path = getattr(attic, which)
    path.unlink() if harm == "unlink" else flipped(path, 0.4)
    assert attic.archive().state is ArchiveState.DROPPED
    assert by_id(read_rows(attic.rows_file)) == rows
    assert attic.answers() == before
    assert attic.verify() == []


@pytest.mark.parametrize("harm", ["unlink", "flip"])
@pytest.mark.parametrize("which", ["rows_file", "seals_file"])
def test_files_that_are_not_what_was_exported_are_not_relied_on(
    attic: Attic, which: str, harm: str
):
    attic.fill()
    rows = attic.table_rows()
    stopped_at(attic, ArchiveState.EXPORTED)
    path = getattr(attic, which)
    path.unlink() if harm == "unlink" else flipped(path, 0.4)
    with pytest.raises(ArchiveRefusedError, match="run it again"):
        attic.archive()
    assert attic.table_rows() == rows
    assert attic.archive().state is ArchiveState.DROPPED
    assert by_id(read_rows(attic.rows_file)) == rows


@pytest.mark.parametrize(
    "harm",
    ["DELETE FROM {table} WHERE id = :id", "UPDATE {table} SET cost_micros = 9 WHERE id = :id"],
)
def test_a_table_that_changed_before_the_drop_is_kept(attic: Attic, harm: str):
    events = attic.fill()
    stopped_at(attic, ArchiveState.DETACHED)
    attic.bench.tamper(harm.format(table=attic.name), id=events[7].id)
    with pytest.raises(ArchiveRefusedError, match="the table was kept"):
        attic.archive()
    assert attic.bench.count(f"pg_class WHERE relname = '{attic.name}'") == 1
    assert attic.state() == "detached"
    attic.restore()
    assert [finding.event_id for finding in attic.verify()] == [events[7].id]


def test_a_month_with_late_rows_is_sealed_before_it_leaves(attic: Attic):
    attic.fill()
    assert attic.bench.count("log_seals") == 0
    attic.archive()
    assert attic.bench.count("log_manifests") == 0
    assert attic.verify() == []
