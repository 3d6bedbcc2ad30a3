"""Setting a provider up, whatever becomes of it in the middle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from support import NOW, add_customer

from billing.catalog.customers import CustomerStore
from billing.core.customer import Customer, CustomerStatus
from billing.core.errors import AlreadyExists
from billing.providers.port import MeterCheck, ProviderMeter, ProviderUnavailable
from billing.reporting.setup import (
    GIVE_UP_AFTER,
    CustomerLine,
    CustomerState,
    MeterState,
    Setup,
    differing,
    known_line,
    meter_line,
)

METERS = [ProviderMeter(sku=sku, name=f"wb.{sku}", display_name=sku) for sku in ("one", "two")]


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Shop:
    """A provider as far as a set-up meets it. ``fails`` are ends of calls about a customer."""

    people: dict[str, str] = field(default_factory=dict)
    meters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fails: dict[str, BaseException] = field(default_factory=dict)
    dies_after_making: bool = False
    asked: list[str] = field(default_factory=list)

    def ensure_meters(
        self, meters: Sequence[ProviderMeter], *, dry_run: bool = False
    ) -> list[MeterCheck]:
        checks = []
        for meter in meters:
            is_new = meter.name not in self.meters and not dry_run
            if is_new:
                self.meters[meter.name] = ()
            there = meter.name in self.meters
            checks.append(
                MeterCheck(
                    meter=meter,
                    provider_id=f"id.{meter.name}" if there else "",
                    created=is_new,
                    differences=self.meters.get(meter.name, ()),
                )
            )
        return checks

    def link_customer(self, customer: str, name: str, *, dry_run: bool = False) -> str:
        del name
        self.asked.append(customer)
        if customer in self.fails:
            raise self.fails[customer]
        if customer not in self.people and not dry_run:
            self.people[customer] = f"cus_{customer}"
            if self.dies_after_making:
                raise Killed
        return self.people.get(customer, "")


@pytest.fixture
def accounts(engine: sa.Engine) -> CustomerStore:
    for customer in "abcdef":
        add_customer(engine, customer)
    return CustomerStore(engine)


def setup(shop: Any, accounts: Any = None) -> Setup:
    return Setup(shop, accounts)


def run(shop: Shop, accounts: CustomerStore, **how: bool) -> dict[str, CustomerLine]:
    options = {"create": True, "dry_run": False} | how
    lines = setup(shop, accounts).customers(accounts.list(), **options)
    return {line.customer: line for line in lines}


def links(accounts: CustomerStore) -> dict[str, str | None]:
    return {one.id: one.stripe_customer_id for one in accounts.list()}


# ---- meters ----


def test_meters_are_made_once():
    shop = Shop()
    assert [line.state for line in setup(shop).meters(METERS, dry_run=True)] == [
        MeterState.MISSING, MeterState.MISSING,
    ]  # fmt: skip
    assert shop.meters == {}
    for state in (MeterState.CREATED, MeterState.THERE):
        lines = setup(shop).meters(METERS, dry_run=False)
        assert [line.state for line in lines] == [state, state]
        assert [line.provider_id for line in lines] == ["id.wb.one", "id.wb.two"]


def test_no_meter_is_made_while_one_differs():
    shop = Shop(meters={"wb.two": ("its window is day",)})
    lines = setup(shop).meters(METERS, dry_run=False)
    assert [line.state for line in lines] == [MeterState.MISSING, MeterState.DIFFERS]
    assert [line.meter.sku for line in differing(lines)] == ["two"]
    assert set(shop.meters) == {"wb.two"}


@given(
    provider_id=st.sampled_from(["", "mtr_1"]),
    created=st.booleans(),
    differences=st.lists(st.text(min_size=1), max_size=2),
)
def test_a_meter_that_differs_is_never_called_right(
    provider_id: str, created: bool, differences: list[str]
):
    line = meter_line(
        MeterCheck(
            meter=METERS[0], provider_id=provider_id, created=created, differences=differences
        )
    )
    assert (line.state is MeterState.DIFFERS) == bool(differences)
    if not differences and not created:
        assert (line.state is MeterState.THERE) == bool(provider_id)


# ---- customers ----


@pytest.mark.parametrize(
    ("ref", "deleted", "state"),
    [
        (None, None, None),
        ("cus_1", None, CustomerState.LINKED),
        (None, NOW, CustomerState.DELETED),
        ("cus_1", NOW, CustomerState.DELETED),
    ],
)
def test_who_is_linked_or_was_deleted_is_not_asked_for(
    ref: str | None, deleted: datetime | None, state: CustomerState | None
):
    customer = Customer(
        id="acme", name="Acme", status=CustomerStatus.ACTIVE, time_zone="UTC",
        stripe_customer_id=ref, created_at=NOW, stripe_deleted_at=deleted,
    )  # fmt: skip
    line = known_line(customer)
    assert (line.state if line else None) is state


@pytest.mark.postgres
def test_everybody_is_linked_once_and_left_alone_then(accounts: CustomerStore):
    shop = Shop(people={"a": "cus_before"})
    first = run(shop, accounts)
    assert first["a"].state is CustomerState.FOUND
    assert {line.state for line in first.values()} == {CustomerState.FOUND, CustomerState.CREATED}
    before, shop.asked = links(accounts), []
    assert before["a"] == "cus_before"
    assert {line.state for line in run(shop, accounts).values()} == {CustomerState.LINKED}
    assert (links(accounts), shop.asked) == (before, [])


@pytest.mark.postgres
@pytest.mark.parametrize("how", [{"dry_run": True}, {"create": False}], ids=str)
def test_nobody_is_made_who_is_not_to_be(accounts: CustomerStore, how: dict[str, bool]):
    shop = Shop(people={"a": "cus_a"})
    lines = run(shop, accounts, **how)
    assert lines["a"].state is CustomerState.FOUND
    assert {line.state for who, line in lines.items() if who != "a"} == {CustomerState.MISSING}
    assert shop.people == {"a": "cus_a"}
    linked = {who for who, ref in links(accounts).items() if ref}
    assert linked == (set() if how.get("dry_run") else {"a"})


@pytest.mark.postgres
def test_a_death_between_making_and_writing_down_is_made_good(accounts: CustomerStore):
    shop = Shop(dies_after_making=True)
    for made in range(1, 7):
        with pytest.raises(Killed):
            run(shop, accounts)
        assert len(shop.people) == made
        assert sum(ref is not None for ref in links(accounts).values()) == made - 1
    run(shop, accounts)
    assert links(accounts) == shop.people


@pytest.mark.postgres
def test_one_without_an_answer_is_told_and_the_others_are_linked(accounts: CustomerStore):
    shop = Shop(
        fails={
            "a": ProviderUnavailable("away"), "b": ProviderUnavailable("away"),
            "d": ProviderUnavailable("away"), "e": AlreadyExists("with another name"),
        }
    )  # fmt: skip
    lines = run(shop, accounts)
    failed = {who for who, line in lines.items() if line.state is CustomerState.FAILED}
    assert failed == {"a", "b", "d", "e"}
    assert lines["e"].detail == "with another name"
    assert {who for who, ref in links(accounts).items() if ref} == {"c", "f"}
    shop.fails = {}
    run(shop, accounts)
    assert links(accounts) == shop.people


@pytest.mark.postgres
def test_a_provider_that_is_away_ends_it_and_who_is_linked_stays_so(accounts: CustomerStore):
    shop = Shop(fails=dict.fromkeys("bcdef", ProviderUnavailable("away")))
    lines: list[CustomerLine] = []

    def collect(found: Iterator[CustomerLine]) -> None:
        lines.extend(found)

    with pytest.raises(ProviderUnavailable):
        collect(setup(shop, accounts).customers(accounts.list(), create=True, dry_run=False))
    assert shop.asked.count("a") == 2
    assert shop.asked[2:] == ["b", "c", "d"][:GIVE_UP_AFTER]
    assert {who for who, ref in links(accounts).items() if ref} == {"a"}


@pytest.mark.postgres
def test_who_was_linked_or_deleted_since_the_list_was_read_stays_so(
    accounts: CustomerStore, engine: sa.Engine
):
    shop = Shop()
    listed = accounts.list()
    accounts.link_stripe("a", "cus_by_hand")
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE customers SET stripe_deleted_at = :now WHERE id = 'b'"), {"now": NOW}
        )
    found = setup(shop, accounts).customers(listed, create=True, dry_run=False)
    lines = {line.customer: line for line in found}
    assert (lines["a"].state, lines["a"].customer_ref) == (CustomerState.LINKED, "cus_by_hand")
    assert lines["b"].state is CustomerState.DELETED
    assert links(accounts)["a"] == "cus_by_hand"
    assert links(accounts)["b"] is None


@pytest.mark.postgres
def test_a_link_that_another_customer_has_is_told(accounts: CustomerStore):
    shop = Shop(people={"a": "cus_b"})
    accounts.link_stripe("b", "cus_b")
    lines = run(shop, accounts)
    assert lines["a"].state is CustomerState.FAILED
    assert "another customer" in lines["a"].detail
    assert links(accounts)["a"] is None


@pytest.mark.postgres
def test_the_pace_is_kept_before_every_question(accounts: CustomerStore):
    shop, taken = Shop(people={"a": "cus_a"}), []
    running = Setup(
        shop,  # type: ignore[arg-type]  # as much of a provider as a set-up needs
        accounts,
        lambda: taken.append(len(shop.asked)),
    )
    list(running.customers(accounts.list(), create=True, dry_run=False))
    assert taken == list(range(len(shop.asked)))
