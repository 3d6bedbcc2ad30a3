"""Archiving killed anywhere: the same answers at every moment, and nothing is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from archiving import Attic, by_id, holding
from support import eventually

from billing.archive.catalog import (
    ArchiveState,
    ArchivingBusyError,
)
from billing.archive.parquet_files import read_rows
from billing.audit.verification_report import FindingKind
from billing.postgres import partition_detaching as detaching
from billing.postgres.locks import AdvisoryLock, session_lock

PROGRAM = """
import sys
from datetime import datetime, timedelta
from pathlib import Path

from billing.core.failpoints import arm
from billing.core.periods import month_labelled
from billing.archive.exporter import MonthExporter
from billing.postgres.engines import owner_engine
from billing.archive.restorer import MonthRestorer
from billing.audit.sealer import Sealer

verb, database, folder, label, now, points, record = sys.argv[1:]
arm(points, Path(record))
engine = owner_engine(database)
now, month = datetime.fromisoformat(now), month_labelled(label)
if verb == "archive":
    archiver = MonthExporter(
        engine, Path(folder), sealer=Sealer(engine), max_age=timedelta(days=90)
    )
    print(archiver.archive(month, now).state.value)
else:
    print(MonthRestorer(engine, Path(folder)).restore(month, now).state.value)
"""


def run(
    attic: Attic, verb: str, database_url: str, points: str, record: Path
) -> subprocess.CompletedProcess[str]:
    arguments = [verb, database_url, str(attic.folder), attic.month.label]
    arguments += [attic.later.isoformat(), points, str(record)]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


ARCHIVE_POINTS = {
    "seal.after_commit=7": None,
    "archive.after_begin": "exporting",
    "archive.after_rows": "exporting",
    "archive.after_rename": "exporting",
    "archive.after_export": "exported",
    "archive.after_verify": "verified",
    "archive.before_detached": "verified",
    "archive.after_detached": "detached",
    "archive.before_drop": "detached",
    "archive.after_drop": "dropped",
}


@pytest.mark.parametrize("point", ARCHIVE_POINTS)
def test_an_archive_killed_anywhere_goes_on_and_loses_nothing(
    attic: Attic, database_url: str, tmp_path: Path, point: str
):
    attic.fill()
    rows, before = attic.table_rows(), attic.answers()
    points = point if "=" in point else f"{point}=1"
    killed = run(attic, "archive", database_url, points, tmp_path / "hits")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert attic.state() == ARCHIVE_POINTS[point]
    # As it was left, nobody sees a difference.
    assert attic.answers() == before
    assert {finding.kind for finding in attic.verify()} <= {FindingKind.UNSEALED}
    again = run(attic, "archive", database_url, points, tmp_path / "hits")
    assert (again.stdout.strip(), again.returncode) == ("dropped", 0), again.stderr
    assert by_id(read_rows(attic.rows_file)) == rows
    assert attic.answers() == before
    assert attic.verify() == []
    attic.restore()
    assert attic.table_rows() == rows


@pytest.mark.parametrize("point", [point for point in ARCHIVE_POINTS if "seal" not in point])
def test_an_archive_killed_anywhere_can_be_given_up_instead(
    attic: Attic, database_url: str, tmp_path: Path, point: str
):
    attic.fill()
    rows, before = attic.table_rows(), attic.answers()
    killed = run(attic, "archive", database_url, f"{point}=1", tmp_path / "hits")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    attic.restore()
    assert attic.attached()
    assert attic.table_rows() == rows
    assert attic.answers() == before
    assert attic.verify() == []
    attic.archive()
    assert attic.answers() == before


@pytest.mark.parametrize(
    ("point", "state"),
    [
        ("restore.after_load", "dropped"),
        ("restore.before_commit", "dropped"),
        ("restore.after_commit", "restored"),
    ],
)
def test_a_restore_killed_anywhere_has_happened_or_has_not(
    attic: Attic, database_url: str, tmp_path: Path, point: str, state: str
):
    attic.fill()
    rows, before = attic.table_rows(), attic.answers()
    attic.archive()
    killed = run(attic, "restore", database_url, f"{point}=1", tmp_path / "hits")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    eventually(lambda: attic.state() == state)
    assert attic.answers() == before
    assert attic.verify() == []
    again = run(attic, "restore", database_url, f"{point}=1", tmp_path / "hits")
    assert (again.stdout.strip(), again.returncode) == ("restored", 0), again.stderr
    assert attic.table_rows() == rows
    assert attic.answers() == before
    assert attic.verify() == []


def test_a_detach_cut_off_between_its_two_transactions_is_finished(attic: Attic):
    attic.fill()
    before = attic.answers()
    with ThreadPoolExecutor(1) as pool:
        with holding(attic.engine, f"SELECT count(*) FROM {attic.name}"):
            # It waits for that reader, and then its connection is cut.
            archiving = pool.submit(attic.archive)
            eventually(lambda: _waits_to_detach(attic.engine), timeout=30)
            attic.bench.tamper(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE query LIKE 'ALTER TABLE usage_events DETACH%' AND state = 'active'"
            )
        with pytest.raises(sa.exc.OperationalError):
            archiving.result()
    with attic.engine.connect() as connection:
        assert detaching._pending(connection, attic.month) is True
    assert attic.state() == "verified"
    assert attic.answers() == before
    assert attic.archive().state is ArchiveState.DROPPED
    assert attic.answers() == before


def _waits_to_detach(engine: sa.Engine) -> bool:
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE usage_events DETACH%'"
        " AND wait_event_type = 'Lock'"
    )
    with engine.connect() as connection:
        return bool(connection.execute(sa.text(query)).scalar_one())


def test_writers_and_readers_are_not_held_up_by_a_detach(attic: Attic):
    attic.fill()
    with ThreadPoolExecutor(1) as pool:
        with holding(attic.engine, "SELECT count(*) FROM usage_events"):
            archiving = pool.submit(attic.archive)
            eventually(lambda: _waits_to_detach(attic.engine), timeout=30)
            # While it waits, usage is logged and receipts are read.
            attic.bench.log_some(2)
            assert len(attic.answers().lines["acme"]) > 30
        assert archiving.result().state is ArchiveState.DROPPED


def test_receipts_asked_while_a_month_leaves_and_comes_back_are_always_whole(attic: Attic):
    attic.fill()
    before = attic.answers()
    seen: list[bool] = []
    with ThreadPoolExecutor(1) as pool:
        # As often as it takes: on a busy machine one may be over before two questions are.
        for move in (attic.archive, attic.restore) * 20:
            moving = pool.submit(move)
            while not moving.done():
                seen.append(attic.answers() == before)
            moved = moving.result()
            assert move == attic.restore or moved.state is ArchiveState.DROPPED
            if len(seen) >= 10 and move == attic.restore:
                break
    assert len(seen) >= 10
    assert all(seen)


def test_only_one_archives_at_a_time(attic: Attic):
    attic.fill()
    with session_lock(attic.engine, AdvisoryLock.ARCHIVING):
        with pytest.raises(ArchivingBusyError):
            attic.archive()
        with pytest.raises(ArchivingBusyError):
            attic.restore()
    assert attic.archive().state is ArchiveState.DROPPED
