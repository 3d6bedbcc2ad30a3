"""Grants on a real PostgreSQL: each once, and the fence always knows their sum."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import sqlalchemy as sa

from billing.catalog.customers import CustomerStore
from billing.catalog.grants import GrantStore
from billing.core.errors import AlreadyExists, InvalidValue, NotFound, WeighbridgeError
from billing.postgres.schema import grants, quota_fences

pytestmark = pytest.mark.postgres


@pytest.fixture
def credit(engine: sa.Engine) -> GrantStore:
    CustomerStore(engine).add("acme", "Acme")
    return GrantStore(engine)


def fence(engine: sa.Engine, customer: str = "acme") -> sa.Row[tuple[object, ...]]:
    query = sa.select(quota_fences).where(quota_fences.c.customer_id == customer)
    with engine.connect() as connection:
        return connection.execute(query).one()


def test_a_grant_is_kept_with_its_reference_and_note(credit: GrantStore):
    given = credit.grant("acme", 5_000_000, "order-1", "first order")
    assert (given.customer, given.amount_microcredits) == ("acme", 5_000_000)
    assert (given.reference, given.note) == ("order-1", "first order")
    assert credit.grants("acme") == [given]
    assert credit.find("acme", "order-1") == given
    assert credit.find("acme", "order-2") is None


def test_a_grant_raises_the_fences_sum_and_version(credit: GrantStore, engine: sa.Engine):
    credit.grant("acme", 5, "a")
    credit.grant("acme", 7, "b")
    assert (fence(engine).granted_microcredits, fence(engine).version) == (12, 2)
    assert credit.granted("acme") == 12


def test_the_same_grant_again_is_the_first_one(credit: GrantStore, engine: sa.Engine):
    first = credit.grant("acme", 5, "order-1", "note")
    assert credit.grant("acme", 5, "order-1", "another note") == first
    assert credit.granted("acme") == 5
    assert fence(engine).version == 1


def test_the_same_reference_with_another_amount_is_refused(credit: GrantStore):
    credit.grant("acme", 1_500_000, "order-1")
    with pytest.raises(AlreadyExists, match=r"order-1.*1\.5 credits, not 2:"):
        credit.grant("acme", 2_000_000, "order-1")
    assert credit.granted("acme") == 1_500_000


def test_a_reference_is_one_customers_own(credit: GrantStore, engine: sa.Engine):
    CustomerStore(engine).add("beta", "Beta")
    credit.grant("acme", 5, "order-1")
    credit.grant("beta", 6, "order-1")
    assert (credit.granted("acme"), credit.granted("beta")) == (5, 6)


def test_grants_together_may_reach_two_to_the_53_and_not_pass_it(
    credit: GrantStore, engine: sa.Engine
):
    credit.grant("acme", 2**53 - 1, "a")
    with pytest.raises(InvalidValue) as caught:
        credit.grant("acme", 2, "b")
    assert caught.value.field == "amount_microcredits"
    assert "grant at most 1" in caught.value.remedy
    credit.grant("acme", 1, "c")
    assert credit.granted("acme") == fence(engine).granted_microcredits == 2**53


def test_an_amount_that_cannot_be_right_is_refused(credit: GrantStore, subtests: pytest.Subtests):
    for amount in [0, -1, 2**53 + 1, 2**63, 1.5, "5", True, None]:
        with subtests.test(amount=amount):
            with pytest.raises(InvalidValue, match=r"^amount_microcredits="):
                credit.grant("acme", amount, "order-1")
            assert credit.grants("acme") == []


def test_a_reference_that_cannot_be_right_is_refused(credit: GrantStore, subtests: pytest.Subtests):
    for reference in ["", " ", "x" * 201, "a\x00", "a\nb"]:
        refused = pytest.raises(InvalidValue, match=r"^reference=")
        with subtests.test(reference=reference), refused:
            credit.grant("acme", 5, reference)


def test_an_unknown_customer_gets_nothing(
    credit: GrantStore, engine: sa.Engine, subtests: pytest.Subtests
):
    for customer in ["nobody", "", "a\x00"]:
        with subtests.test(customer=customer):
            for ask in (
                partial(credit.grant, customer, 5, "order-1"),
                partial(credit.grants, customer),
                partial(credit.granted, customer),
            ):
                with pytest.raises(NotFound, match="customers list"):
                    ask()
            with engine.connect() as connection:
                assert connection.scalar(sa.select(sa.func.count()).select_from(grants)) == 0


def test_a_customer_without_grants_has_been_granted_nothing(credit: GrantStore):
    assert credit.granted("acme") == 0
    assert credit.grants("acme") == []


def test_twenty_threads_with_one_reference_give_one_grant(credit: GrantStore, engine: sa.Engine):
    together = threading.Barrier(20)

    def give(_: int) -> int:
        together.wait(timeout=60)
        return credit.grant("acme", 5, "order-1").id

    with ThreadPoolExecutor(20) as pool:
        ids = set(pool.map(give, range(20)))
    assert len(ids) == 1
    assert credit.granted("acme") == fence(engine).granted_microcredits == 5
    assert fence(engine).version == 1


def test_twenty_threads_with_one_reference_and_other_amounts_give_one_grant(credit: GrantStore):
    together = threading.Barrier(20)

    def give(amount: int) -> int | None:
        together.wait(timeout=60)
        try:
            return credit.grant("acme", amount, "order-1").amount_microcredits
        except WeighbridgeError:
            return None

    with ThreadPoolExecutor(20) as pool:
        given = [amount for amount in pool.map(give, range(1, 21)) if amount is not None]
    assert given == [credit.granted("acme")]


def test_the_fence_is_the_sum_of_the_grants_at_every_commit(credit: GrantStore, engine: sa.Engine):
    both = sa.select(
        quota_fences.c.granted_microcredits,
        sa.select(sa.func.coalesce(sa.func.sum(grants.c.amount_microcredits), 0)).scalar_subquery(),
    )
    done = threading.Event()
    seen: list[tuple[int, int]] = []

    def watch() -> None:
        while not done.is_set():
            with engine.connect() as connection:
                granted, total = connection.execute(both).one()
                seen.append((granted, int(total)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: credit.grant("acme", n, f"order-{n}"), range(1, 101)))
    done.set()
    watcher.join(timeout=60)
    assert all(granted == total for granted, total in seen)
    assert len(set(seen)) > 2
    assert fence(engine).granted_microcredits == credit.granted("acme") == 5050
    assert fence(engine).version == 100


def test_concurrent_grants_never_pass_two_to_the_53_together(credit: GrantStore, engine: sa.Engine):
    def give(number: int) -> bool:
        try:
            credit.grant("acme", 2**51, f"order-{number}")
        except InvalidValue:
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(give, range(10))) == 4
    assert credit.granted("acme") == fence(engine).granted_microcredits == 2**53
