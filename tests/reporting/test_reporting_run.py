"""Running: limits, stops, what nothing may be sent to, and a real SIGKILL at every step."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from reporting_support import LAST_HOUR, Container, answer_lost, answering, metered
from support import NOW

from billing.core.errors import InvalidValue
from billing.providers.port import ProviderAnswer, ProviderCause, ProviderMeter, ProviderUnavailable
from billing.reporting.rate_limiter import TokenBucket
from billing.reporting.report_store import Answered, Claimed, CustomerIds, Destination, Metered
from billing.reporting.revision_rules import EVERY, Depth
from billing.reporting.usage_report import ReportState, SendOutcome, after_answer

LEASE = timedelta(minutes=5)


def filled(container: Container, hours: int = 3) -> None:
    for back in range(hours):
        container.use(10 + back, LAST_HOUR - timedelta(hours=back))
        container.use(20 + back, LAST_HOUR - timedelta(hours=back), customer="globex")


@pytest.mark.parametrize("cause", [ProviderCause.KEY_REFUSED, ProviderCause.PERMISSION_REFUSED])
def test_a_provider_that_refuses_us_is_asked_once_and_everything_stays_pending(
    container: Container, cause: ProviderCause
) -> None:
    filled(container)
    container.ledger.always = answering(cause)
    done = container.advance()
    assert len(container.ledger.seen) == 1
    assert done.stopped == {"ledger": f"{cause}: to order"}
    assert {state for _, state, _ in container.states()} == {"pending"}
    container.advance()
    assert len(container.ledger.seen) == 2
    container.ledger.always = None
    container.advance()
    container.assert_all_told()


def test_a_stop_after_a_lost_answer_does_not_make_it_unsent(container: Container) -> None:
    container.use(7)
    container.ledger.faults.extend([answer_lost, answering(ProviderCause.KEY_REFUSED)])
    container.advance()
    container.later(minutes=10)
    container.advance()
    assert [state for _, state, _ in container.states()] == ["unknown"]


def test_nothing_is_sent_to_a_meter_that_is_made_otherwise(container: Container) -> None:
    filled(container)
    container.ledger.differences = ("event_time_window is day, needed hour",)
    done = container.advance()
    assert container.ledger.seen == []
    assert set(done.blocked.values()) == {"event_time_window is day, needed hour"}
    assert container.sums()["acme", "page-capture"].open == 33
    container.ledger.differences = ()
    container.advance()
    container.assert_all_told()


def test_a_provider_that_does_not_answer_about_its_meters_gets_nothing(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(meters: list[ProviderMeter], *, dry_run: bool = False) -> None:
        del meters, dry_run
        raise ProviderUnavailable("down")

    filled(container)
    with monkeypatch.context() as patch:
        patch.setattr(container.ledger, "ensure_meters", down)
        assert container.advance().stopped == {"ledger": "down"}
    assert container.ledger.seen == []
    container.advance()
    container.assert_all_told()


def test_a_run_begins_no_batch_after_its_time_is_up(container: Container) -> None:
    filled(container)
    done = container.reporter().advance(until=NOW)
    assert (done.planned, container.ledger.seen) == (6, [])


def test_small_batches_reach_every_customer(container: Container) -> None:
    filled(container)
    container.reporter(batch=1).advance()
    assert [report.customer_ref for report in container.ledger.seen[:2]] == ["acme", "globex"]
    container.assert_all_told()


def test_the_complete_request_is_written_down_before_it_is_sent(container: Container) -> None:
    container.use(7)
    container.ledger.faults.append(answering(ProviderCause.TIMED_OUT))
    container.advance()
    query = sa.text("SELECT * FROM usage_reports")
    with container.engine.connect() as connection:
        row = connection.execute(query).one()
    [sent] = container.ledger.seen
    assert (row.identifier, row.customer_ref, row.meter) == (
        sent.identifier, sent.customer_ref, sent.meter,
    )  # fmt: skip
    assert (row.hour, row.value, row.event_at) == (sent.hour, sent.value, sent.timestamp)
    assert row.first_sent_at == NOW
    assert sent.identifier == f"test:ledger:wb.page-capture:acme:{sent.hour:%Y%m%dT%HZ}:r1"


def test_a_reporter_that_lost_its_claim_changes_nothing(container: Container) -> None:
    container.use(7)
    container.reports.plan(destination(), until=NOW, now=NOW)
    [slow] = container.reports.claim("ledger", now=NOW, lease=LEASE, limit=9)
    later = NOW + LEASE
    assert container.reports.recover(later) == 1
    [fast] = container.reports.claim("ledger", now=later, lease=LEASE, limit=9)
    assert fast.report == slow.report
    assert (fast.outcome_unknown, fast.attempts) == (True, 2)
    taken, refused = (
        ProviderAnswer(cause=ProviderCause.TAKEN),
        ProviderAnswer(cause=ProviderCause.TOO_OLD),
    )
    parked = after_answer(refused, outcome_unknown=False)

    def answered(claimed: Claimed, outcome: SendOutcome, answer: ProviderAnswer) -> str:
        container.reports.answer_all([Answered(claimed, outcome, answer, later, later, later)])
        [(_, state, _)] = container.states()
        return state

    assert answered(slow, parked, refused) == "sending"
    assert answered(fast, after_answer(taken, outcome_unknown=True), taken) == "accepted"
    assert answered(fast, parked, refused) == "accepted"
    container.reports.answer_all(
        [Answered(lost, parked, refused, later, later, later) for lost in (slow, fast)]
    )
    assert [state for _, state, _ in container.states()] == ["accepted"]


def destination(customer_ids: CustomerIds = CustomerIds.OURS) -> Destination:
    return Destination(
        environment="test", provider="ledger", customer_ids=customer_ids, metered=metered
    )


def test_a_claim_takes_one_report_per_customer_and_meter_oldest_hour_first(
    container: Container,
) -> None:
    filled(container)
    container.reports.plan(destination(), until=NOW, now=NOW)
    first = container.reports.claim("ledger", now=NOW, lease=LEASE, limit=9)
    assert [(c.customer, c.report.value) for c in first] == [("acme", 12), ("globex", 22)]
    assert container.reports.claim("ledger", now=NOW, lease=LEASE, limit=9) == []
    container.reports.release(first)
    assert {state for _, state, _ in container.states()} == {"pending"}
    again = container.reports.claim("ledger", now=NOW, lease=LEASE, limit=9)
    assert [c.report for c in again] == [c.report for c in first]
    assert [c.attempts for c in again] == [1, 1]


def test_the_database_keeps_two_in_flight_for_one_customer_and_meter_apart(
    container: Container,
) -> None:
    filled(container)
    container.reports.plan(destination(), until=NOW, now=NOW)
    with (
        pytest.raises(sa.exc.IntegrityError, match="in_flight"),
        container.engine.begin() as any_one,
    ):
        any_one.execute(
            sa.text("UPDATE usage_reports SET state = 'sending', claim = gen_random_uuid()")
        )


def test_an_unmapped_customer_accrues_parked_until_it_is_mapped(container: Container) -> None:
    def stripe() -> Destination:
        return destination(CustomerIds.STRIPE)

    container.use(7)
    container.reports.plan(stripe(), until=NOW, now=NOW)
    container.use(5)
    container.reports.plan(stripe(), until=NOW, now=NOW)
    unmapped = ProviderCause.UNMAPPED_CUSTOMER.value
    assert container.states() == [(1, "parked", unmapped), (2, "parked", unmapped)]
    assert container.sums()["acme", "page-capture"].parked == 12
    assert not container.reports.retry(2, now=NOW)
    with container.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE customers SET stripe_customer_id = 'cus_1' WHERE id = 'acme'")
        )
    container.reports.plan(stripe(), until=NOW, now=NOW)
    [claimed] = container.reports.claim("ledger", now=NOW, lease=LEASE, limit=9)
    assert (claimed.report.customer_ref, claimed.report.value) == ("cus_1", 12)


def test_a_person_holds_a_report_back_and_lets_it_go(container: Container) -> None:
    container.use(7)
    container.reports.plan(destination(), until=NOW, now=NOW)
    assert container.reports.hold_back(1, "disputed")
    assert not container.reports.hold_back(1, "disputed")
    container.advance()
    assert container.ledger.seen == []
    assert container.sums()["acme", "page-capture"].parked == 7
    assert container.reports.retry(1, now=NOW)
    assert container.reports.oldest_open("ledger") == LAST_HOUR
    container.advance()
    container.assert_all_told()
    assert container.reports.oldest_open("ledger") is None
    assert not container.reports.hold_back(1, "too late")


def test_only_the_deep_comparisons_read_old_hours(container: Container) -> None:
    container.use(7, LAST_HOUR - timedelta(days=8))
    assert container.reports.plan(destination(), until=NOW, now=NOW) == 1
    container.use(7, LAST_HOUR - timedelta(days=8))
    later = NOW + EVERY[Depth.MONTH]
    before = later - timedelta(seconds=1)
    container.advance()
    assert container.reports.plan(destination(), until=NOW, now=before) == 0
    assert container.reports.plan(destination(), until=NOW, now=later) == 1


class FakeTime:
    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_calls_pass_at_the_rate_after_the_first_burst() -> None:
    time = FakeTime()
    bucket = TokenBucket(10, 5, monotonic=lambda: time.now, sleep=time.sleep)
    waits = [bucket.take() for _ in range(25)]
    assert waits[:5] == [0.0] * 5
    assert time.now == pytest.approx(2.0)


def test_a_pause_saves_up_no_more_than_a_burst() -> None:
    time = FakeTime()
    bucket = TokenBucket(10, 5, monotonic=lambda: time.now, sleep=time.sleep)
    time.now = 1000.0
    waits = deque(bucket.take() for _ in range(6))
    assert waits.pop() == pytest.approx(0.1)
    assert set(waits) == {0.0}


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_rate_that_lets_nothing_pass_is_refused(rate: float, burst: int) -> None:
    with pytest.raises(InvalidValue):
        TokenBucket(rate, burst, monotonic=lambda: 0.0, sleep=lambda _: None)


KILLED_RUN = """
import sys
from datetime import datetime, timedelta
from pathlib import Path
import sqlalchemy as sa
from billing.core import failpoints
from billing.core.clock import ManualClock
from billing.postgres.engines import sqlalchemy_url
from billing.providers.port import ProviderMeter
from billing.providers.files import FileProvider
from billing.reporting.sender import Pace, ReportSender
from billing.reporting.report_store import CustomerIds, Destination, Metered, ReportStore
url, now, point, record, folder = sys.argv[1:]
failpoints.arm(f"{point}=1", Path(record))
def metered(sku):
    return Metered(meter=ProviderMeter(sku=sku, name=f"wb.{sku}", display_name=sku))
