"""Usage and receipts: what is asked of the rollups and of the log."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from log_totals import totals_from_log, totals_from_rollups
from sqlalchemy.dialects import postgresql
from support import NOW, add_customer, make_event

from billing.core.errors import NotFound
from billing.core.event_ids import lowest_id
from billing.core.periods import Period, month_of, zone
from billing.core.usage_event import FIELDS, Outcome, UsageEvent, denied_line
from billing.postgres.partitions import partition_name
from billing.usage_log.log_writer import LogWriter
from billing.usage_log.receipts import Receipts, page_query
from billing.usage_log.totals import Totals
from billing.usage_log.usage_queries import By, UsageQueries

MONTH = month_of(NOW)


def log(writer: LogWriter, *events: UsageEvent) -> None:
    assert writer.write([event.to_wire() for event in events]).inserted == len(events)


def at(instant: datetime, **fields: Any) -> UsageEvent:
    return make_event(metered_at=instant, started_at=None, finished_at=None, **fields)


def test_usage_by_sku_adds_up_everything_of_the_period_and_nothing_else(
    writer: LogWriter, engine: sa.Engine
) -> None:
    log(
        writer,
        at(MONTH.start, amount_microcredits=1, cost_micros=10, quantity=3),
        at(MONTH.start + timedelta(hours=5), amount_microcredits=2, shortfall_microcredits=7),
        at(NOW, sku="deep-search", amount_microcredits=4),
        at(MONTH.start - timedelta(milliseconds=1), amount_microcredits=8),
        at(NOW, customer="globex", amount_microcredits=16),
    )
    rows = UsageQueries(engine).by("acme", MONTH, By.SKU)
    assert [(row.key, row.reason) for row in rows] == [("deep-search", ""), ("page-capture", "")]
    assert rows[1].totals == Totals(2, 4, 3, 7, 10)
    assert UsageQueries(engine).total("acme", MONTH) == Totals(3, 5, 7, 7, 10)


def test_usage_by_status_gives_denials_by_reason(writer: LogWriter, engine: sa.Engine) -> None:
    denials = [
        at(
            NOW,
            outcome=Outcome.DENIED,
            line=denied_line("page-capture", reason),
            reason=reason,
            amount_microcredits=0,
            quantity=0,
        )
        for reason in ("budget_exceeded", "budget_exceeded", "customer_suspended")
    ]
    log(writer, at(NOW), *denials)
    rows = UsageQueries(engine).by("acme", MONTH, By.STATUS)
    assert [(row.key, row.reason, row.totals.events) for row in rows] == [
        ("denied", "budget_exceeded", 2),
        ("denied", "customer_suspended", 1),
        ("succeeded", "", 1),
    ]


def test_usage_by_hour_names_utc_hours(writer: LogWriter, engine: sa.Engine) -> None:
    log(writer, at(MONTH.start), at(MONTH.start + timedelta(minutes=59)), at(NOW))
    rows = UsageQueries(engine).by("acme", MONTH, By.HOUR)
    assert [(row.key, row.totals.events) for row in rows] == [
        (f"{MONTH.start:%Y-%m-%dT%H}:00:00Z", 2),
        (f"{NOW:%Y-%m-%dT%H}:00:00Z", 1),
    ]


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu"]


def test_days_months_and_hours_are_exact_in_every_zone(
    writer: LogWriter, engine: sa.Engine
) -> None:
    for time_zone in ZONES:
        customer = time_zone.replace("/", "-")
        add_customer(engine, customer, time_zone=time_zone)
        events = around_the_edges(customer, month_of(NOW, time_zone))
        log(writer, *events)
        check_questions(UsageQueries(engine), customer, time_zone, events)


def around_the_edges(customer: str, month: Period) -> list[UsageEvent]:
    """Events just before, at and after edges of the month and of days, and at random between."""
    rng = random.Random(customer)
    edges = [month.start, month.end]
    edges += [month.start + timedelta(days=day) for day in (1, 4, 9)]
    instants = [edge + timedelta(milliseconds=step) for edge in edges for step in (-1, 0, 1)]
    instants += [month.start + timedelta(minutes=rng.randrange(60 * 24 * 9)) for _ in range(60)]
    past = [instant for instant in instants if instant <= NOW]
    return [at(when, customer=customer, amount_microcredits=n) for n, when in enumerate(past)]


def check_questions(
    usage: UsageQueries, customer: str, time_zone: str, events: list[UsageEvent]
) -> None:
    month, where = month_of(NOW, time_zone), zone(time_zone)
    inside = [event for event in events if event.metered_at in month]

    def expected(key: Callable[[UsageEvent], str]) -> dict[str, int]:
        sums: dict[str, int] = {}
        for event in inside:
            sums[key(event)] = sums.get(key(event), 0) + event.amount_microcredits
        return sums

    def found(by: By) -> dict[str, int]:
        rows = usage.by(customer, month, by)
        return {row.key: row.totals.amount_microcredits for row in rows}

    assert found(By.DAY) == expected(lambda e: e.metered_at.astimezone(where).date().isoformat())
    assert found(By.HOUR) == expected(lambda e: f"{e.metered_at:%Y-%m-%dT%H}:00:00Z")
    assert found(By.SKU) == expected(lambda e: e.sku)
    total = usage.total(customer, month)
    assert (total.events, total.amount_microcredits) == (
        len(inside),
        sum(event.amount_microcredits for event in inside),
    )


def test_a_day_with_a_change_of_clocks_is_one_day(writer: LogWriter, engine: sa.Engine) -> None:
    # 2026-11-01 in New York has 25 hours; the log itself accepts only recent events.
    add_customer(engine, "traveller", time_zone="America/New_York")
    start = datetime(2026, 11, 1, 4, tzinfo=UTC)
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO usage_hourly SELECT 'traveller', :start + n * interval '1 hour', 's',"
                " 'succeeded', '', 1, 1, 1, 0, 0 FROM generate_series(0, 25) AS n"
            ),
            {"start": start},
        )
    period = Period("two days", start, start + timedelta(hours=26))
    rows = UsageQueries(engine).by("traveller", period, By.DAY)
    assert [(row.key, row.totals.events) for row in rows] == [("2026-11-01", 25), ("2026-11-02", 1)]
    del writer


def test_usage_of_nobody_is_not_found(writer: LogWriter, engine: sa.Engine) -> None:
    del writer
    with pytest.raises(NotFound, match="nobody"):
        UsageQueries(engine).by("nobody", MONTH, By.SKU)


def test_whole_hours_are_answered_without_the_log(writer: LogWriter, engine: sa.Engine) -> None:
    log(writer, at(NOW))
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE usage_events DISABLE TRIGGER USER"))
        connection.execute(sa.text("DELETE FROM usage_events"))
    assert UsageQueries(engine).total("acme", MONTH).events == 1


def test_distinct_subjects_are_counted_per_sku_and_utc_month(
    writer: LogWriter, engine: sa.Engine
) -> None:
    log(
        writer,
        at(NOW, subject="a"),
        at(NOW, subject="a"),
        at(NOW, subject="b"),
        at(NOW, subject=None),
        at(NOW, subject="a", sku="deep-search"),
        at(MONTH.start - timedelta(days=1), subject="c"),
        at(NOW, subject="free", outcome=Outcome.FAILED, amount_microcredits=0),
        at(NOW, subject="charged", outcome=Outcome.FAILED, amount_microcredits=1),
    )
    assert UsageQueries(engine).subjects("acme", NOW.date()) == {
        "deep-search": 1,
        "page-capture": 3,
    }
    before = (MONTH.start - timedelta(days=1)).date()
    assert UsageQueries(engine).subjects("acme", before) == {"page-capture": 1}
    assert UsageQueries(engine).subjects("acme", date(2020, 1, 1)) == {}


def test_totals_from_log_and_rollups_agree_and_are_integers(
    writer: LogWriter, engine: sa.Engine
) -> None:
    log(writer, *(at(NOW, amount_microcredits=2**53, quantity=2**53) for _ in range(3)))
    with engine.connect() as connection:
        assert totals_from_log(connection) == totals_from_rollups(connection)
        totals = totals_from_log(connection)["acme"]
    assert totals == Totals(3, 3 * 2**53, 3 * 2**53, 0, 0)
    assert all(type(getattr(totals, name)) is int for name in Totals.__dataclass_fields__)


def test_a_disagreement_of_rollups_shows_in_the_totals(
    writer: LogWriter, engine: sa.Engine
) -> None:
    log(writer, at(NOW))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE usage_hourly SET quantity = quantity + 1"))
        assert totals_from_log(connection) != totals_from_rollups(connection)


def test_pages_of_a_receipt_are_every_line_once_in_order(
    writer: LogWriter, engine: sa.Engine
) -> None:
    events = [at(MONTH.start + timedelta(minutes=n // 2)) for n in range(25)]
    other = at(NOW, customer="globex")
    log(writer, *events, other, at(MONTH.start - timedelta(milliseconds=1)))
    receipts = Receipts(engine)
    pages, after = [], None
    while page := receipts.lines("acme", MONTH, after_id=after, limit=10):
        pages.append(page)
        after = page[-1].id
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [line.id for page in pages for line in page] == sorted(event.id for event in events)
    assert receipts.totals("acme", MONTH).events == 25


def test_a_receipt_line_says_all_that_the_event_said(writer: LogWriter, engine: sa.Engine) -> None:
    event = make_event(subject="s", dimensions={"a": "b"}, group_id="g", cost_micros=5)
    log(writer, event)
    (line,) = Receipts(engine).lines("acme", MONTH)
    for name in FIELDS:
        assert getattr(line, name) == getattr(event, name), name
    assert line.metered_at == event.metered_at


def test_every_line_of_a_task_is_found_whatever_its_month(
    writer: LogWriter, engine: sa.Engine
) -> None:
    before = MONTH.start - timedelta(days=20)
    denied = at(
        before,
        task_id="t",
        line=denied_line("page-capture", "x"),
        outcome=Outcome.DENIED,
        amount_microcredits=0,
    )
    done = at(NOW, task_id="t")
    log(writer, denied)
    log(writer, done, at(NOW, task_id="u"))
    assert [line.id for line in Receipts(engine).for_task("t")] == [denied.id, done.id]
    assert Receipts(engine).for_task("nothing") == []


def test_the_latest_lines_come_newest_first(writer: LogWriter, engine: sa.Engine) -> None:
    events = [at(NOW - timedelta(days=10 * n)) for n in range(4)]
    log(writer, *events)
    latest = Receipts(engine).latest("acme", limit=3)
    assert [line.id for line in latest] == [event.id for event in events[:3]]


def plan(connection: sa.Connection, after_id: UUID | None) -> str:
    query = page_query("acme", MONTH, after_id=after_id, limit=10)
    rendered = query.compile(
        dialect=postgresql.dialect(),  # type: ignore[no-untyped-call]  # SQLAlchemy's own
        compile_kwargs={"literal_binds": True},
    )
    return "\n".join(connection.execute(sa.text(f"EXPLAIN {rendered}")).scalars())


@pytest.mark.parametrize("after_id", [None, lowest_id(NOW)])
def test_a_page_reads_one_months_partition_and_no_other(
    after_id: UUID | None, writer: LogWriter, engine: sa.Engine
) -> None:
    log(writer, at(NOW))
    with engine.connect() as connection:
        explained = plan(connection, after_id)
    assert partition_name(NOW) in explained
    assert explained.count("usage_events_2") == explained.count(partition_name(NOW))


def test_the_query_as_it_is_sent_prunes_too_even_when_prepared(
    writer: LogWriter, engine: sa.Engine
) -> None:
    log(writer, at(NOW))
    scanned = sa.text(
        "SELECT relname FROM pg_stat_xact_user_tables"
        " WHERE relname LIKE 'usage_events_2%'"
        " AND coalesce(idx_scan, 0) + coalesce(seq_scan, 0) > 0"
    )
    with engine.connect() as connection:
        connection.execute(sa.text("SET plan_cache_mode = force_generic_plan"))
        for _ in range(8):
            rows = connection.execute(page_query("acme", MONTH, after_id=None, limit=10)).all()
            assert len(rows) == 1
        assert connection.execute(scanned).scalars().all() == [partition_name(NOW)]
