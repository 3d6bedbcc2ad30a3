"""One transaction per batch: what is new is logged once, the rest is kept with its reason."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta

import orjson
import pytest
import sqlalchemy as sa
from support import NOW, add_customer, add_sku, make_event

from billing.core.clock import ManualClock, format_instant
from billing.core.event_ids import event_id
from billing.core.usage_event import DeadReason, Outcome, UsageEvent, denied_line
from billing.usage_log.dead_letters import DeadLetters, ReplayOutcome
from billing.usage_log.log_writer import BatchResult, LogWriter

Count = Callable[[], int]
Check = Callable[[], None]


def changed(event: UsageEvent, **fields: object) -> bytes:
    """The event's message with some fields replaced; ``None`` values stay."""
    return orjson.dumps({**orjson.loads(event.to_wire()), **fields})


def without(event: UsageEvent, name: str) -> bytes:
    wire = orjson.loads(event.to_wire())
    del wire[name]
    return orjson.dumps(wire)


def metered(instant: datetime) -> bytes:
    return make_event(metered_at=instant, finished_at=None, started_at=None).to_wire()


def result(inserted: int = 0, duplicates: int = 0, **dead: int) -> BatchResult:
    reasons = {DeadReason(name): count for name, count in dead.items()}
    return BatchResult(inserted, duplicates, reasons, frozenset())


def test_an_event_becomes_the_row_that_it_says(writer: LogWriter, engine: sa.Engine) -> None:
    event = make_event(
        subject="https://example.org/",
        dimensions={"region": "eu", "quote": 'a "b" \\ {c}, NULL'},
        root_id="root",
        attempt=3,
        quota_epoch=7,
        degraded=True,
        cost_micros=12,
        shortfall_microcredits=5,
    )
    assert writer.write([event.to_wire()]) == BatchResult(1, 0, {}, frozenset({"acme"}))
    with engine.connect() as connection:
        row = connection.execute(sa.text("SELECT * FROM usage_events")).mappings().one()
    assert row["id"] == event.id
    assert row["customer_id"] == event.customer
    assert row["dimensions"] == event.dimensions
    assert row["fingerprint"] == event.fingerprint()
    assert row["finished_at"] == event.finished_at
    assert row["parent_id"] is None
    for name in ("line", "outcome", "quantity", "subject", "attempt", "quota_epoch", "degraded"):
        assert row[name] == getattr(event, name), name


def test_an_empty_batch_is_no_work(writer: LogWriter) -> None:
    assert writer.write([]) == result()


def test_the_same_event_a_thousand_times_over_sixty_days_is_one_row(
    writer: LogWriter, logged: Count, rollups_are_exact: Check
) -> None:
    rng = random.Random(4)
    event = make_event(metered_at=NOW - timedelta(days=60), task_id="the-one")
    tellings = []
    for _ in range(1000):
        finished = event.metered_at + timedelta(seconds=rng.randrange(60 * 86_400))
        tellings.append(
            changed(event, finished_at=format_instant(finished), attempt=rng.randrange(9))
        )
    total = [writer.write(tellings[start : start + 130]) for start in range(0, 1000, 130)]
    assert sum(batch.inserted for batch in total) == 1
    assert sum(batch.duplicates for batch in total) == 999
    assert all(not batch.dead for batch in total)
    assert logged() == 1
    rollups_are_exact()


def test_the_same_id_with_another_payload_is_a_conflict_that_says_what_differs(
    writer: LogWriter, engine: sa.Engine, logged: Count, rollups_are_exact: Check
) -> None:
    event = make_event(quantity=1, amount_microcredits=1_000_000, subject="a")
    writer.write([event.to_wire()])
    other = changed(event, quantity=2, amount_microcredits=2_000_000, subject="b")
    assert writer.write([other]) == result(conflict=1)
    assert logged() == 1
    rollups_are_exact()
    (letter,) = DeadLetters(engine).list()
    assert letter.reason is DeadReason.CONFLICT
    assert "quantity (logged 1, here 2)" in letter.detail
    assert "amount_microcredits (logged 1000000, here 2000000)" in letter.detail
    assert "subject (logged 'a', here 'b')" in letter.detail
    assert "sku" not in letter.detail
    assert (letter.event_id, letter.customer_id) == (str(event.id), "acme")


