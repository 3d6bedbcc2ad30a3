"""``billing verify``, ``seals``, ``proof``, ``archive`` and ``restore`` on real servers."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from commandline import Billing
from support import make_event

from billing.container import Container
from billing.core.event_ids import event_id
from billing.core.periods import Period, hour_floor, month_of
from billing.core.usage_event import UsageEvent
from billing.postgres.partitions import ensure_partitions
from billing.usage_log.log_writer import LogWriter

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

CHECK = Path(__file__).resolve().parents[2] / "scripts" / "check_proof.py"


@pytest.fixture
def events(container: Container, acme: str, moment: datetime) -> list[UsageEvent]:
    """Nine captures of an hour that is over; nothing is sealed."""
    hour = hour_floor(moment) - timedelta(hours=3)
    found = [
        make_event(
            metered_at=hour + timedelta(minutes=5 * n), customer=acme, task_id=f"t-{n}",
            subject=f"https://example.org/é?q={n}", dimensions={"region": "eu"},
            started_at=None, finished_at=None,
        )
        for n in range(9)
    ]  # fmt: skip
    assert container.writer.write([event.to_wire() for event in found]).inserted == len(found)
    return found


def tamper(container: Container, statement: str, **values: object) -> None:
    """As a superuser, behind everybody's back."""
    with container.engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        assert connection.execute(sa.text(statement), values).rowcount == 1


def change(container: Container, event: UsageEvent) -> None:
    tamper(container, "UPDATE usage_events SET amount_microcredits = 5 WHERE id = :id", id=event.id)


# -- verify ------------------------------------------------------------------------------------


def test_a_log_that_nobody_touched_verifies(billing: Billing, events: list[UsageEvent]):
    found = billing.json("verify")
    assert (found["ok"], found["rows"], found["rows_without_a_seal_yet"]) == (True, 9, 9)
    assert (found["head"], found["findings"]) == (None, [])
    run = billing.json("seals", "now")
    assert (run["seals"], run["rows"], run["head"]["number"]) == (1, 9, 1)
    found = billing.json("verify")
    assert (found["ok"], found["rows"], found["rows_without_a_seal_yet"]) == (True, 9, 0)
    assert found["head"] == run["head"]
    text = billing.table("verify")
    assert "9 rows in 1 hours under 1 seals" in text
    assert "every row is the one that was logged" in text
    assert events


def test_a_row_behind_the_applications_back_is_named_and_the_exit_code_is_one(
    billing: Billing, container: Container, events: list[UsageEvent]
):
    billing.run("seals", "now")
    change(container, events[0])
    tamper(container, "DELETE FROM usage_events WHERE id = :id", id=events[1].id)
    false = event_id("false", "page-capture", events[2].metered_at)
    tamper(
        container,
        "INSERT INTO usage_events SELECT (jsonb_populate_record(e, jsonb_build_object("
        "'id', CAST(:id AS text), 'task_id', 'false'))).* FROM usage_events e WHERE id = :like",
        id=str(false), like=events[2].id,
    )  # fmt: skip
    found = billing.json("verify", code=1)
    assert not found["ok"]
    named = {each["kind"]: each for each in found["findings"]}
    assert {kind: each["event_id"] for kind, each in named.items()} == {
        "changed": str(events[0].id),
        "removed": str(events[1].id),
        "added": str(false),
    }
    assert named["added"]["task_id"] == "false"
    assert named["changed"]["customer"] == "acme"
    assert named["changed"]["hour"].startswith(f"{hour_floor(events[0].metered_at):%Y-%m-%dT%H}")
    text = " ".join(billing.table("verify", code=1).split())
    assert f"changed · {events[0].id} · hour" in text
    assert "acme, page-capture, task t-0" in text
    assert "NOT as it was logged: 1 added, 1 changed, 1 removed" in text
    label = month_of(events[0].metered_at).label
    assert len(billing.json("verify", "--month", label, code=1)["findings"]) == 3
    assert billing.json("verify", "--month", "2020-01")["ok"]


def test_the_log_verifies_against_an_anchor_kept_elsewhere(
    billing: Billing, container: Container, events: list[UsageEvent], tmp_path: Path
):
    assert "nothing is sealed yet" in billing.run("verify", "--head").stdout
    billing.run("seals", "now")
    anchor = tmp_path / "anchor"
    anchor.write_text(billing.run("seals", "export").stdout)
    head = billing.run("verify", "--head").stdout.strip()
    assert anchor.read_text().splitlines()[-1] == head
    assert billing.json("verify", "--head")["hash"] == head.split()[1]
    found = billing.json("verify", "--anchor", str(anchor))
    assert (found["ok"], found["anchored"]) == (True, True)

    late = make_event(metered_at=events[0].metered_at, started_at=None, finished_at=None)
    container.writer.write([late.to_wire()])
    billing.run("seals", "now")
    more = billing.run("seals", "export", "--after", "1").stdout
    assert [line.split()[0] for line in more.splitlines()] == ["2"]
    anchor.write_text(anchor.read_text() + more)
    assert billing.json("verify", "--anchor", str(anchor))["ok"]

    anchor.write_text(f"2 {'0' * 64}\n")
    (finding,) = billing.json("verify", "--anchor", str(anchor), code=1)["findings"]
    assert (finding["kind"], finding["seal"]) == ("chain_broken", 2)
    assert "the anchor has another hash" in finding["words"]
    assert "billing seals export" in billing.error("verify", "--anchor", str(tmp_path / "none"))


