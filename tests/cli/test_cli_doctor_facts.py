"""The doctor on the books, the seals, the archives and this node's disk."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from commandline import Billing
from support import make_event

from billing.archive import catalog as records
from billing.archive.catalog import ArchiveState
from billing.container import Container
from billing.core.periods import month_of
from billing.health.doctor import log_findings, node_findings
from billing.health.finding import HealthFinding, Level
from billing.health.usage_rules import (
    ARCHIVED_WITHIN,
    LEFT_SECONDS,
    SEALED_WITHIN_SECONDS,
    archives,
    discrepancies,
    leased_runs,
    overdue_holds,
    seals,
    spool,
)
from billing.reconciliation.invariants import DiscrepancyKind
from billing.settings import Settings
from billing.transport.lease_wal_entry import LeaseWalEntry

OK, WARN, FAIL = Level.OK, Level.WARN, Level.FAIL


def judged(finding: HealthFinding) -> Level:
    assert finding.found
    assert bool(finding.meaning) == bool(finding.remedy) == (finding.level is not OK)
    return finding.level


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (discrepancies({}), OK),
        (discrepancies({DiscrepancyKind.SETTLED: 1, DiscrepancyKind.ROLLUP: 2}), WARN),
        (seals(None, None), OK),
        (seals(7, SEALED_WITHIN_SECONDS), OK),
        (seals(7, SEALED_WITHIN_SECONDS + 1), WARN),
        (archives(0, [], []), OK),
        (archives(2, [], ["2025-12"]), WARN),
        (archives(2, ["usage_events_2025_12.parquet"], ["2025-12"]), FAIL),
        (spool(0, 0.0), OK),
        (spool(1, LEFT_SECONDS), OK),
        (spool(1, LEFT_SECONDS + 1), WARN),
        (leased_runs(0, 0), OK),
        (leased_runs(1, 0), WARN),
        (leased_runs(1, 1), FAIL),
        (overdue_holds(0, 3, "0", leases=1), OK),
    ],
)
def test_the_verdicts(finding: HealthFinding, level: Level):
    assert judged(finding) is level


def test_what_is_open_is_told_by_kind():
    assert (
        discrepancies({DiscrepancyKind.SETTLED: 1, DiscrepancyKind.ROLLUP: 2}).found
        == "3 open: 2 rollup, 1 settled"
    )
    assert "3 open (1 leases)" in overdue_holds(0, 3, "0", leases=1).found


def examined(container: Container) -> dict[str, HealthFinding]:
    found = [*log_findings(container), *node_findings(container)]
    return {each.check: each for each in found}


@pytest.mark.postgres
@pytest.mark.redis
def test_a_discrepancy_that_was_found_is_told_until_it_is_repaired(
    billing: Billing, container: Container, acme: str, redis_client: redis.Redis
):
    container.account_loader.rebuild(acme, force=True)
    redis_client.hincrby(container.keys.account(acme), "settled", 5)
    billing.run("reconcile", code=1)
    assert examined(container)["Books"].level is WARN
    billing.run("reconcile", "--repair")
    assert examined(container)["Books"].level is OK


@pytest.mark.postgres
@pytest.mark.redis
def test_an_hour_that_nobody_sealed_is_told(billing: Billing, container: Container, acme: str):
    event = make_event(metered_at=datetime.now(UTC) - timedelta(hours=5), customer=acme)
    container.writer.write([event.to_wire()])
    # What came a moment ago to an hour of long ago is late, not forgotten.
    assert examined(container)["Seals"].level is OK
    with container.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql("UPDATE log_manifests SET logged_at = now() - interval '4 hour'")
    found = examined(container)["Seals"]
    assert found.level is WARN
    assert "an hour waits for 4.0 h" in found.found
    billing.run("seals", "now")
    assert examined(container)["Seals"].found == "newest is 1"


@pytest.mark.postgres
@pytest.mark.redis
def test_an_archive_whose_file_is_not_here_is_told(settings: Settings, tmp_path: Path):
    with Container(settings.model_copy(update={"archive_dir": tmp_path / "archive"})) as container:
        now, file = container.clock.now(), tmp_path / "archive" / "usage_events_2020_01.parquet"
        month = month_of(datetime(2020, 1, 1, tzinfo=UTC))
        with container.engine.begin() as connection:
            records.begin(connection, month, now - ARCHIVED_WITHIN - timedelta(minutes=1))
        found = examined(container)["Archives"]
        assert (found.level, found.found) == (WARN, "begun and not ended: 2020-01")
        file.parent.mkdir()
        file.write_bytes(b"12345")
        with container.engine.begin() as connection:
            records.set_state(
                connection, month, ArchiveState.DROPPED, file=file.name, file_bytes=5,
                file_sha256=b"", seals_file=file.name, seals_bytes=5, seals_sha256=b"", rows=0,
                quantity=0, amount_microcredits=0, shortfall_microcredits=0, cost_micros=0,
                seals_root=b"",
            )  # fmt: skip
        assert examined(container)["Archives"].found == "1 months"
        file.write_bytes(b"1234")
        found = examined(container)["Archives"]
        assert found.level is FAIL
        assert file.name in found.found


@pytest.mark.postgres
@pytest.mark.redis
def test_what_dead_processes_left_on_this_node_is_told(container: Container, acme: str):
    container.spool.append([make_event(customer=acme)])
    container.lease_wal.append(LeaseWalEntry(lease_id="lease:1", customer=acme).to_line())
    (spooled,) = container.spool.segments()
    (slip,) = container.lease_wal.directory.iterdir()
    long_ago = (datetime.now(UTC) - timedelta(hours=1)).timestamp()
    for path in (spooled, slip):
        os.utime(path, (long_ago, long_ago))
    found = examined(container)
    assert found["Spool of this node"].level is WARN
    # Its process lives: what it has not told yet is its own affair.
    assert found["Slips of this node"].level is OK
    container.lease_wal.close()
    assert examined(container)["Slips of this node"].found == "1 files left by dead processes"
    slip.rename(slip.with_suffix(".unreadable"))
    assert examined(container)["Slips of this node"].level is FAIL
