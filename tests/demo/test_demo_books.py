from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from support import NOW, make_event

from billing.container import Container
from billing.core.clock import ManualClock, SystemClock
from billing.core.reservation import HoldRequest
from billing.core.usage_event import Outcome, UsageEvent, denied_line
from billing.quota.account_loader import AccountLoader
from billing.settings import Settings
from lab.demo.books import Books, events_logged, read_books
from lab.demo.catalogue import add_customer, add_sku
from lab.demo.scenario import CUSTOMERS, SKUS

CREDIT = 1_000_000
NAMES = [plan.id for plan in CUSTOMERS]


@pytest.fixture
def container(settings: Settings, clock: ManualClock, redis_client: object) -> Iterator[Container]:
    """The demo's catalogue on servers of this test's own; ``redis_client`` deletes its keys."""
    assert redis_client
    with Container(settings, clock) as container:
        for sku in SKUS:
            add_sku(container, sku)
        for customer in CUSTOMERS:
            add_customer(container, customer)
        yield container


def write(container: Container, *events: UsageEvent) -> None:
    container.writer.write([event.to_wire() for event in events])


def denial(task_id: str) -> UsageEvent:
    return make_event(
        customer="corvus",
        task_id=task_id,
        line=denied_line("page-capture", "insufficient_credits"),
        outcome=Outcome.DENIED,
        reason="insufficient_credits",
        quantity=0,
        amount_microcredits=0,
        held_microcredits=0,
    )


def of(books: Books, customer: str):
    return next(book for book in books.customers if book.customer == customer)


def test_the_catalogue_can_be_put_there_twice(container: Container):
    for sku in SKUS:
        add_sku(container, sku)
    for customer in CUSTOMERS:
        add_customer(container, customer)
    assert {sku.id for sku in container.catalog.list()} == {plan.id for plan in SKUS}
    assert {plan.id: container.grants.granted(plan.id) for plan in CUSTOMERS} == {
        plan.id: int(plan.credits) * CREDIT for plan in CUSTOMERS
    }


def test_prices_policies_and_budgets_are_those_of_the_plan(container: Container):
    forensic = container.catalog.get("forensic-search")
    assert forensic.unit_price_at(NOW) == CREDIT // 2
    assert (forensic.pricing, forensic.hold_quantity) == ("measured", 40)
    assert forensic.failure_policy == "charge"
    assert {
        each.sku: each.limit_microcredits for each in container.customers.budgets("delphi")
    } == {
        "*": 120 * CREDIT,
        "premium-proxy-search": 60 * CREDIT,
    }


def test_books_of_a_demo_that_has_not_begun_are_empty(container: Container):
    books = read_books(container, NAMES)
    assert (books.events, books.logged, books.rolled_up, books.settled) == (0, 0, 0, 0)
    assert [book.customer for book in books.customers] == NAMES
    assert of(books, "corvus").granted == 100 * CREDIT


def test_books_add_up_what_the_log_has_per_customer(container: Container):
    write(
        container,
        make_event(customer="atlas", cost_micros=300),
        make_event(customer="atlas", cost_micros=200, held_microcredits=2 * CREDIT),
        denial("c1"),
    )
    books = read_books(container, NAMES)
    atlas, corvus = of(books, "atlas"), of(books, "corvus")
    assert (atlas.logged, atlas.held, atlas.cost_micros) == (2 * CREDIT, 3 * CREDIT, 500)
    assert (atlas.lines("succeeded"), atlas.lines("denied")) == (2, 0)
    assert corvus.outcomes == {("denied", "insufficient_credits"): 1}
    assert (books.events, events_logged(container)) == (3, 3)
    assert books.logged == books.rolled_up == 2 * CREDIT


def test_an_event_told_twice_is_no_duplicate_in_the_books(container: Container):
    event = make_event(customer="atlas")
    write(container, event, event)
    write(container, event)
    books = read_books(container, NAMES)
    assert (books.events, books.duplicates) == (1, 0)


def test_a_task_with_two_rows_of_one_line_is_a_duplicate(container: Container):
    event = make_event(customer="atlas", task_id="t1")
    # Metered at another instant, the same line has another id: what the invariant is there for.
    again = make_event(customer="atlas", task_id="t1", metered_at=NOW.replace(minute=1))
    write(container, event, again)
    assert read_books(container, NAMES).duplicates == 1


def test_an_open_hold_shows_in_the_books(container: Container):
    # Redis admits by its own clock: the account's period is that of today.
    AccountLoader(container.writer_engine, container.quota, SystemClock()).rebuild("atlas")
    container.quota.reserve(
        HoldRequest(
            task_id="t1",
            customer="atlas",
            sku="page-capture",
            amount_microcredits=CREDIT,
            ttl_seconds=60,
        )
    )
    books = read_books(container, NAMES)
    atlas = of(books, "atlas")
    assert (books.open_holds, atlas.held_now, atlas.available) == (1, CREDIT, 999 * CREDIT)


def test_what_waits_in_the_outbox_and_what_is_dead_show_in_the_books(container: Container):
    container.account_loader.rebuild("corvus")
    container.quota.append("corvus", denial("c1"))
    container.writer.write([b"not an event"])
    books = read_books(container, NAMES)
    assert (books.outbox, books.dead) == (1, 1)


def test_the_newest_receipt_lines_come_first_and_are_ten_at_most(container: Container):
    write(
        container,
        *(
            make_event(customer="atlas", task_id=f"t{n}", metered_at=NOW.replace(second=n))
            for n in range(12)
        ),
    )
    latest = of(read_books(container, NAMES), "atlas").latest
    assert [line.task_id for line in latest] == [f"t{n}" for n in range(11, 1, -1)]


def test_reading_the_books_changes_nothing(container: Container, engine: sa.Engine):
    write(container, make_event(customer="atlas"))
    assert read_books(container, NAMES) == read_books(container, NAMES)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM usage_events")) == 1