def test_a_log_older_than_sealing_is_adopted(
    billing: Billing, container: Container, events: list[UsageEvent]
):
    with container.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM log_manifests"))
    found = billing.json("verify", code=1)["findings"]
    assert {each["kind"] for each in found} == {"added"}
    assert "billing seals adopt" in found[0]["money"]
    label = month_of(events[0].metered_at).label
    run = billing.json("seals", "adopt", label)
    assert (run["rows"], run["head"]["adopted"]) == (9, True)
    assert billing.json("verify")["ok"]


# -- proof -------------------------------------------------------------------------------------


def check(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The script, in a Python that has nothing installed."""
    return subprocess.run(
        [sys.executable, "-I", "-S", str(CHECK), *map(str, arguments)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_a_proof_is_checked_by_a_script_that_knows_nothing_of_us(
    billing: Billing, events: list[UsageEvent], tmp_path: Path
):
    billing.run("seals", "now")
    proof, anchor = tmp_path / "proof.json", tmp_path / "anchor"
    anchor.write_text(billing.run("seals", "export").stdout)
    for event in events:
        proof.write_text(billing.run("proof", str(event.id)).stdout)
        told = check(proof, anchor)
        assert told.returncode == 0, told.stderr
        assert f'"task_id": "{event.task_id}"' in told.stdout
        assert "under seal 1," in told.stdout
        assert "which the anchor has" in told.stdout
    assert "to be compared with one kept elsewhere" in check(proof).stdout


def bent(proof: dict[str, Any], *way: object) -> dict[str, Any]:
    """The proof with one value changed."""
    copy = json.loads(json.dumps(proof))
    inner = copy
    for step in way[:-1]:
        inner = inner[step]
    value = inner[way[-1]]
    if isinstance(value, str):
        inner[way[-1]] = ("0" if value[:1] != "0" else "1") + value[1:]
    else:
        inner[way[-1]] = value + 1 if value is not None else "x"
    return copy


def test_a_proof_that_was_changed_anywhere_does_not_hold(
    billing: Billing, events: list[UsageEvent], tmp_path: Path
):
    billing.run("seals", "now")
    proof = json.loads(billing.run("proof", str(events[4].id)).stdout)
    file = tmp_path / "proof.json"
    ways = [("line", name) for name in proof["line"] if name != "dimensions"]
    ways += [("line", "dimensions", "region"), ("index",), ("path", 0), ("path", 1)]
    ways += [("seal", name) for name in proof["seal"]]
    for way in ways:
        file.write_text(json.dumps(bent(proof, *way)))
        told = check(file)
        assert (told.returncode, told.stdout) == (1, ""), way
        assert "NOT PROVED" in told.stderr, way
    for path in (proof["path"][:-1], [*proof["path"], "00" * 32]):
        file.write_text(json.dumps({**proof, "path": path}))
        assert "NOT PROVED" in check(file).stderr


def test_a_proof_under_a_seal_that_the_anchor_lacks_does_not_hold(
    billing: Billing, events: list[UsageEvent], tmp_path: Path
):
    billing.run("seals", "now")
    proof, anchor = tmp_path / "proof.json", tmp_path / "anchor"
    proof.write_text(billing.run("proof", str(events[0].id)).stdout)
    anchor.write_text(f"1 {'0' * 64}\n")
    assert "the anchor does not have that seal" in check(proof, anchor).stderr


def test_the_script_is_short_and_imports_nothing_of_ours():
    text = CHECK.read_text()
    assert len(text.splitlines()) <= 50
    imports = {line.split()[1] for line in text.splitlines() if line.startswith(("import", "from"))}
    assert imports == {"json", "sys", "hashlib", "pathlib", "typing"}


def test_why_there_is_no_proof_is_said(
    billing: Billing, container: Container, events: list[UsageEvent]
):
    assert "is sealed after" in billing.error("proof", str(events[0].id))
    billing.run("seals", "now")
    change(container, events[0])
    assert "was changed after it was sealed" in billing.error("proof", str(events[0].id))
    tamper(container, "DELETE FROM usage_events WHERE id = :id", id=events[1].id)
    assert "is gone after it was sealed" in billing.error("proof", str(events[1].id))
    assert "billing receipt" in billing.error("proof", "01a1c56f-c940-7393-83e3-531fec412859")
    assert "event_id of a receipt" in billing.error("proof", "t-1")
    assert "event_id of a receipt" in billing.error("proof", "2de96187-d453-49e0-bb64-83ace1e913ab")


# -- archive and restore -----------------------------------------------------------------------

OLD = timedelta(days=200)


@pytest.fixture
def old(billing: Billing, container: Container, acme: str, tmp_path: Path) -> Period:
    """A month of long ago with usage in it, told to nobody but the log."""
    billing.environment["WEIGHBRIDGE_ARCHIVE_DIR"] = str(tmp_path / "archive")
    long_ago = datetime.now(UTC) - OLD
    month = month_of(long_ago)
    with container.engine.begin() as connection:
        ensure_partitions(connection, long_ago, back_months=0, ahead_months=0)
    writer = LogWriter(
        container.writer_engine,
        clock=container.clock,
        max_age=2 * OLD,
        max_ahead=OLD,
        currency="USD",
    )
    found = [
        make_event(
            metered_at=month.start + timedelta(hours=11 * n), customer=acme, task_id=f"old-{n}",
            started_at=None, finished_at=None,
        )
        for n in range(20)
    ]  # fmt: skip
    assert writer.write([event.to_wire() for event in found]).inserted == 20
    return month


def asked(billing: Billing, month: Period) -> list[Any]:
    return [
        billing.json("receipt", "acme", "--month", month.label),
        billing.json("usage", "acme", "--month", month.label),
        billing.json("receipt", "--task", "old-3"),
        billing.json("explain", "old-3"),
        billing.json("verify", "--month", month.label)["rows"],
    ]


def test_a_month_goes_to_a_file_and_comes_back_and_nobody_sees_a_difference(
    billing: Billing, old: Period, tmp_path: Path
):
    before = asked(billing, old)
    assert len(before[0]["lines"]) == 20
    (done,) = billing.json("archive", "--month", old.label)
    assert (done["month"], done["state"], done["rows"]) == (old.label, "dropped", 20)
    assert (tmp_path / "archive" / done["files"]["rows"]["name"]).is_file()
    assert asked(billing, old) == before
    assert billing.json("archive", "--list") == [done]
    assert old.label in billing.table("archive", "--list")
    (back,) = billing.json("restore", old.label)
    assert back["state"] == "restored"
    assert asked(billing, old) == before


def test_the_books_of_an_archived_month_are_left_as_they_are(billing: Billing, old: Period):
    assert billing.json("reconcile", "--days", "400") == []
    before = billing.json("usage", "acme", "--month", old.label)
    billing.run("archive", "--month", old.label)
    # Its lines are in a file: a repair that summed up the log would drop its rollups.
    assert billing.json("reconcile", "--days", "400", "--repair") == []
    assert billing.json("usage", "acme", "--month", old.label) == before
    billing.run("restore", old.label)
    assert billing.json("reconcile", "--days", "400", "--repair") == []
    assert billing.json("usage", "acme", "--month", old.label) == before


def test_every_month_before_one_is_archived_once(billing: Billing, old: Period):
    after = month_of(old.end).label
    assert [each["month"] for each in billing.json("archive", "--before", after)] == [old.label]
    assert billing.json("archive", "--before", after) == []
    assert "no month to archive" in billing.table("archive", "--before", after)


def test_a_proof_of_an_archived_line_holds(billing: Billing, old: Period, tmp_path: Path):
    billing.run("archive", "--month", old.label)
    (line, *_) = billing.json("receipt", "--task", "old-7")["lines"]
    proof = tmp_path / "proof.json"
    proof.write_text(billing.run("proof", line["event_id"]).stdout)
    assert '"task_id": "old-7"' in check(proof).stdout


def test_what_cannot_be_archived_is_refused_before_anything_is_done(billing: Billing, old: Period):
    young = month_of(datetime.now(UTC)).label
    assert "usage of it may still arrive" in billing.error("archive", "--month", young)
    later = month_of(datetime.now(UTC)).label
    assert "may still arrive" in billing.error("archive", "--before", later)
    assert billing.json("archive", "--list") == []
    assert "nothing was archived yet" in billing.table("archive", "--list")
    assert "no partition" in billing.error("archive", "--month", "2020-01")
    assert "no archive" in billing.error("restore", "2020-01")
    assert old.label


@pytest.mark.parametrize(
    "arguments", [(), ("--list", "--before", "2020-01"), ("--month", "2020-01", "--list")]
)
def test_archive_wants_to_know_what_to_do(billing: Billing, arguments: tuple[str, ...]):
    billing.error("archive", *arguments, code=2)


def test_a_tampered_month_is_archived_only_if_asked_to(
    billing: Billing, container: Container, old: Period
):
    billing.run("seals", "now")
    tamper(
        container,
        "UPDATE usage_events SET cost_micros = 5 WHERE id IN (SELECT id FROM usage_events LIMIT 1)",
    )
    assert "--despite-findings" in billing.error("archive", "--month", old.label)
    billing.run("archive", "--month", old.label, "--despite-findings")
    (finding,) = billing.json("verify", "--month", old.label, code=1)["findings"]
    assert finding["kind"] == "changed"
