"""Sealing: what is logged is sealed once, whenever it comes and wherever the sealer dies."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from databases import reader_engine
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sealing import HOUR, Bench
from support import NOW, make_event, row_of

from billing.audit.month_rows import rows_of
from billing.audit.seal_chain import GENESIS, breaks_of
from billing.audit.sealer import (
    LAG,
    Sealer,
    SealingBusyError,
    read_seals,
    sealed_leaves,
)
from billing.audit.verifier import Checked
from billing.core.periods import hour_floor, month_of
from billing.core.row_hash import COLUMNS, canonical, leaf_of
from billing.postgres.engines import writer_engine
from billing.postgres.locks import AdvisoryLock, session_lock
from billing.postgres.schema import usage_events
from billing.usage_log.log_writer import LogWriter

# -- what is written down ----------------------------------------------------------------------


def test_a_leaf_covers_every_column_of_the_log():
    assert list(COLUMNS) == [column.name for column in usage_events.c]


texts = st.text(
    st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=0, max_size=20
)


@given(
    subject=st.none() | texts,
    dimensions=st.dictionaries(texts, texts, max_size=4),
    reason=texts,
    amount=st.integers(0, 2**53),
    microseconds=st.integers(0, 10**6 - 1),
)
@hypothesis_settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
def test_a_row_read_back_has_the_leaf_that_was_written_down(
    bench: Bench,
    subject: str | None,
    dimensions: dict[str, str],
    reason: str,
    amount: int,
    microseconds: int,
):
    finished = NOW + timedelta(microseconds=microseconds)
    event = make_event(
        subject=subject, dimensions=dimensions, reason=reason, amount_microcredits=amount,
        started_at=NOW, finished_at=finished,
    )  # fmt: skip
    bench.log(event)
    assert bench.verify() == []


def test_the_canonical_form_is_the_one_that_the_documentation_gives():
    event = make_event(
        metered_at=NOW, task_id="t", subject='é "\\\x1f\x7f\n\U0001f600',
        dimensions={"b": "2", "a": "1"}, started_at=NOW,
        finished_at=NOW + timedelta(microseconds=5),
    )  # fmt: skip
    text = canonical(row_of(event, b"\x01" * 16) | {"logged_at": NOW}).decode()
    assert text.startswith('{"amount_microcredits":1000000,"attempt":0,')
    assert '"dimensions":{"a":"1","b":"2"}' in text
    assert '"subject":"é \\"\\\\\\u001f\x7f\\n\U0001f600"' in text
    assert f'"finished_at":"{NOW:%Y-%m-%dT%H:%M:%S}.000005Z","form":1,' in text
    assert f'"started_at":"{NOW:%Y-%m-%dT%H:%M:%S}Z"' in text
    assert '"fingerprint":"01010101010101010101010101010101"' in text


def test_a_leaf_does_not_depend_on_the_time_zone_of_the_session(bench: Bench, database_url: str):
    bench.log_some(3)
    mark = "&" if "?" in database_url else "?"
    elsewhere = sa.create_engine(
        f"{bench.engine.url.render_as_string(hide_password=False)}{mark}"
        "options=-c%20timezone%3DAsia/Kathmandu"
    )
    with elsewhere.connect() as connection, bench.engine.connect() as other:
        month = month_of(bench.now)
        there = [leaf_of(row) for row in rows_of(connection, month)]
        here = [leaf_of(row) for row in rows_of(other, month)]
    elsewhere.dispose()
    assert there == here != []


def test_a_manifest_is_written_for_what_is_new_and_for_nothing_else(bench: Bench):
    events = bench.log_some(4)
    late = bench.at(bench.hour - 30 * HOUR)
    bodies = [event.to_wire() for event in (*events, late, late)]
    assert bench.writer.write([*bodies, b"junk"]).inserted == 1
    with bench.engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT hour, rows FROM log_manifests ORDER BY id")).all()
    assert [tuple(row) for row in rows] == [(bench.hour, 4), (hour_floor(late.metered_at), 1)]


# -- sealing -----------------------------------------------------------------------------------


def test_an_hour_is_sealed_when_it_is_over_and_once(bench: Bench):
    this_hour = hour_floor(bench.now)
    bench.log_some(3)
    bench.log(bench.at(this_hour))
    end = this_hour + HOUR + LAG
    assert [bench.seal().rows, bench.seal().rows] == [3, 0]
    assert bench.seal(end - timedelta(milliseconds=1)).seals == 0
    run = bench.seal(end)
    assert (run.seals, run.rows) == (1, 1)
    assert run.head is not None
    assert (run.head.number, run.head.hour, run.head.sealed_at) == (2, this_hour, end)
    assert bench.count("log_manifests") == 0
    assert bench.kinds() == []


def test_what_comes_late_gets_a_seal_of_its_own_for_the_same_hour(bench: Bench):
    bench.log_some(3)
    bench.seal()
    before = bench.seals()
    bench.log_some(2, task_name="late")
    bench.log_some(1, hour=bench.hour - 24 * HOUR)
    assert bench.seal().seals == 2
    seals = bench.seals()
    assert seals[:1] == before
    assert [(seal.hour, seal.rows) for seal in seals] == [
        (bench.hour, 3),
        (bench.hour - 24 * HOUR, 1),
        (bench.hour, 2),
    ]
    assert bench.kinds() == []


def test_seals_are_chained_from_the_first(bench: Bench):
    for days in range(3):
        bench.log_some(2, hour=bench.hour - days * 24 * HOUR)
        bench.seal()
    seals = bench.seals()
    assert [seal.number for seal in seals] == [1, 2, 3]
    assert [seal.previous for seal in seals] == [GENESIS, seals[0].hash, seals[1].hash]


def test_a_seal_has_its_leaves_in_the_order_of_their_ids(bench: Bench):
    events = bench.log_some(20)
    more = bench.log_some(20)
    (seal,) = [bench.seal().head]
    assert seal is not None
    with bench.engine.connect() as connection:
        (leaves,) = sealed_leaves(connection, [seal.number])
    assert [each for each, _ in leaves] == sorted(event.id.bytes for event in (*events, *more))
    assert leaves.fault(seal) is None
    assert [leaves.index_of(identifier) for identifier, _ in leaves] == list(range(40))
    assert leaves.index_of(make_event().id.bytes) is None


def test_many_rows_of_an_hour_are_sealed_in_parts(bench: Bench):
    for _ in range(5):
        bench.log_some(10)
    run = bench.seal(most_rows=25)
    assert (run.seals, run.rows) == (3, 50)
    assert [seal.rows for seal in bench.seals()] == [20, 20, 10]
    assert bench.kinds() == []


def test_a_batch_larger_than_a_seal_is_sealed_whole(bench: Bench):
    bench.log_some(10)
    assert [bench.seal(most_rows=4).seals, bench.seals()[0].rows] == [1, 10]


def test_only_one_seals_at_a_time(bench: Bench):
    bench.log_some(3)
    with session_lock(bench.engine, AdvisoryLock.SEALING) as mine:
        assert mine
        with pytest.raises(SealingBusyError):
            bench.seal()
    assert bench.seal().rows == 3


def test_sealers_at_once_seal_every_row_once(bench: Bench):
    for hours in range(8):
        bench.log_some(5, hour=bench.hour - hours * HOUR)

    def seal(_: int) -> int:
        try:
            return Sealer(bench.engine).seal(bench.now).rows
        except SealingBusyError:
            return 0

    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(seal, range(4)))
    assert sum(rows) + bench.seal().rows == 40
    assert bench.kinds() == []
    assert sum(seal.rows for seal in bench.seals()) == 40


def test_a_batch_under_way_while_its_hour_is_sealed_is_neither_lost_nor_found_fault_with(
    bench: Bench, somebody_waits: Callable[[], None]
):
    """Its logged_at is before the seal, its COMMIT after: no clock could tell that it is right."""
    bench.log_some(3)
    with ThreadPoolExecutor(1) as pool, bench.engine.connect() as holder:
        holder.execute(sa.text("SELECT FROM quota_fences WHERE customer_id = 'acme' FOR UPDATE"))
        slow = pool.submit(bench.log_some, 2, task_name="slow")
        somebody_waits()
        assert bench.seal().rows == 3
        assert bench.kinds() == []
        with bench.engine.connect() as connection:
            sealed = connection.execute(sa.text("SELECT now()")).scalar_one()
        holder.rollback()
        slow.result()
    with bench.engine.connect() as connection:
        logged = connection.execute(sa.text("SELECT max(logged_at) FROM usage_events")).scalar_one()
    assert logged < sealed
    assert bench.kinds() == []
    assert bench.seal().rows == 2
    assert bench.kinds() == []


def test_consumers_and_sealers_at_once_leave_nothing_to_find(bench: Bench, writers: Any):
    hours = [bench.hour - n * HOUR for n in range(3)]

    def write(writer: LogWriter) -> None:
        for n in range(10):
            events = [bench.at(hours[n % 3] + timedelta(seconds=k)) for k in range(20)]
            assert writer.write([event.to_wire() for event in events]).inserted == 20

    def seal(_: object) -> None:
        for _ in range(10):
            try:
                Sealer(bench.engine).seal(bench.now)
            except SealingBusyError:
                continue

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(write, writers()) for _ in range(2)]
        done += [pool.submit(seal, None)]
        checked = [bench.kinds() for _ in range(5)]
        for each in done:
            each.result()
    assert checked == [[]] * 5
    bench.seal()
    counts = Checked()
    assert bench.verify(checked=counts) == []
    assert (counts.rows, counts.waiting) == (400, 0)


# -- killed ------------------------------------------------------------------------------------

SEALER = """
import sys
from datetime import datetime
from pathlib import Path