ReportSender(
    ReportStore(sa.create_engine(sqlalchemy_url(url))), FileProvider(Path(folder)),
    Destination(environment="test", provider="file", customer_ids=CustomerIds.OURS,
                metered=metered),
    [], ManualClock(datetime.fromisoformat(now)), pace=Pace(senders=2),
).advance()
"""


@pytest.mark.parametrize(
    "point",
    ["after_plan", "after_claim", "before_send", "after_send", "after_answer"],
)
def test_a_sigkill_at_any_step_loses_and_repeats_nothing(
    container: Container, database_url: str, tmp_path: Path, point: str
) -> None:
    filled(container)
    record = tmp_path / "points"
    arguments = [database_url, NOW.isoformat(), f"report.{point}", str(record)]
    died = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, *arguments, str(tmp_path / "files")],
        check=False, timeout=60,
    )  # fmt: skip
    assert died.returncode == -9
    assert record.read_text() == f"report.{point}\n"
    container.later(minutes=6)
    done = container.advance(container.file)
    assert done.became[ReportState.ACCEPTED] >= 4  # two senders may have ended before
    container.assert_all_told(container.file)
    lines = [path.read_bytes() for path in (tmp_path / "files").glob("*.jsonl")]
    assert sum(text.count(b"\n") for text in lines) == 6


def test_what_waits_for_a_meter_of_a_former_name_goes_to_the_present_one(
    container: Container,
) -> None:
    container.use(5)
    container.ledger.faults.append(answering(ProviderCause.KEY_REFUSED))
    container.advance()  # planned; the key was refused before anything was sent
    assert container.states() == [(1, "pending", "key_refused")]
    container.ledger.seen.clear()

    def renamed(sku: str) -> Metered:
        return Metered(meter=ProviderMeter(sku=sku, name=f"new.{sku}", display_name=sku))

    container.metered = renamed
    container.advance()
    assert [report.meter for report in container.ledger.seen] == ["new.page-capture"]
    assert [state for _, state, _ in container.states()] == ["parked", "accepted"]