def test_two_payloads_under_one_id_in_one_batch_are_one_row_and_one_conflict(
    writer: LogWriter, engine: sa.Engine, rollups_are_exact: Check
) -> None:
    event = make_event()
    bodies = [event.to_wire(), changed(event, cost_micros=9), changed(event, attempt=2)]
    assert writer.write(bodies) == result(1, 1, conflict=1)
    assert "cost_micros (logged 0, here 9)" in DeadLetters(engine).list()[0].detail
    rollups_are_exact()


def test_what_was_logged_before_decides_which_of_two_payloads_is_the_conflict(
    writer: LogWriter,
) -> None:
    event = make_event()
    writer.write([event.to_wire()])
    bodies = [changed(event, cost_micros=9), event.to_wire()]
    assert writer.write(bodies) == result(0, 1, conflict=1)


def test_a_denial_told_twice_with_other_times_is_one_fact(writer: LogWriter) -> None:
    line = denied_line("page-capture", "insufficient_credits")
    denied = make_event(
        line=line,
        outcome=Outcome.DENIED,
        reason="insufficient_credits",
        amount_microcredits=0,
        quantity=0,
    )
    again = changed(denied, quantity=4, worker="other", reason="insufficient_credits")
    assert writer.write([denied.to_wire(), again]) == result(1, 1)


GOOD = make_event(task_id="poison", finished_at=None)

POISON: list[tuple[DeadReason, bytes]] = [
    (DeadReason.NOT_JSON, b"{not json"),
    (DeadReason.NOT_JSON, b"\xff\xfe\x00"),
    (DeadReason.NOT_AN_OBJECT, b"[1, 2]"),
    (DeadReason.TOO_LARGE, b'"' + b"x" * 70_000 + b'"'),
    (DeadReason.UNKNOWN_SCHEMA, changed(GOOD, schema=2)),
    (DeadReason.UNKNOWN_SCHEMA, without(GOOD, "schema")),
    (DeadReason.MISSING_FIELD, without(GOOD, "task_id")),
    (DeadReason.UNKNOWN_FIELD, changed(GOOD, colour="red")),
    (DeadReason.INVALID_FIELD, changed(GOOD, outcome="perhaps")),
    (DeadReason.INVALID_FIELD, changed(GOOD, finished_at="yesterday")),
    (DeadReason.INVALID_FIELD, changed(GOOD, finished_at="0001-01-01T00:00:00+10:00")),
    (DeadReason.INVALID_FIELD, changed(GOOD, outcome="denied")),
    (DeadReason.INVALID_FIELD, changed(GOOD, subject="a\x00b")),
    (
        DeadReason.NOT_JSON,
        changed(GOOD, subject="HERE").replace(b"HERE", b"\\ud800 half a character"),
    ),
    (DeadReason.INVALID_ID, changed(GOOD, id="not-an-id")),
    (DeadReason.INVALID_ID, changed(GOOD, id="6ba7b810-9dad-11d1-80b4-00c04fd430c8")),
    (DeadReason.ID_MISMATCH, changed(GOOD, task_id="another")),
    (DeadReason.AMOUNT_NEGATIVE, changed(GOOD, amount_microcredits=-1)),
    (DeadReason.AMOUNT_NOT_A_NUMBER, changed(GOOD, amount_microcredits="12")),
    (
        DeadReason.AMOUNT_NOT_A_NUMBER,
        changed(GOOD, amount_microcredits=111).replace(b":111", b":NaN"),
    ),
    (DeadReason.AMOUNT_FRACTIONAL, changed(GOOD, amount_microcredits=0.5)),
    (DeadReason.AMOUNT_TOO_LARGE, changed(GOOD, amount_microcredits=2**63)),
    (DeadReason.WRONG_CURRENCY, changed(GOOD, currency="EUR")),
    (DeadReason.UNKNOWN_SKU, make_event(sku="nobody-sells-this", line="x").to_wire()),
    (DeadReason.UNKNOWN_CUSTOMER, make_event(customer="nobody").to_wire()),
    (DeadReason.IN_THE_FUTURE, metered(NOW + timedelta(minutes=10))),
    (
        DeadReason.IN_THE_FUTURE,
        changed(GOOD, finished_at=format_instant(NOW + timedelta(minutes=10))),
    ),
    (DeadReason.TOO_OLD, metered(NOW - timedelta(days=400))),
    # Fits the wire format, not the column: only the database can tell.
    (DeadReason.REFUSED_BY_DATABASE, changed(GOOD, attempt=2**40)),
]