from billing.core.failpoints import arm
from billing.postgres.engines import owner_engine
from billing.audit.sealer import Sealer

database, now, points, record = sys.argv[1:]
arm(points, Path(record))
print(Sealer(owner_engine(database)).seal(datetime.fromisoformat(now)).rows)
"""


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("seal.before_commit=1", 9),
        ("seal.before_commit=2", 6),
        ("seal.after_commit=1", 6),
        ("seal.after_commit=3", 0),
    ],
)
def test_a_sealer_killed_anywhere_is_made_up_for_by_the_next(
    bench: Bench, database_url: str, tmp_path: Path, point: str, left: int
):
    for hours in range(3):
        bench.log_some(3, hour=bench.hour - hours * HOUR)
    arguments = [database_url, bench.now.isoformat(), point, str(tmp_path / "hits")]
    killed = subprocess.run(
        [sys.executable, "-c", SEALER, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert bench.kinds() == []
    assert bench.seal().rows == left
    assert [seal.rows for seal in bench.seals()] == [3, 3, 3]
    with bench.engine.connect() as connection:
        assert list(breaks_of(read_seals(connection))) == []
    assert bench.kinds() == []


# -- who may -----------------------------------------------------------------------------------

FORBIDDEN = [
    "INSERT INTO log_seals SELECT 9, now(), now(), 1, false, '\\x01', '\\x02', '\\x03'",
    "UPDATE log_seals SET rows = 1",
    "DELETE FROM log_seals",
    "INSERT INTO log_seal_leaves VALUES (1, '\\x01', '\\x02')",
    "UPDATE log_seal_leaves SET ids = ''",
    "DELETE FROM log_seal_leaves",
    "UPDATE log_manifests SET rows = 1",
    "DELETE FROM log_manifests",
    "UPDATE log_archives SET state = 'restored'",
    "INSERT INTO log_archives (month, state, begun_at) VALUES ('2020-01-01', 'exporting', now())",
]


@pytest.mark.parametrize("statement", FORBIDDEN)
@pytest.mark.parametrize("make_engine", [writer_engine, reader_engine])
def test_neither_writer_nor_reader_may_touch_what_is_sealed(
    bench: Bench, database_url: str, make_engine: Any, statement: str
):
    bench.log_some(1)
    bench.seal()
    engine = make_engine(database_url)
    with engine.connect() as connection, pytest.raises(sa.exc.ProgrammingError, match="permission"):
        connection.execute(sa.text(statement))
    engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log_seals SET rows = 2",
        "DELETE FROM log_seals",
        "TRUNCATE log_seals CASCADE",
        "UPDATE log_seal_leaves SET hashes = ids",
        "UPDATE log_manifests SET hour = now()",
    ],
)
def test_even_the_owner_is_told_that_seals_do_not_change(bench: Bench, statement: str):
    bench.log_some(1)
    bench.seal()
    bench.log_some(1)
    with (
        bench.engine.connect() as connection,
        pytest.raises(sa.exc.ProgrammingError, match="append-only"),
    ):
        connection.execute(sa.text(statement))
