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
    Container,
    Fault,
    answer_lost,
    answering,
    killed_after_sending,
    killed_before_sending,
)
from sqlalchemy.engine import Connection

from billing.postgres.engines import writer_engine
from billing.providers.port import Provider, ProviderAnswer, ProviderCause, UsageReport
from billing.reporting.usage_report import ReportState


def busy(container: Container) -> None:
    """Ten hours of usage of two customers and two SKUs."""
    for back in range(10):
        hour = LAST_HOUR - timedelta(hours=back)
        container.use(1_000_001 + back, hour)
        container.use(3, hour, customer="globex", sku="premium-proxy-search")
    container.use(5, sku="premium-proxy-search")


def test_what_was_logged_is_told_once_per_customer_sku_and_hour(container: Container) -> None:
    busy(container)
    done = container.advance()
    assert (done.planned, done.became[ReportState.ACCEPTED]) == (21, 21)
    container.assert_all_told()


def test_a_second_run_tells_nothing(container: Container) -> None:
    busy(container)
    container.advance()
    container.ledger.seen.clear()
    assert container.advance().planned == 0
    assert container.ledger.seen == []


def test_an_hour_that_is_not_over_waits_and_counts_as_unclaimed(container: Container) -> None:
    container.use(7, THIS_HOUR)
    assert container.advance().planned == 0
    assert container.sums()["acme", "page-capture"].unclaimed == 7
    container.later(minutes=34)
    assert container.advance().planned == 0
    container.later(minutes=1)
    assert container.advance().planned == 1
    container.assert_all_told()


@pytest.mark.parametrize("death", [killed_before_sending, killed_after_sending])
def test_a_reporter_killed_between_claim_and_commit_loses_nothing(
    container: Container, death: Fault
) -> None:
    busy(container)
    container.ledger.faults.append(death)
    container.die()
    sums = container.sums()
    assert sum(s.open for s in sums.values()) == sum(s.logged for s in sums.values())
    container.later(minutes=6)
    done = container.advance()
    assert done.left_behind == 3  # one per customer and meter
    container.assert_all_told()
    identifiers = [report.identifier for report in container.ledger.seen]
    assert identifiers.count(identifiers[0]) == 2


def test_a_report_left_behind_is_not_touched_while_its_lease_lasts(container: Container) -> None:
    container.use(7)
    container.ledger.faults.append(killed_after_sending)
    container.die()
    assert container.advance().left_behind == 0
    assert container.states() == [(1, "sending", "")]


@pytest.mark.parametrize(
    "fault",
    [
        answer_lost,
        *map(
            answering,
            (ProviderCause.TIMED_OUT, ProviderCause.SERVER_ERROR, ProviderCause.RATE_LIMITED),
        ),
    ],
    ids=["lost after the effect", "lost before it", "server error", "rate limit"],
)
def test_an_answer_that_was_lost_is_asked_for_again_with_the_same_report(
    container: Container, fault: Fault
) -> None:
    container.use(7)
    container.ledger.faults.extend([fault] * 3)
    for _ in range(4):
        container.advance()
        container.later(minutes=10)
    assert len(container.ledger.seen) == 4
    assert len(set(container.ledger.seen)) == 1
    container.assert_all_told()


def test_no_next_revision_is_written_before_the_last_one_has_its_answer(
    container: Container,
) -> None:
    container.use(7)
    container.ledger.faults.append(answer_lost)
    container.advance()
    container.use(4)
    container.advance()
    assert [state for _, state, _ in container.states()] == ["unknown"]
    assert container.sums()["acme", "page-capture"].unclaimed == 4
    container.later(minutes=10)
    container.advance()
    assert [(revision, state) for revision, state, _ in container.states()] == [
        (1, "accepted"),
        (2, "accepted"),
    ]
    assert [report.value for report in container.ledger.seen] == [7, 7, 11]
    container.assert_all_told()


def test_a_provider_that_has_every_report_already_is_believed(container: Container) -> None:
    busy(container)

    def taken_before(provider: Provider, report: UsageReport) -> ProviderAnswer:
        provider.report_usage(report)
        return provider.report_usage(report)

    container.ledger.always = taken_before
    done = container.advance()
    assert done.causes == {ProviderCause.DUPLICATE_IDENTIFIER: 21}
    container.assert_all_told()


def test_two_reporters_at_once_send_every_report_once(container: Container) -> None:
    for back in range(30):
        for customer in ("acme", "globex"):
            container.use(back + 1, LAST_HOUR - timedelta(hours=back), customer=customer)
    reporters = [container.reporter(senders=2, batch=3) for _ in range(3)]
    gate = threading.Barrier(3)

    def run(index: int) -> None:
        gate.wait(timeout=60)
        reporters[index].advance()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, range(3)))
    container.advance()
    identifiers = [report.identifier for report in container.ledger.seen]
    assert len(identifiers) == len(set(identifiers)) == 60
    container.assert_all_told()


def test_there_is_never_more_than_one_report_in_flight_per_customer_and_meter(
    container: Container,
) -> None:
    for back in range(6):
        for customer in ("acme", "globex"):
            container.use(back + 1, LAST_HOUR - timedelta(hours=back), customer=customer)
    in_flight: set[tuple[str, str]] = set()
    together = []

    def watched(provider: Provider, report: UsageReport) -> ProviderAnswer:
        lane = (report.customer_ref, report.meter)
        assert lane not in in_flight
        in_flight.add(lane)
        together.append(len(in_flight))
        answer = provider.report_usage(report)
        in_flight.discard(lane)
        return answer

    container.ledger.always = watched
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(container.reporter(senders=4).advance) for _ in range(3)]
        for run in runs:
            run.result(timeout=30)
    assert len(together) == 12
    container.assert_all_told()


