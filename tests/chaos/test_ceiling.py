"""The ceiling is watched: an account above it is found, whoever holds what is too much."""

from __future__ import annotations

from typing import cast

import pytest
from support import NOW, eventually

from billing.core.clock import to_ms
from billing.core.errors import QuotaUnavailable
from billing.core.reservation import AccountView
from billing.quota.port import QuotaStore
from lab.chaos.catalogue import CUSTOMERS
from lab.chaos.ceiling import Ceiling, above


def account(*, settled: int, held: int, leases: int = 0, customer: str = "acme") -> AccountView:
    return AccountView(
        customer=customer,
        epoch=1,
        version=1,
        suspended=False,
        granted_microcredits=100,
        held_microcredits=held,
        settled_microcredits=settled,
        late_microcredits=0,
        period_start_ms=to_ms(NOW),
        period_end_ms=to_ms(NOW) + 1,
        budgets={},
        spent={},
        leases=leases,
    )


class Accounts:
    """A quota store that has one account, or does not answer."""

    def __init__(self, found: AccountView | None, *, is_away: bool = False) -> None:
        self._found, self._is_away = found, is_away

    def account(self, customer: str) -> AccountView | None:
        if self._is_away:
            raise QuotaUnavailable("no answer")
        return self._found if customer == CUSTOMERS[0].id else None


def watch(found: AccountView | None, *, is_away: bool = False) -> Ceiling:
    return Ceiling(cast("QuotaStore", Accounts(found, is_away=is_away)))


@pytest.mark.parametrize(("settled", "held"), [(0, 0), (60, 40), (100, 0), (0, 100)])
def test_up_to_the_ceiling_all_is_well(settled: int, held: int):
    assert above(account(settled=settled, held=held)) is None


@pytest.mark.parametrize(("settled", "held"), [(101, 0), (0, 101), (60, 41)])
def test_one_microcredit_above_is_found(settled: int, held: int):
    found = above(account(settled=settled, held=held, leases=2))
    assert found is not None
    assert str(found) == f"acme: settled {settled} and held {held} (2 leases) of 100"


def test_a_look_finds_it_and_counts_what_it_saw():
    ceiling = watch(account(settled=60, held=41, leases=3))
    ceiling.look()
    ceiling.look()
    assert [each.held for each in ceiling.found] == [41, 41]
    assert (ceiling.looked, ceiling.most_leases) == (2, 3)


def test_what_a_lost_tail_left_is_excused_and_kept():
    ceiling = watch(account(settled=60, held=41))
    ceiling.tail_lost = True
    ceiling.look()
    assert ceiling.found == []
    assert len(ceiling.excused) == 1


def test_a_store_that_is_away_tells_nothing():
    ceiling = watch(account(settled=101, held=0), is_away=True)
    ceiling.look()
    assert (ceiling.looked, ceiling.found) == (0, [])


def test_a_watch_that_ended_early_is_told():
    ceiling = watch(account(settled=0, held=0))
    ceiling.start()
    eventually(lambda: ceiling.looked > 0, message="it looks")
    ceiling.stop()
    assert ceiling.watched_to_the_end
    ceiling.stop()
    assert not ceiling.watched_to_the_end