def test_each_bad_message_is_kept_under_its_own_reason_and_its_neighbours_are_logged(
    writer: LogWriter, engine: sa.Engine, logged: Count
) -> None:
    letters = DeadLetters(engine)
    known: set[int] = set()
    for number, (reason, body) in enumerate(POISON, start=1):
        before, after = make_event().to_wire(), make_event().to_wire()
        told = writer.write([before, body, after])
        assert told == result(2, 0, **{reason.value: 1}), body
        assert logged() == 2 * number
        (letter,) = [found for found in letters.list() if found.id not in known]
        assert letter.reason is reason
        assert letter.detail
        assert letters.show(letter.id).body == body
        known.add(letter.id)


def test_every_bad_message_in_one_batch_leaves_the_good_ones_alone(
    writer: LogWriter, engine: sa.Engine, logged: Count, rollups_are_exact: Check
) -> None:
    good = [make_event().to_wire() for _ in range(50)]
    mixed = good + [body for _, body in POISON]
    random.Random(5).shuffle(mixed)
    told = writer.write(mixed)
    assert told.inserted == logged() == 50
    assert sum(told.dead.values()) == len(POISON)
    assert set(told.dead) == {reason for reason, _ in POISON}
    assert DeadLetters(engine).counts() == dict(told.dead)
    rollups_are_exact()


def test_several_poison_rows_are_found_among_many(writer: LogWriter, logged: Count) -> None:
    good = [make_event().to_wire() for _ in range(61)]
    poison = [changed(make_event(), attempt=2**40) for _ in range(3)]
    mixed = good[:7] + poison[:1] + good[7:40] + poison[1:] + good[40:]
    assert writer.write(mixed) == result(61, 0, refused_by_database=3)
    assert logged() == 61


def test_a_refused_telling_does_not_take_a_good_telling_of_the_same_event_with_it(
    writer: LogWriter, logged: Count
) -> None:
    event = make_event()
    bodies = [changed(event, attempt=2**40), event.to_wire(), changed(event, worker="w")]
    assert writer.write(bodies) == result(1, 1, refused_by_database=1)
    assert logged() == 1


def test_a_month_without_a_partition_is_told_with_its_remedy(
    writer: LogWriter, engine: sa.Engine, logged: Count
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(f"DROP TABLE usage_events_{NOW:%Y_%m}"))
    good = metered(NOW.replace(day=1) - timedelta(days=3))
    assert writer.write([make_event().to_wire(), good]) == result(1, 0, refused_by_database=1)
    assert logged() == 1
    assert "run: billing migrate" in DeadLetters(engine).list()[0].detail


def test_the_age_limits_are_inclusive(writer: LogWriter) -> None:
    bodies = [
        metered(NOW - timedelta(days=90)),
        metered(NOW - timedelta(days=90, milliseconds=1)),
        metered(NOW + timedelta(seconds=300)),
        metered(NOW + timedelta(seconds=300, milliseconds=1)),
    ]
    assert writer.write(bodies) == result(2, 0, too_old=1, in_the_future=1)


def test_an_event_becomes_too_old_as_the_clock_moves_on(
    writer: LogWriter, clock: ManualClock
) -> None:
    body = metered(NOW - timedelta(days=89))
    clock.advance(timedelta(days=2))
    assert writer.write([body]) == result(too_old=1)


def test_the_first_and_the_last_millisecond_of_a_month_go_into_its_own_partition(
    writer: LogWriter, engine: sa.Engine
) -> None:
    month = NOW.replace(day=1, hour=0, minute=0)
    last, first = month - timedelta(milliseconds=1), month
    assert writer.write([metered(last), metered(first)]).inserted == 2
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text("SELECT tableoid::regclass::text FROM usage_events ORDER BY id")
        )
        assert rows.scalars().all() == [f"usage_events_{last:%Y_%m}", f"usage_events_{first:%Y_%m}"]


def test_a_customer_added_after_the_writer_started_is_known_at_once(
    writer: LogWriter, engine: sa.Engine
) -> None:
    body = make_event(customer="newcomer").to_wire()
    assert writer.write([body]) == result(unknown_customer=1)
    add_customer(engine, "newcomer")
    assert writer.write([body]) == result(1)


def test_the_same_bad_message_again_is_the_same_dead_letter_seen_more_often(
    writer: LogWriter, engine: sa.Engine
) -> None:
    writer.write([b"{", b"{"])
    writer.write([b"{", b"["])
    letters = DeadLetters(engine).list()
    assert sorted(letter.times_seen for letter in letters) == [1, 3]