def test_an_outage_of_thirty_hours_is_caught_up_with(container: Container) -> None:
    container.ledger.always = answering(ProviderCause.CONNECTION_FAILED)
    for hours in range(30):
        container.use(hours + 1, LAST_HOUR + timedelta(hours=hours))
        container.use(2, LAST_HOUR, customer="globex")
        container.advance()
        container.sums()
        container.later(hours=1)
    container.ledger.always = None
    container.later(hours=1)
    container.advance()
    container.assert_all_told()


def test_no_beat_for_thirty_hours_is_one_run(container: Container) -> None:
    for hours in range(30):
        container.use(hours + 1, LAST_HOUR + timedelta(hours=hours))
    container.later(hours=31)
    assert container.advance().planned == 30
    container.assert_all_told()


def test_late_rows_make_a_new_revision_of_their_own_hour(container: Container) -> None:
    old = LAST_HOUR - timedelta(days=2)
    container.use(10, old)
    container.advance()
    container.use(5, old)
    container.advance()
    assert [(report.value, report.hour) for report in container.ledger.seen] == [
        (10, old),
        (15, old),
    ]
    container.assert_all_told()


def test_rows_later_than_the_recent_hours_are_found_within_a_day(container: Container) -> None:
    old = LAST_HOUR - timedelta(days=8)
    container.use(10, old)
    container.advance()
    container.use(5, old)
    assert container.advance().planned == 0
    assert container.sums()["acme", "page-capture"].unclaimed == 5
    container.later(hours=7)
    assert container.advance().planned == 1
    container.assert_all_told()


def test_a_row_whose_transaction_commits_after_one_with_a_higher_id_is_told(
    container: Container, database_url: str
) -> None:
    slow = writer_engine(database_url)
    written, may_commit = threading.Event(), threading.Event()

    @sa.event.listens_for(slow, "commit")
    def wait(_: Connection) -> None:
        written.set()
        assert may_commit.wait(timeout=60)

    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(
            container.use, 100, LAST_HOUR - timedelta(hours=1), writer=container.new_writer(slow)
        )
        assert written.wait(timeout=60)
        container.use(7)
        container.advance()
        assert container.told(container.ledger) == {("acme", "page-capture"): 7}
        may_commit.set()
        late.result(timeout=20)
    slow.dispose()
    container.advance()
    assert container.told(container.ledger) == {("acme", "page-capture"): 107}
    container.assert_all_told()


def test_a_changed_provider_gets_what_the_former_one_has_not(container: Container) -> None:
    busy(container)
    container.advance()
    container.use(9)
    container.use(4, THIS_HOUR, customer="globex")
    container.later(hours=1)
    container.advance(container.file)
    assert sum(container.told(container.file).values()) == 13
    container.assert_all_told(container.ledger, container.file)
    container.use(2)
    container.advance(container.ledger)
    container.assert_all_told(container.ledger, container.file)


def test_what_was_never_sent_to_the_former_provider_goes_to_the_new_one(
    container: Container,
) -> None:
    busy(container)
    container.ledger.always = answering(ProviderCause.KEY_REFUSED)
    container.advance()
    container.advance(container.file)
    assert container.told(container.ledger) == {}
    container.assert_all_told(container.file)


def test_what_the_former_provider_may_have_is_not_told_to_the_new_one(container: Container) -> None:
    container.use(7)
    container.ledger.faults.append(answer_lost)
    container.advance()
    container.use(4)
    container.later(hours=1)
    container.advance(container.file)
    assert container.told(container.file) == {}
    assert container.sums()["acme", "page-capture"].open == 7
    # Given the former provider, the reporter brings it to its answer, and the rest goes to the new.
    container.former = (container.ledger,)
    container.advance(container.file)
    assert container.told(container.ledger) == {("acme", "page-capture"): 7}
    assert container.told(container.file) == {("acme", "page-capture"): 4}
    container.assert_all_told(container.ledger, container.file)


def test_what_the_former_provider_refused_goes_to_the_new_one(container: Container) -> None:
    container.use(7)
    container.ledger.faults.append(answering(ProviderCause.TOO_OLD))
    container.advance()
    assert container.sums()["acme", "page-capture"].parked == 7
    container.advance(container.file)
    container.assert_all_told(container.file)


@pytest.mark.parametrize(
    "cause",
    [
        ProviderCause.TOO_OLD,
        ProviderCause.METER_MISSING,
        ProviderCause.CUSTOMER_MISSING,
        ProviderCause.INVALID_REQUEST,
    ],
)
def test_what_is_refused_is_parked_keeps_accruing_and_is_sent_when_a_person_says_so(
    container: Container, cause: ProviderCause
) -> None:
    container.use(7)
    container.ledger.faults.append(answering(cause))
    container.advance()
    container.use(5)
    container.advance()
    assert len(container.ledger.seen) == 1
    assert container.sums()["acme", "page-capture"].parked == 12
    assert container.states() == [(1, "parked", cause.value), (2, "parked", cause.value)]
    assert not container.reports.retry(1, now=container.clock.now())
    assert container.reports.retry(2, now=container.clock.now())
    container.advance()
    container.assert_all_told()


def test_a_refusal_after_a_lost_answer_does_not_free_the_hour_for_another_provider(
    container: Container,
) -> None:
    container.use(7)
    container.ledger.faults.extend([answer_lost, answering(ProviderCause.CUSTOMER_MISSING)])
    container.advance()
    container.later(minutes=10)
    container.advance()
    container.later(minutes=10)
    container.advance(container.file)
    assert container.told(container.ledger) == {("acme", "page-capture"): 7}
    assert container.told(container.file) == {}
    assert container.reports.retry(1, now=container.clock.now())
    container.advance()
    container.assert_all_told()
