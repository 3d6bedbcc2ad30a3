"""Per customer, SKU and period: log = accepted + open + parked, whatever happens."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa
from reporting_support import (
    LAST_HOUR,
    THIS_HOUR,
    Fault,
    System,
    answer_lost,
    answering,
    killed_after_sending,
    killed_before_sending,
    metered,
)
from sqlalchemy.engine import Connection

from billing.postgres.engines import writer_engine
from billing.providers.port import Answer, Cause, Provider, UsageReport
from billing.reporting.report_store import Metered
from billing.reporting.usage_report import State


def busy(system: System) -> None:
    """Ten hours of usage of two customers and two SKUs."""
    for back in range(10):
        hour = LAST_HOUR - timedelta(hours=back)
        system.use(1_000_001 + back, hour)
        system.use(3, hour, customer="globex", sku="premium-proxy-search")
    system.use(5, sku="premium-proxy-search")


def test_what_was_logged_is_told_once_per_customer_sku_and_hour(system: System) -> None:
    busy(system)
    done = system.advance()
    assert (done.planned, done.became[State.ACCEPTED]) == (21, 21)
    system.assert_all_told()


def test_a_second_run_tells_nothing(system: System) -> None:
    busy(system)
    system.advance()
    system.ledger.seen.clear()
    assert system.advance().planned == 0
    assert system.ledger.seen == []


def test_an_hour_that_is_not_over_waits_and_counts_as_unclaimed(system: System) -> None:
    system.use(7, THIS_HOUR)
    assert system.advance().planned == 0
    assert system.sums()["acme", "page-capture"].unclaimed == 7
    system.later(minutes=34)
    assert system.advance().planned == 0
    system.later(minutes=1)
    assert system.advance().planned == 1
    system.assert_all_told()


@pytest.mark.parametrize("death", [killed_before_sending, killed_after_sending])
def test_a_reporter_killed_between_claim_and_commit_loses_nothing(
    system: System, death: Fault
) -> None:
    busy(system)
    system.ledger.faults.append(death)
    system.die()
    sums = system.sums()
    assert sum(s.open for s in sums.values()) == sum(s.logged for s in sums.values())
    system.later(minutes=6)
    done = system.advance()
    assert done.left_behind == 3  # one per customer and meter
    system.assert_all_told()
    identifiers = [report.identifier for report in system.ledger.seen]
    assert identifiers.count(identifiers[0]) == 2


def test_a_report_left_behind_is_not_touched_while_its_lease_lasts(system: System) -> None:
    system.use(7)
    system.ledger.faults.append(killed_after_sending)
    system.die()
    assert system.advance().left_behind == 0
    assert system.states() == [(1, "sending", "")]


@pytest.mark.parametrize(
    "fault",
    [answer_lost, *map(answering, (Cause.TIMED_OUT, Cause.SERVER_ERROR, Cause.RATE_LIMITED))],
    ids=["lost after the effect", "lost before it", "server error", "rate limit"],
)
def test_an_answer_that_was_lost_is_asked_for_again_with_the_same_report(
    system: System, fault: Fault
) -> None:
    system.use(7)
    system.ledger.faults.extend([fault] * 3)
    for _ in range(4):
        system.advance()
        system.later(minutes=10)
    assert len(system.ledger.seen) == 4
    assert len(set(system.ledger.seen)) == 1
    system.assert_all_told()


def test_no_next_revision_is_written_before_the_last_one_has_its_answer(system: System) -> None:
    system.use(7)
    system.ledger.faults.append(answer_lost)
    system.advance()
    system.use(4)
    system.advance()
    assert [state for _, state, _ in system.states()] == ["unknown"]
    assert system.sums()["acme", "page-capture"].unclaimed == 4
    system.later(minutes=10)
    system.advance()
    assert [(revision, state) for revision, state, _ in system.states()] == [
        (1, "accepted"),
        (2, "accepted"),
    ]
    assert [report.value for report in system.ledger.seen] == [7, 7, 11]
    system.assert_all_told()


def test_a_provider_that_has_every_report_already_is_believed(system: System) -> None:
    busy(system)

    def taken_before(provider: Provider, report: UsageReport) -> Answer:
        provider.report_usage(report)
        return provider.report_usage(report)

    system.ledger.always = taken_before
    done = system.advance()
    assert done.causes == {Cause.DUPLICATE_IDENTIFIER: 21}
    system.assert_all_told()


def test_two_reporters_at_once_send_every_report_once(system: System) -> None:
    for back in range(30):
        for customer in ("acme", "globex"):
            system.use(back + 1, LAST_HOUR - timedelta(hours=back), customer=customer)
    reporters = [system.reporter(senders=2, batch=3) for _ in range(3)]
    gate = threading.Barrier(3)

    def run(index: int) -> None:
        gate.wait(timeout=10)
        reporters[index].advance()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, range(3)))
    system.advance()
    identifiers = [report.identifier for report in system.ledger.seen]
    assert len(identifiers) == len(set(identifiers)) == 60
    system.assert_all_told()


def test_there_is_never_more_than_one_report_in_flight_per_customer_and_meter(
    system: System,
) -> None:
    for back in range(6):
        for customer in ("acme", "globex"):
            system.use(back + 1, LAST_HOUR - timedelta(hours=back), customer=customer)
    in_flight: set[tuple[str, str]] = set()
    together = []

    def watched(provider: Provider, report: UsageReport) -> Answer:
        lane = (report.customer_ref, report.meter)
        assert lane not in in_flight
        in_flight.add(lane)
        together.append(len(in_flight))
        answer = provider.report_usage(report)
        in_flight.discard(lane)
        return answer

    system.ledger.always = watched
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(system.reporter(senders=4).advance) for _ in range(3)]
        for run in runs:
            run.result(timeout=30)
    assert len(together) == 12
    system.assert_all_told()


def test_an_outage_of_thirty_hours_is_caught_up_with(system: System) -> None:
    system.ledger.always = answering(Cause.CONNECTION_FAILED)
    for hours in range(30):
        system.use(hours + 1, LAST_HOUR + timedelta(hours=hours))
        system.use(2, LAST_HOUR, customer="globex")
        system.advance()
        system.sums()
        system.later(hours=1)
    system.ledger.always = None
    system.later(hours=1)
    system.advance()
    system.assert_all_told()


def test_no_beat_for_thirty_hours_is_one_run(system: System) -> None:
    for hours in range(30):
        system.use(hours + 1, LAST_HOUR + timedelta(hours=hours))
    system.later(hours=31)
    assert system.advance().planned == 30
    system.assert_all_told()


def test_late_rows_make_a_new_revision_of_their_own_hour(system: System) -> None:
    old = LAST_HOUR - timedelta(days=2)
    system.use(10, old)
    system.advance()
    system.use(5, old)
    system.advance()
    assert [(report.value, report.hour) for report in system.ledger.seen] == [(10, old), (15, old)]
    system.assert_all_told()


def test_rows_later_than_the_recent_hours_are_found_within_a_day(system: System) -> None:
    old = LAST_HOUR - timedelta(days=8)
    system.use(10, old)
    system.advance()
    system.use(5, old)
    assert system.advance().planned == 0
    assert system.sums()["acme", "page-capture"].unclaimed == 5
    system.later(hours=7)
    assert system.advance().planned == 1
    system.assert_all_told()


def test_a_row_whose_transaction_commits_after_one_with_a_higher_id_is_told(
    system: System, database_url: str
) -> None:
    slow = writer_engine(database_url)
    written, may_commit = threading.Event(), threading.Event()

    @sa.event.listens_for(slow, "commit")
    def wait(_: Connection) -> None:
        written.set()
        assert may_commit.wait(timeout=20)

    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(
            system.use, 100, LAST_HOUR - timedelta(hours=1), writer=system.new_writer(slow)
        )
        assert written.wait(timeout=20)
        system.use(7)
        system.advance()
        assert system.told(system.ledger) == {("acme", "page-capture"): 7}
        may_commit.set()
        late.result(timeout=20)
    slow.dispose()
    system.advance()
    assert system.told(system.ledger) == {("acme", "page-capture"): 107}
    system.assert_all_told()


def test_a_changed_provider_gets_what_the_former_one_has_not(system: System) -> None:
    busy(system)
    system.advance()
    system.use(9)
    system.use(4, THIS_HOUR, customer="globex")
    system.later(hours=1)
    system.advance(system.file)
    assert sum(system.told(system.file).values()) == 13
    system.assert_all_told(system.ledger, system.file)
    system.use(2)
    system.advance(system.ledger)
    system.assert_all_told(system.ledger, system.file)


def test_what_was_never_sent_to_the_former_provider_goes_to_the_new_one(system: System) -> None:
    busy(system)
    system.ledger.always = answering(Cause.KEY_REFUSED)
    system.advance()
    system.advance(system.file)
    assert system.told(system.ledger) == {}
    system.assert_all_told(system.file)


def test_what_the_former_provider_may_have_is_not_told_to_the_new_one(system: System) -> None:
    system.use(7)
    system.ledger.faults.append(answer_lost)
    system.advance()
    system.use(4)
    system.later(hours=1)
    system.advance(system.file)
    assert system.told(system.file) == {}
    assert system.sums()["acme", "page-capture"].open == 7
    # Given the former provider, the reporter brings it to its answer, and the rest goes to the new.
    system.former = (system.ledger,)
    system.advance(system.file)
    assert system.told(system.ledger) == {("acme", "page-capture"): 7}
    assert system.told(system.file) == {("acme", "page-capture"): 4}
    system.assert_all_told(system.ledger, system.file)


def test_what_the_former_provider_refused_goes_to_the_new_one(system: System) -> None:
    system.use(7)
    system.ledger.faults.append(answering(Cause.TOO_OLD))
    system.advance()
    assert system.sums()["acme", "page-capture"].parked == 7
    system.advance(system.file)
    system.assert_all_told(system.file)


@pytest.mark.parametrize(
    "cause", [Cause.TOO_OLD, Cause.METER_MISSING, Cause.CUSTOMER_MISSING, Cause.INVALID_REQUEST]
)
def test_what_is_refused_is_parked_keeps_accruing_and_is_sent_when_a_person_says_so(
    system: System, cause: Cause
) -> None:
    system.use(7)
    system.ledger.faults.append(answering(cause))
    system.advance()
    system.use(5)
    system.advance()
    assert len(system.ledger.seen) == 1
    assert system.sums()["acme", "page-capture"].parked == 12
    assert system.states() == [(1, "parked", cause.value), (2, "parked", cause.value)]
    assert not system.reports.retry(1, now=system.clock.now())
    assert system.reports.retry(2, now=system.clock.now())
    system.advance()
    system.assert_all_told()


def test_a_refusal_after_a_lost_answer_does_not_free_the_hour_for_another_provider(
    system: System,
) -> None:
    system.use(7)
    system.ledger.faults.extend([answer_lost, answering(Cause.CUSTOMER_MISSING)])
    system.advance()
    system.later(minutes=10)
    system.advance()
    system.later(minutes=10)
    system.advance(system.file)
    assert system.told(system.ledger) == {("acme", "page-capture"): 7}
    assert system.told(system.file) == {}
    assert system.reports.retry(1, now=system.clock.now())
    system.advance()
    system.assert_all_told()


def adding(sku: str) -> Metered:
    plain = metered(sku).meter
    return Metered(meter=type(plain)(sku=sku, name=plain.name, display_name=sku, overwrites=False))


def test_a_meter_that_adds_gets_differences_and_is_not_asked_twice_after_a_day(
    system: System,
) -> None:
    system.metered = adding
    system.ledger.always = answering(Cause.TAKEN)
    system.use(7)
    system.advance()
    system.use(4)
    system.advance()
    assert [report.value for report in system.ledger.seen] == [7, 4]
    system.use(2)
    system.ledger.always = answering(Cause.TIMED_OUT)
    system.advance()
    system.later(hours=21)
    system.advance()
    assert [report.value for report in system.ledger.seen] == [7, 4, 2, 2]
    system.later(hours=2)
    system.advance()
    assert len(system.ledger.seen) == 4
    assert system.states()[-1] == (3, "parked", "no_answer")
    assert system.sums()["acme", "page-capture"].parked == 2