def test_replay_after_repair_logs_and_marks(
    writer: LogWriter, engine: sa.Engine, logged: Count, rollups_are_exact: Check
) -> None:
    bodies = [make_event(sku="late-sku", line="late-sku").to_wire() for _ in range(3)]
    writer.write([*bodies, make_event(customer="late-customer").to_wire()])
    letters = DeadLetters(engine)
    assert {r.outcome for r in letters.replay(DeadReason.UNKNOWN_SKU, writer)} == {
        ReplayOutcome.STILL_DEAD
    }
    add_sku(engine, "late-sku")
    replayed = letters.replay(DeadReason.UNKNOWN_SKU, writer)
    assert [found.outcome for found in replayed] == [ReplayOutcome.LOGGED] * 3
    assert logged() == 3
    rollups_are_exact()
    assert [letter.reason for letter in letters.list()] == [DeadReason.UNKNOWN_CUSTOMER]
    assert len(letters.list(include_replayed=True)) == 4
    assert letters.replay(DeadReason.UNKNOWN_SKU, writer) == []


def test_a_replay_that_is_still_dead_says_its_new_reason_and_leaves_one_letter(
    writer: LogWriter, engine: sa.Engine, clock: ManualClock
) -> None:
    writer.write([make_event(customer="late-customer").to_wire()])
    letters = DeadLetters(engine)
    (letter,) = letters.list()
    add_customer(engine, "late-customer")
    clock.advance(timedelta(days=400))
    (told,) = letters.replay([letter.id], writer)
    assert (told.outcome, told.reason) == (ReplayOutcome.STILL_DEAD, DeadReason.TOO_OLD)
    assert "metered_at" in told.detail
    (left,) = letters.list()
    assert (left.reason, left.times_seen) == (DeadReason.UNKNOWN_CUSTOMER, 1)


def test_a_replay_of_what_was_logged_meanwhile_is_a_duplicate_and_marked(
    writer: LogWriter, engine: sa.Engine
) -> None:
    body = make_event(customer="late-customer").to_wire()
    writer.write([body])
    add_customer(engine, "late-customer")
    writer.write([body])
    letters = DeadLetters(engine)
    (told,) = letters.replay([letters.list()[0].id], writer)
    assert told.outcome is ReplayOutcome.DUPLICATE
    assert letters.list() == []


def test_a_replayed_letter_that_comes_back_is_open_again(
    writer: LogWriter, engine: sa.Engine
) -> None:
    event = make_event(sku="late-sku", line="late-sku")
    writer.write([event.to_wire()])
    add_sku(engine, "late-sku")
    letters = DeadLetters(engine)
    letters.replay(DeadReason.UNKNOWN_SKU, writer)
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM prices WHERE sku_id = 'late-sku'"))
        connection.execute(sa.text("DELETE FROM skus WHERE id = 'late-sku'"))
    LogWriter.write(_forgetful(writer), [event.to_wire()])
    (letter,) = letters.list()
    assert (letter.reason, letter.times_seen) == (DeadReason.UNKNOWN_SKU, 2)


def _forgetful(writer: LogWriter) -> LogWriter:
    """The writer, as it would be after a restart."""
    return LogWriter(
        writer._engine,
        clock=writer._clock,
        max_age=writer._rules.max_age,
        max_ahead=writer._rules.max_ahead,
        currency=writer._rules.currency,
    )


def test_an_id_that_is_no_letter_is_told(writer: LogWriter, engine: sa.Engine) -> None:
    (told,) = DeadLetters(engine).replay([4711], writer)
    assert told.outcome is ReplayOutcome.NOT_FOUND


def test_a_failure_of_the_database_logs_nothing_at_all(
    writer: LogWriter, engine: sa.Engine, logged: Count
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE usage_hourly RENAME TO mislaid"))
    with pytest.raises(sa.exc.ProgrammingError):
        writer.write([make_event().to_wire(), b"{"])
    assert logged() == 0
    assert DeadLetters(engine).list() == []
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE mislaid RENAME TO usage_hourly"))
    assert writer.write([make_event().to_wire()]).inserted == 1


def test_ids_are_those_of_task_line_and_time_whatever_the_batch(writer: LogWriter) -> None:
    event = make_event(task_id="t", metered_at=NOW)
    assert event.id == event_id("t", "page-capture", NOW)
    assert writer.write([event.to_wire()] * 3) == result(1, 2)
