"""The doctor's verdicts, as tables."""

from __future__ import annotations

import pytest

from billing.health import rules, usage_rules
from billing.health.finding import HealthFinding, Level, worst

OK, WARN, FAIL = Level.OK, Level.WARN, Level.FAIL


def judged(finding: HealthFinding) -> Level:
    """The level, after checking that a fault says what it means and what to do."""
    assert bool(finding.meaning) == bool(finding.remedy) == (finding.level is not OK)
    assert finding.check
    assert finding.found
    return finding.level


@pytest.mark.parametrize(
    ("name", "version", "latency_ms", "level"),
    [
        ("PostgreSQL", "15.14 (Debian 15.14-0+deb12u1)", 0.2, OK),
        ("PostgreSQL", "18.6", 0.2, OK),
        ("PostgreSQL", "14.20", 0.2, FAIL),
        ("PostgreSQL", "19beta1", 0.2, OK),
        ("Redis", "7.0.15", 0.1, OK),
        ("Redis", "6.2.14", 0.1, FAIL),
        ("Redis", "8.2.1", 50.0, OK),
        ("Redis", "8.2.1", 50.1, WARN),
        ("Valkey", "9.1.2", 0.1, OK),
        ("Valkey", "7.2.4", 0.1, FAIL),
        ("RabbitMQ", "3.10.8", 1.0, OK),
        ("RabbitMQ", "3.9.29", 1.0, FAIL),
        ("RabbitMQ", "4.2.0", 1.0, OK),
    ],
)
def test_a_server_is_new_enough_and_near_enough(
    name: str, version: str, latency_ms: float, level: Level
):
    finding = rules.server(name, version, latency_ms)
    assert judged(finding) is level
    assert version in finding.found


@pytest.mark.parametrize("server", ["PostgreSQL", "Redis", "RabbitMQ"])
def test_a_server_that_does_not_answer_fails_and_names_its_setting(server: str):
    finding = rules.unreachable(server, "SOME_URL", "connection refused")
    assert judged(finding) is FAIL
    assert "SOME_URL" in finding.remedy
    assert "connection refused" in finding.found


@pytest.mark.parametrize(
    ("policy", "level"), [("noeviction", OK), ("allkeys-lru", FAIL), ("volatile-ttl", FAIL)]
)
def test_redis_must_not_evict(policy: str, level: Level):
    assert judged(rules.eviction(policy)) is level


@pytest.mark.parametrize(
    ("append_only", "snapshots", "last_write_ok", "level"),
    [
        (True, "", True, OK),
        (True, "3600 1", True, OK),
        (False, "3600 1", True, WARN),
        (False, "", True, WARN),
        (True, "", False, FAIL),
    ],
)
def test_redis_should_keep_an_append_only_file(
    append_only: bool, snapshots: str, last_write_ok: bool, level: Level
):
    finding = rules.persistence(
        append_only=append_only, fsync="everysec", snapshots=snapshots, last_write_ok=last_write_ok
    )
    assert judged(finding) is level


@pytest.mark.parametrize(
    ("others", "level"),
    [
        ([], OK),
        ([("result backend", "h:1/1")], OK),
        ([("result backend", "")], OK),
        ([("result backend", "h:1/0")], FAIL),
        ([("result backend", "h:1/1"), ("broker", "h:1/0")], FAIL),
    ],
)
def test_balances_have_a_redis_database_of_their_own(others: list[tuple[str, str]], level: Level):
    assert judged(rules.databases("h:1/0", others)) is level


@pytest.mark.parametrize(
    ("current", "level"), [("0002", OK), ("0001", FAIL), (None, FAIL), ("9999", FAIL)]
)
def test_the_schema_is_at_its_newest(current: str | None, level: Level):
    assert judged(rules.schema(current, "0002")) is level


@pytest.mark.parametrize(
    ("missing", "level"),
    [
        ([], OK),
        (["2027-02"], WARN),
        (["2027-01", "2027-02"], WARN),
        (["2026-11", "2026-12", "2027-01", "2027-02"], FAIL),
        (["2026-11"], FAIL),
    ],
)
def test_the_log_has_somewhere_to_write(missing: list[str], level: Level):
    assert judged(rules.partitions(missing, 3, this_month="2026-11")) is level


@pytest.mark.parametrize(
    ("missing", "superuser", "level"),
    [(set(), False, OK), (set(), True, WARN), ({"weighbridge_writer"}, False, FAIL)],
)
def test_the_roles_are_there_and_the_login_is_no_superuser(
    missing: set[str], superuser: bool, level: Level
):
    assert judged(rules.roles(missing, superuser=superuser)) is level


@pytest.mark.parametrize(
    ("depth", "consumers", "level"),
    [
        (None, None, WARN),
        (0, 1, OK),
        (100_000, 2, OK),
        (100_001, 2, WARN),
        (0, 0, WARN),
        (1, 0, FAIL),
        (5, None, OK),
        (100_001, None, WARN),
    ],
)
def test_the_usage_queue_is_read(depth: int | None, consumers: int | None, level: Level):
    assert judged(rules.queue("usage.log", depth=depth, consumers=consumers)) is level


@pytest.mark.parametrize(
    ("open_letters", "in_broker", "level"),
    [(0, None, OK), (0, 0, OK), (1, None, WARN), (0, 3, WARN), (2, 3, WARN)],
)
def test_open_dead_letters_are_a_warning(open_letters: int, in_broker: int | None, level: Level):
    assert judged(usage_rules.dead_letters(open_letters, in_broker)) is level


@pytest.mark.parametrize(
    ("length", "oldest_seconds", "unreadable", "level"),
    [
        (0, None, 0, OK),
        (5000, 59.0, 0, OK),
        (1, 61.0, 0, WARN),
        (1, 3601.0, 0, FAIL),
        (0, None, 1, FAIL),
        (1, -5.0, 0, OK),
    ],
)
def test_the_outbox_is_drained(
    length: int, oldest_seconds: float | None, unreadable: int, level: Level
):
    assert judged(usage_rules.outbox(length, oldest_seconds, unreadable)) is level


@pytest.mark.parametrize(("overdue", "level"), [(0, OK), (1, WARN)])
def test_holds_do_not_outlive_their_time(overdue: int, level: Level):
    assert judged(usage_rules.overdue_holds(overdue, 5, "12.5")) is level


@pytest.mark.parametrize(
    ("seconds", "level"),
    [(0.0, OK), (0.999, OK), (-0.999, OK), (1.0, WARN), (-60.0, WARN), (60.1, FAIL), (-61, FAIL)],
)
def test_clocks_agree(seconds: float, level: Level):
    assert judged(rules.skew("Redis", seconds)) is level


@pytest.mark.parametrize(
    ("levels", "expected"),
    [([], OK), ([OK], OK), ([OK, WARN], WARN), ([WARN, FAIL, OK], FAIL), ([FAIL], FAIL)],
)
def test_the_worst_finding_decides(levels: list[Level], expected: Level):
    findings = [HealthFinding(check="c", level=level, found="f") for level in levels]
    assert worst(findings) is expected
