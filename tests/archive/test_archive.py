"""An archived month: the same answers as before, from its files."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from archiving import LONG_AFTER, MAX_AGE, Attic, by_id
from databases import downgrade
from log_totals import totals_from_log, totals_from_rollups
from support import add_customer

from billing.archive.catalog import (
    ArchiveState,
)
from billing.archive.parquet_files import metadata_of, read_rows
from billing.archive.restorer import MonthRestorer
from billing.audit.merkle import root_of
from billing.audit.sealer import read_seals
from billing.audit.verifier import Checked
from billing.core.clock import ManualClock
from billing.core.errors import InvalidValue, NotFound
from billing.core.periods import hour_floor, month_of
from billing.core.row_hash import COLUMNS
from billing.core.usage_event import DeadReason
from billing.postgres import migrations
from billing.postgres.engines import writer_engine
from billing.postgres.partitions import ensure_partitions
from billing.usage_log.dead_letters import DeadLetters, ReplayOutcome
from billing.usage_log.log_writer import LogWriter
from billing.usage_log.usage_queries import By, UsageQueries


def test_an_archived_month_is_in_its_file_and_not_in_the_database(attic: Attic):
    attic.fill()
    before = attic.table_rows()
    archive = attic.archive()
    assert archive.state is ArchiveState.DROPPED
    assert not attic.attached()
    assert attic.table_rows() == []
    assert attic.bench.count(f"pg_class WHERE relname = '{attic.name}'") == 0
    assert by_id(read_rows(attic.rows_file)) == before
    found = [(row["customer_id"], row["id"].bytes) for row in read_rows(attic.rows_file)]
    assert found == sorted(found)
    assert sorted(each.name for each in attic.folder.iterdir()) == [
        attic.rows_file.name,
        attic.seals_file.name,
    ]


def test_the_file_says_what_it_is(attic: Attic):
    events = attic.fill()
    archive = attic.archive()
    with attic.engine.connect() as connection:
        hashes = [kept for _, kept in read_seals(connection, period=attic.month)]
    told = metadata_of(attic.rows_file)
    assert json.loads(told.pop("sums")) == {
        "quantity": len(events),
        "amount_microcredits": sum(event.amount_microcredits for event in events),
        "shortfall_microcredits": 0,
        "cost_micros": sum(event.cost_micros for event in events),
    }
    assert told == {
        "form": "1",
        "month": attic.month.label,
        "rows": str(len(events)),
        "seals": str(len(hashes)),
        "seals_root": root_of(hashes).hex(),
        "head": f"{archive.head_number} {(archive.head_hash or b'').hex()}",
    }
    assert archive.seals_root == root_of(hashes)
    file = pq.ParquetFile(attic.rows_file)
    assert {file.metadata.row_group(0).column(n).compression for n in range(27)} == {"ZSTD"}
    kinds = {field.name: str(field.type) for field in file.schema_arrow}
    assert kinds["amount_microcredits"] == "int64"
    assert kinds["logged_at"] == "timestamp[us, tz=UTC]"
    assert list(kinds) == list(COLUMNS)


def test_receipts_and_usage_of_an_archived_month_are_those_of_before(attic: Attic):
    events = attic.fill()
    before = attic.answers()
    assert len(before.lines["acme"]) > 30
    attic.archive()
    assert attic.answers() == before
    task = events[17].task_id
    assert attic.receipts.for_task(task) == []
    (line,) = attic.receipts.archived_task(task)
    assert (line.id, line.subject) == (events[17].id, events[17].subject)
    assert attic.receipts.archived_task("unknown") == []
    attic.restore()
    assert attic.answers() == before
    assert attic.receipts.for_task(task) == [line]


def test_days_that_begin_within_an_hour_are_right_in_an_archived_month(attic: Attic):
    add_customer(attic.engine, "himal", time_zone="Asia/Kathmandu")
    # Midnight there is a quarter past six in the evening.
    evening = attic.month.start + timedelta(hours=18)
    instants = [evening + timedelta(days=day, minutes=n) for day in (0, 1, 20) for n in range(30)]
    attic.bench.log(*(attic.bench.at(instant, customer="himal") for instant in instants))
    period = month_of(evening + timedelta(days=3), "Asia/Kathmandu")

    def asked() -> list[Any]:
        usage = UsageQueries(attic.engine, attic.archived_usage)
        lines = list(attic.pages("himal", period, limit=25))
        return [[usage.by("himal", period, by) for by in By], usage.total("himal", period), lines]

    before = asked()
    days = [row.totals.events for row in before[0][list(By).index(By.DAY)]]
    assert days == [15, 30, 15, 15, 15]
    assert len(before[2]) == before[1].events == 90
    attic.archive()
    assert asked() == before
    attic.restore()
    assert asked() == before


def test_rollups_stay_and_the_log_less_the_month_is_what_is_left(attic: Attic):
    attic.fill()
    with attic.engine.connect() as connection:
        rolled, logged = totals_from_rollups(connection), totals_from_log(connection)
    assert rolled == logged
    attic.archive()
    with attic.engine.connect() as connection:
        assert totals_from_rollups(connection) == rolled
        assert totals_from_log(connection)["acme"].events == 3
    attic.restore()
    with attic.engine.connect() as connection:
        assert totals_from_log(connection) == rolled


def test_an_archived_month_verifies_from_its_file(attic: Attic):
    events = attic.fill()
    attic.archive()
    assert attic.bench.count("log_seal_leaves") < attic.bench.count("log_seals")
    counts = Checked()
    assert attic.verify(counts) == []
    assert (counts.rows, counts.waiting) == (len(events), 0)
    assert counts.seals == len({hour_floor(event.metered_at) for event in events})


def test_a_restored_month_is_as_if_it_had_never_left(attic: Attic):
    attic.fill()
    before = attic.table_rows()
    leaves = attic.bench.count("log_seal_leaves")
    attic.archive()
    assert attic.restore().state is ArchiveState.RESTORED
    assert attic.attached()
    assert attic.table_rows() == before
    assert attic.bench.count("log_seal_leaves") == attic.bench.count("log_seals") > leaves
    assert attic.verify() == []
    with attic.engine.connect() as connection:
        connection.execute(sa.text("SET ROLE weighbridge_owner"))
        for statement in (f"DELETE FROM {attic.name}", f"TRUNCATE {attic.name}"):
            with pytest.raises(sa.exc.ProgrammingError, match="append-only"):
                connection.execute(sa.text(statement))
            connection.rollback()
            connection.execute(sa.text("SET ROLE weighbridge_owner"))
    checks = f"pg_constraint WHERE contype = 'c' AND conrelid = '{attic.name}'::regclass"
    assert attic.bench.count(checks) == 3
    owner = f"pg_tables WHERE tablename = '{attic.name}' AND tableowner = 'weighbridge_owner'"
    assert attic.bench.count(owner) == 1
    assert attic.restore().state is ArchiveState.RESTORED


def test_a_restored_month_can_be_archived_again_and_only_when_it_is_named(attic: Attic):
    attic.fill()
    before = attic.answers()
    attic.archive()
    attic.restore()
    now = month_of(attic.bench.now)
    assert attic.month not in attic.archiver().due(now)
    assert attic.archive().state is ArchiveState.DROPPED
    assert attic.answers() == before
    assert attic.verify() == []


def test_archiving_twice_is_archiving_once(attic: Attic):
    attic.fill()
    first = attic.archive()
    written = attic.rows_file.stat().st_mtime_ns
    assert attic.archive() == first
    assert attic.rows_file.stat().st_mtime_ns == written


def test_a_month_without_rows_is_archived_too(attic: Attic):
    assert attic.archive().state is ArchiveState.DROPPED
    assert attic.verify() == []
    assert attic.answers().lines["acme"] == []
    assert attic.restore().state is ArchiveState.RESTORED


# -- which months


def test_a_month_of_which_usage_may_still_arrive_is_refused(attic: Attic):
    attic.fill()
    young = attic.month.end + MAX_AGE
    with pytest.raises(InvalidValue, match="usage of it may still arrive"):
        attic.archiver().archive(attic.month, young)
    assert attic.state() is None
    attic.archiver().check_age(attic.month, young + timedelta(days=1))


def test_due_are_months_before_the_one_named_oldest_first(attic: Attic):
    attic.fill()
    archiver, before = attic.archiver(), month_of(attic.bench.now)
    labels = [month.label for month in archiver.due(before)]
    assert labels == sorted(labels)
    assert len(labels) == 3
    assert attic.month.label in labels
    attic.archive()
    assert attic.month not in archiver.due(before)


def test_a_month_that_is_not_there_is_named(attic: Attic):
    month = month_of(datetime(2020, 1, 5, tzinfo=UTC))
    with pytest.raises(NotFound, match="usage_events_2020_01"):
        attic.archiver().archive(month, attic.later)
    with pytest.raises(NotFound, match="2020-01"):
        MonthRestorer(attic.engine, attic.folder).restore(month, attic.later)


def test_an_archived_month_gets_no_new_partition(attic: Attic):
    attic.fill()
    attic.archive()
    far = attic.month.end + timedelta(days=40)
    with attic.engine.begin() as connection:
        assert attic.name not in ensure_partitions(connection, far)
    attic.restore()
    with attic.engine.begin() as connection:
        assert ensure_partitions(connection, far, ahead_months=0) == []


def test_usage_of_an_archived_month_that_comes_again_is_never_logged_as_new(
    attic: Attic, database_url: str
):
    events = attic.fill()
    attic.archive()
    body = events[20].to_wire()
    engine = writer_engine(database_url)

    def writer(max_age: timedelta) -> LogWriter:
        clock = ManualClock(attic.later)
        return LogWriter(
            engine, clock=clock, max_age=max_age, max_ahead=timedelta(0), currency="USD"
        )

    assert writer(MAX_AGE).write([body]).dead == {DeadReason.TOO_OLD: 1}
    # Somebody raises the age, and brings the schema up to date as the dead letter asks.
    willing = writer(2 * LONG_AFTER)
    assert willing.write([body]).dead == {DeadReason.REFUSED_BY_DATABASE: 1}
    letters = DeadLetters(attic.engine)
    (letter,) = letters.list(DeadReason.REFUSED_BY_DATABASE)
    assert "billing restore" in letter.detail
    with attic.engine.begin() as connection:
        ensure_partitions(connection, attic.later, back_months=12)
    (result,) = letters.replay(DeadReason.REFUSED_BY_DATABASE, willing)
    assert result.outcome is ReplayOutcome.STILL_DEAD
    attic.restore()
    (result,) = letters.replay(DeadReason.REFUSED_BY_DATABASE, willing)
    assert result.outcome is not ReplayOutcome.STILL_DEAD
    assert len(attic.table_rows()) == len(events)
    engine.dispose()


# -- the schema


def test_the_schema_is_not_taken_back_while_months_are_in_archives(attic: Attic, database_url: str):
    attic.fill()
    attic.archive()
    with pytest.raises(sa.exc.DBAPIError, match="would be forgotten") as caught:
        downgrade(database_url, "0004")
    assert isinstance(caught.value.orig, psycopg.errors.ObjectNotInPrerequisiteState)
    attic.restore()
    downgrade(database_url, "0004")
    assert migrations.current(database_url) == "0004"


def test_a_file_of_plain_arrow_tools_is_readable(attic: Attic):
    """Whoever has only the file and any Parquet reader has the rows."""
    events = attic.fill()
    attic.archive()
    table = pq.read_table(attic.rows_file)
    assert table.num_rows == len(events)
    assert sum(table.column("amount_microcredits").to_pylist()) == sum(
        event.amount_microcredits for event in events
    )
    assert table.schema.field("id").type == pa.uuid()
