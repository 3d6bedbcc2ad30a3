"""Verifying: one changed, removed or added row is found and named, whoever did it and when."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sealing import HOUR, Bench, month_before
from support import make_event

from billing.audit.backfill_seals import backfill_seals
from billing.audit.row_diff import compare, unlisted
from billing.audit.seal_chain import (
    Leaves,
    anchor_line,
    breaks_of,
    gathered,
    next_seal,
    parse_anchor,
)
from billing.audit.sealer import MOST_ROWS, read_seals
from billing.audit.verification_report import FindingKind, VerifyFinding
from billing.audit.verifier import Checked
from billing.core.event_ids import event_id
from billing.core.periods import month_of
from billing.core.row_hash import COLUMNS
from billing.postgres.partitions import partition_name

Seal = Callable[[Bench], object]

# -- the rules, without a database --------------------------------------------------------------

records = st.dictionaries(st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32))


def listed(found: dict[bytes, bytes], number: int | None = 1) -> Leaves:
    ordered = sorted(found.items())
    return Leaves(number, b"".join(k for k, _ in ordered), b"".join(v for _, v in ordered))


@given(records, records, st.integers(1, 4))
def test_differences_are_those_of_the_sets(
    rows: dict[bytes, bytes], written: dict[bytes, bytes], parts: int
):
    lists = [
        listed(
            {k: v for n, (k, v) in enumerate(sorted(written.items())) if n % parts == part}, part
        )
        for part in range(parts)
    ]
    found = compare(sorted(rows.items()), lists)
    assert {each for each, _ in found.added.named} == rows.keys() - written.keys()
    assert {each for each, _ in found.removed.named} == written.keys() - rows.keys()
    both = rows.keys() & written.keys()
    assert {each for each, _ in found.changed.named} == {k for k in both if rows[k] != written[k]}
    assert found.rows == len(rows)
    assert bool(found) == (rows != written)
    assert dict(unlisted(sorted(rows.items()), lists)) == {
        k: v for k, v in rows.items() if k not in written
    }


def test_of_many_differences_some_are_named_and_all_are_counted():
    rows = {bytes([n]) * 16: bytes(32) for n in range(10)}
    found = compare(sorted(rows.items()), [], most_named=3)
    assert (len(found.added.named), found.added.rows) == (3, 10)


def test_what_is_under_two_seals_is_told_and_the_first_has_the_say():
    one = {b"a" * 16: b"1" * 32}
    found = compare(sorted(one.items()), [listed(one, 1), listed({b"a" * 16: b"2" * 32}, 2)])
    assert (found.changed.rows, found.twice.named) == (0, [(b"a" * 16, 2)])


@given(st.lists(records, max_size=4))
def test_lists_are_gathered_in_the_order_of_their_ids(parts: list[dict[bytes, bytes]]):
    whole = gathered([listed(part) for part in parts], 7)
    assert list(whole) == sorted(pair for part in parts for pair in part.items())


@pytest.mark.parametrize(
    ("field", "value"),
    [("number", 5), ("rows", 9), ("adopted", True), ("root", b"x" * 32), ("previous", b"x" * 32)],
)
def test_every_field_of_a_seal_is_under_its_hash(field: str, value: object):
    hour = month_of(make_event().metered_at).start
    leaves = listed({b"a" * 16: b"1" * 32})
    seal = next_seal(None, leaves, hour=hour, sealed_at=hour)
    changed = type(seal)(**{**{name: getattr(seal, name) for name in seal.__slots__}, field: value})
    moved = next_seal(None, leaves, hour=hour + HOUR, sealed_at=hour)
    later = next_seal(None, leaves, hour=hour, sealed_at=hour + timedelta(milliseconds=1))
    assert len({seal.hash, changed.hash, moved.hash, later.hash}) == 4


@pytest.mark.parametrize(
    "text", ["", "# only a comment", "1", "x " + "0" * 64, "1 abc", "1 " + "0" * 62]
)
def test_an_anchor_that_is_none_is_refused(text: str):
    with pytest.raises(ValueError, match="billing seals export"):
        parse_anchor(text.splitlines())


def test_an_anchor_with_two_hashes_for_a_seal_is_refused():
    with pytest.raises(ValueError, match="two hashes"):
        parse_anchor([anchor_line(1, bytes(32)), anchor_line(1, b"x" * 32)])


# -- rows --------------------------------------------------------------------------------------


def unsealed(_: Bench) -> None:
    """Verify finds the same before the seal as after it."""


def sealed(bench: Bench) -> None:
    bench.seal()


whenever = pytest.mark.parametrize("seal", [unsealed, sealed])


def only(found: list[VerifyFinding]) -> VerifyFinding:
    (finding,) = found
    return finding


@whenever
def test_nothing_is_found_in_a_log_that_nobody_touched(bench: Bench, seal: Seal):
    bench.log_some(30)
    bench.log_some(5, hour=bench.hour - 3 * HOUR, customer="globex")
    seal(bench)
    counts = Checked()
    assert bench.verify(checked=counts) == []
    assert (counts.rows, counts.hours) == (35, 2)


OTHER = {
    "customer_id": "globex",
    "sku_id": "deep-search",
    "line": "other",
    "outcome": "failed",
    "reason": "x",
    "quantity": 2,
    "amount_microcredits": 1,
    "shortfall_microcredits": 1,
    "held_microcredits": 1,
    "cost_micros": 1,
    "currency": "EUR",
    "subject": "other",
    "dimensions": '{"a": "b"}',
    "task_id": "other",
    "task_name": "other",
    "root_id": "other",
    "parent_id": "other",
    "group_id": "other",
    "attempt": 9,
    "worker": "other",
    "degraded": True,
    "quota_epoch": 9,
    "started_at": "2026-01-01T00:00:00Z",
    "finished_at": "2026-01-01T00:00:00Z",
    "fingerprint": b"other",
    "logged_at": "2026-01-01T00:00:00Z",
}


def test_a_change_of_any_column_is_found_and_the_row_named(bench: Bench):
    events = bench.log_some(len(COLUMNS))
    bench.seal()
    columns = [name for name in COLUMNS if name != "id"]
    for column, event in zip(columns, events, strict=False):
        bench.change(event.id, column, OTHER[column])
    found = bench.verify()
    assert {finding.event_id for finding in found} == {event.id for event in events[:-1]}
    assert {finding.kind for finding in found} == {FindingKind.CHANGED}
    assert {(finding.hour, finding.seal) for finding in found} == {(bench.hour, 1)}


@whenever
def test_a_changed_amount_says_what_is_billed(bench: Bench, seal: Seal):
    events = bench.log_some(8)
    seal(bench)
    bench.change(events[3].id, "amount_microcredits", 1)
    finding = only(bench.verify())
    assert (finding.kind, finding.event_id) == (FindingKind.CHANGED, events[3].id)
    assert (finding.customer, finding.task_id) == ("acme", events[3].task_id)
    assert finding.amount_microcredits == 1
    assert "acme, page-capture, succeeded has 0 events and +0.999999 credits" in finding.money


@whenever
def test_a_removed_row_is_named_with_the_customer_whose_total_still_has_it(
    bench: Bench, seal: Seal
):
    events = bench.log_some(8)
    bench.log_some(2, customer="globex")
    seal(bench)
    bench.remove(events[5].id)
    finding = only(bench.verify())
    assert (finding.kind, finding.event_id) == (FindingKind.REMOVED, events[5].id)
    assert (finding.customer, finding.sku) == ("acme", "page-capture")
    assert finding.amount_microcredits == 1_000_000
    assert finding.hour == bench.hour
    assert "+1 events and +1 credits" in finding.money
    assert "it is billed and no receipt shows it" in finding.money


def test_a_removed_row_whose_total_was_lowered_too_is_not_billed_any_more(bench: Bench):
    (event, *_) = bench.log_some(8)
    bench.seal()
    bench.remove(event.id)
    bench.tamper(
        "UPDATE usage_hourly SET events = events - 1, quantity = quantity - 1,"
        " amount_microcredits = amount_microcredits - 1000000"
    )
    finding = only(bench.verify())
    assert (finding.kind, finding.event_id) == (FindingKind.REMOVED, event.id)
    assert finding.customer is None
    assert "not billed any more" in finding.money


@whenever
def test_an_added_row_is_named_although_it_looks_as_if_it_had_just_come(bench: Bench, seal: Seal):
    (event, *_) = bench.log_some(8)
    seal(bench)
    false = event_id("false", "page-capture", bench.hour + timedelta(minutes=7))
    # Everything about it is plausible; its logged_at is now.
    bench.forge(event.id, false, task_id="false", logged_at=bench.now)
    for _ in range(2):
        finding = only(bench.verify())
        assert (finding.kind, finding.event_id) == (FindingKind.ADDED, false)
        assert (finding.customer, finding.task_id) == ("acme", "false")
        assert "is on the receipt and is not billed" in finding.money
        # No later seal makes it right.
        bench.log_some(1)
        bench.seal()


def test_an_added_row_in_an_hour_of_its_own_is_found(bench: Bench):
    (event,) = bench.log_some(1)
    bench.seal()
    false = event_id("false", "page-capture", bench.hour - 50 * HOUR)
    bench.forge(event.id, false)
    assert only(bench.verify()).event_id == false


def test_an_added_row_under_no_uuidv7_is_found(bench: Bench):
    (event,) = bench.log_some(1)
    false = UUID(int=event.id.int & ~(0xF << 76))
    bench.forge(event.id, false)
    assert only(bench.verify()).event_id == false


def test_a_row_put_in_without_switching_anything_off_is_found_too(bench: Bench):
    (event,) = bench.log_some(1)
    false = event_id("false", "page-capture", event.metered_at)
    others = ", ".join(name for name in COLUMNS if name != "id")
    with bench.engine.begin() as connection:
        # The log's triggers let everybody insert whom the grants let.
        connection.execute(
            sa.text(
                f"INSERT INTO usage_events (id, {others}) SELECT :id, {others} FROM usage_events"
            ),
            {"id": false},
        )
    assert only(bench.verify()).event_id == false


@whenever
def test_an_emptied_month_is_found_row_by_row(bench: Bench, seal: Seal):
    events = bench.log_some(5)
    seal(bench)
    bench.tamper(f"TRUNCATE {partition_name(bench.hour)}")
    found = bench.verify()
    assert {finding.event_id for finding in found} == {event.id for event in events}
    assert {finding.kind for finding in found} == {FindingKind.REMOVED}


def test_a_month_that_was_dropped_is_found(bench: Bench):
    month = month_before(month_of(bench.now))
    events = bench.log_some(3, hour=month.start + 5 * HOUR)
    bench.seal()
    bench.tamper(f"DROP TABLE {partition_name(month.start)}")
    assert {finding.event_id for finding in bench.verify()} == {event.id for event in events}


def test_three_at_once_are_three_findings(bench: Bench):
    events = bench.log_some(20)
    bench.seal()
    bench.remove(events[0].id)
    bench.change(events[10].id, "cost_micros", 7)
    bench.forge(events[19].id, event_id("false", "x", events[19].metered_at))
    assert sorted(bench.kinds()) == ["added", "changed", "removed"]


# -- seals -------------------------------------------------------------------------------------


_SWAPPED = """
    UPDATE log_seal_leaves SET ids = substr(ids, 17) || substr(ids, 1, 16) WHERE number = 2
