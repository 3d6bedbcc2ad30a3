"""A customer of ours is one customer of Stripe's, whatever becomes of an answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from stripe_bench import CUSTOMERS, LocalStripe, delete, until_answered

from billing.providers.port import ProviderCause
from billing.providers.stripe.client import StripeUnanswered
from billing.providers.stripe.customer_link import CUSTOMER_METADATA
from billing.providers.stripe.provider import StripeProvider


def test_a_customer_is_made_with_its_name_and_found_by_its_metadata(local: LocalStripe) -> None:
    ref = local.adapter().link_customer("acme", "Acme Ltd")
    there = local.person.customers.retrieve(ref)
    assert there.name == "Acme Ltd"
    assert there.metadata.to_dict() == {CUSTOMER_METADATA: "acme"}
    assert local.adapter().link_customer("acme", "Acme Ltd") == ref
    assert local.count("customers") == 1


def test_a_customer_linked_by_hand_is_taken(local: LocalStripe) -> None:
    made = local.person.customers.create({"metadata": {CUSTOMER_METADATA: "acme"}})
    assert local.adapter().link_customer("acme", "Acme") == made.id


def test_of_several_customers_linked_by_hand_every_process_takes_the_oldest(
    local: LocalStripe,
) -> None:
    metadata = {CUSTOMER_METADATA: "acme"}
    oldest = local.person.customers.create({"metadata": metadata})
    local.control.post("clock", advance_seconds=5)
    local.person.customers.create({"metadata": metadata})
    assert local.adapter().link_customer("acme", "Acme") == oldest.id


def test_a_dry_run_makes_no_customer(local: LocalStripe) -> None:
    assert local.adapter().link_customer("acme", "Acme", dry_run=True) == ""
    assert local.count("customers") == 0
    ref = local.adapter().link_customer("acme", "Acme")
    assert local.adapter().link_customer("acme", "Acme", dry_run=True) == ref


@pytest.mark.parametrize("second_name", ["Acme", "Acme Ltd"])
def test_a_customer_that_search_does_not_know_yet_is_not_made_twice(
    local: LocalStripe, second_name: str
) -> None:
    local.control.post("settings", search_seconds=60)
    ref = local.adapter().link_customer("acme", "Acme")
    assert local.adapter().link_customer("acme", second_name) == ref
    assert local.count("customers") == 1


@pytest.mark.parametrize("search_seconds", [0, 60])
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "timeout"},
        {"kind": "timeout", "effect": False},
        {"kind": "server_error"},
        {"kind": "server_error", "effect": True},
        {"kind": "rate_limit"},
        {"kind": "lock_timeout"},
    ],
    ids=str,
)
def test_one_customer_is_made_whatever_becomes_of_the_answer(
    local: LocalStripe, fault: dict[str, Any], search_seconds: int
) -> None:
    local.control.post("settings", search_seconds=search_seconds)
    local.control.fault(path=CUSTOMERS, method="POST", **fault)
    ref, failed = until_answered(lambda: local.adapter().link_customer("acme", "Acme"))
    assert failed == 1
    assert local.count("customers") == 1
    assert local.person.customers.retrieve(ref).metadata.to_dict()[CUSTOMER_METADATA] == "acme"


def fail_each_first_answer(local: LocalStripe, runs: int) -> None:
    """So many runs, each of which meets a 500 under a key that was not used before."""
    for run in range(runs):
        # Every run walks the same series from its beginning: stored answers, then the next key.
        local.control.fault("server_error", path=CUSTOMERS, method="POST", skip=run)
        with pytest.raises(StripeUnanswered) as unanswered:
            local.adapter().link_customer("acme", "Acme")
        assert unanswered.value.cause is ProviderCause.SERVER_ERROR


def test_a_500_that_sticks_to_several_keys_is_got_past(local: LocalStripe) -> None:
    fail_each_first_answer(local, 2)
    local.adapter().link_customer("acme", "Acme")
    made = [one for one in local.requests(CUSTOMERS) if one["method"] == "POST"]
    keys = ["", ":2", ":3"]
    series = [f"wb:cus:acme{end}" for end in (*keys[:1], *keys[:2], *keys)]
    assert [one["idempotency_key"] for one in made] == series
    assert [one["status"] for one in made] == [500] * 5 + [200]
    assert local.count("customers") == 1


def test_the_series_of_keys_ends(local: LocalStripe) -> None:
    fail_each_first_answer(local, 5)
    with pytest.raises(StripeUnanswered, match="5 attempts of wb:cus:acme") as ended:
        local.adapter().link_customer("acme", "Acme")
    assert ended.value.cause is ProviderCause.CONFLICT
    assert local.count("customers") == 0


def test_a_deleted_customer_is_made_anew_and_never_given_back(
    local: LocalStripe, provider: StripeProvider
) -> None:
    first = provider.link_customer("acme", "Acme")
    delete(local, first)
    second = provider.link_customer("acme", "Acme")
    assert second != first
    assert not getattr(local.person.customers.retrieve(second), "deleted", False)
    assert provider.link_customer("acme", "Acme") == second


def test_eight_at_once_make_one_customer(local: LocalStripe) -> None:
    local.control.post("settings", search_seconds=60)
    adapters = [local.adapter() for _ in range(8)]

    def link(adapter: StripeProvider) -> str:
        return until_answered(lambda: adapter.link_customer("acme", "Acme"))[0]

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(link, adapters))) == 1
    assert local.count("customers") == 1