"""


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE log_seals SET rows = 1 WHERE number = 2", "not the one of what it says"),
        ("UPDATE log_seals SET root = previous WHERE number = 2", "not the one of what it says"),
        ("UPDATE log_seals SET hash = root WHERE number = 2", "not chained to the seal before"),
        ("DELETE FROM log_seals WHERE number = 2", "seals 2 to 2 are gone"),
        ("UPDATE log_seal_leaves SET hashes = ids || ids WHERE number = 2", "not the one that was"),
        ("UPDATE log_seal_leaves SET ids = substr(ids, 2) WHERE number = 2", "is cut off"),
        (_SWAPPED, "out of order"),
        ("DELETE FROM log_seal_leaves WHERE number = 2", "list of leaves is gone"),
    ],
)  # fmt: skip
def test_a_seal_that_was_tampered_with_is_found(bench: Bench, statement: str, words: str):
    for hours in range(3):
        bench.log_some(2, hour=bench.hour - hours * HOUR)
    bench.seal()
    assert bench.tamper(statement) == 1
    broken = [found for found in bench.verify() if found.kind is FindingKind.CHAIN_BROKEN]
    assert any(words in finding.words for finding in broken)


def test_a_row_changed_together_with_its_leaf_is_found_by_the_root(bench: Bench):
    events = bench.log_some(4)
    bench.seal()
    bench.remove(events[0].id)
    bench.tamper("UPDATE log_seal_leaves SET ids = substr(ids, 17), hashes = substr(hashes, 33)")
    finding = only(bench.verify())
    assert (finding.kind, finding.seal) == (FindingKind.CHAIN_BROKEN, 1)


def rewrite_history(bench: Bench) -> None:
    """All of it again without one row, as somebody would who can do anything and knows the code."""
    bench.tamper(
        "DELETE FROM usage_events WHERE id = (SELECT min(id::text) FROM usage_events)::uuid"
    )
    bench.tamper("TRUNCATE log_seal_leaves, log_seals")
    month = month_of(bench.now)
    backfill_seals(bench.engine, month_before(month), bench.now)
    backfill_seals(bench.engine, month, bench.now)
    bench.tamper("ALTER TABLE log_seals DISABLE TRIGGER ALL")


def anchor_of(bench: Bench) -> dict[int, bytes]:
    with bench.engine.connect() as connection:
        lines = [anchor_line(seal.number, kept) for seal, kept in read_seals(connection)]
    return parse_anchor(["# a comment", "", *lines])


def test_history_that_was_rewritten_is_found_by_an_anchor_kept_elsewhere_and_only_so(bench: Bench):
    bench.log_some(3)
    bench.log_some(3, hour=bench.hour - HOUR)
    bench.seal()
    anchor = anchor_of(bench)
    assert bench.verify(anchor) == []
    rewrite_history(bench)
    assert bench.verify() == []
    assert {finding.kind for finding in bench.verify(anchor)} == {FindingKind.CHAIN_BROKEN}


def test_an_anchor_of_the_head_alone_finds_a_chain_that_was_cut_off(bench: Bench):
    bench.log_some(3)
    bench.seal()
    bench.log_some(3, hour=bench.hour - HOUR)
    bench.seal()
    head = {2: anchor_of(bench)[2]}
    assert bench.verify(head) == []
    bench.tamper("DELETE FROM log_seal_leaves WHERE number = 2")
    bench.tamper("DELETE FROM log_seals WHERE number = 2")
    bench.tamper(
        "DELETE FROM usage_events WHERE id < (SELECT max(id::text) FROM usage_events)::uuid"
    )
    words = [found.words for found in bench.verify(head)]
    assert "seal 2: the anchor has it, the database does not" in words


def test_an_older_anchor_holds_for_a_chain_that_went_on(bench: Bench):
    bench.log_some(3)
    bench.seal()
    anchor = anchor_of(bench)
    bench.log_some(3, hour=bench.hour - HOUR)
    bench.seal()
    assert bench.verify(anchor) == []


def test_the_chain_is_told_seal_by_seal(bench: Bench):
    for hours in range(4):
        bench.log_some(1, hour=bench.hour - hours * HOUR)
    bench.seal()
    with bench.engine.connect() as connection:
        seals = list(read_seals(connection))
    assert list(breaks_of(seals)) == []
    assert [each.number for each in breaks_of(seals[1:])] == [1]
    assert [each.number for each in breaks_of([seals[0], *seals[2:]])] == [2]
    swapped = [seals[0], (seals[2][0], seals[1][1]), *seals[3:]]
    assert [each.number for each in breaks_of(swapped)] == [2, 3, 4]


# -- what is missing, and what is adopted ---------------------------------------------------------


def test_an_hour_that_nobody_seals_is_told_after_a_while(bench: Bench):
    bench.log_some(3)
    (month,) = [each for each in bench.months() if bench.hour in each]
    # Rows are dated by PostgreSQL, whose clock does not stand still.
    long_after = datetime.now(UTC) + timedelta(hours=4)
    finding = only(list(bench.verifier.month(month, long_after)))
    assert (finding.kind, finding.hour, finding.rows) == (FindingKind.UNSEALED, bench.hour, 3)
    bench.seal()
    assert list(bench.verifier.month(month, long_after)) == []


def test_a_log_older_than_sealing_is_adopted_once_and_found_right_afterwards(bench: Bench):
    events = bench.log_some(9)
    bench.log_some(3, hour=bench.hour - 2 * HOUR)
    bench.tamper("TRUNCATE log_manifests")
    bench.log_some(2, task_name="logged since")
    month = month_of(bench.now)
    assert len(bench.verify()) == 12
    run = backfill_seals(bench.engine, month, bench.now, most_rows=4)
    assert (run.seals, run.rows) == (4, 12)
    assert backfill_seals(bench.engine, month, bench.now).seals == 0
    assert bench.seal().rows == 2
    assert bench.kinds() == []
    assert [seal.adopted for seal in bench.seals()] == [True] * 4 + [False]
    bench.change(events[4].id, "cost_micros", 1)
    assert only(bench.verify()).event_id == events[4].id


def test_a_seal_is_small_enough_to_be_held_in_memory():
    assert MOST_ROWS * 48 <= 8 * 2**20
