"""The ingestion tasks metered: eagerly, on a system in memory, fetching from loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from celery import Celery, current_app
from celery.result import EagerResult
from local_site import page, serve

from billing.core.clock import SystemClock
from billing.core.errors import InvalidValue
from billing.core.sku import (
    DenialPolicy,
    FailurePolicy,
    Price,
    Pricing,
    Sku,
    UnavailablePolicy,
)
from billing.settings import Settings
from billing.testing import MemorySystem
from workers.errors import QuotaExceeded
from workers.metering import Metering
from workers.tasks import ingestion
from workers.tasks.bodies import DEFAULT_MAX_PAGES
from workers.tasks.errors import BadStatusError, RefusedError
from workers.tasks.fetch import Page

CREDIT = 1_000_000


def sku(sku_id: str, pricing: Pricing, failure_policy: FailurePolicy) -> Sku:
    return Sku(
        id=sku_id,
        unit="unit",
        pricing=pricing,
        hold_quantity=1,
        failure_policy=failure_policy,
        denial_policy=DenialPolicy.FAIL,
        unavailable_policy=UnavailablePolicy.RETRY,
        allow_limit=0,
        prices=(Price(CREDIT, datetime(2020, 1, 1, tzinfo=UTC)),),
    )


SKUS = [
    sku("page-capture", Pricing.FIXED, FailurePolicy.RELEASE),
    sku("premium-proxy-search", Pricing.FIXED, FailurePolicy.RELEASE),
    sku("forensic-search", Pricing.MEASURED, FailurePolicy.CHARGE),
]


@dataclass
class Bench:
    app: Celery
    container: MemorySystem

    def submit(self, name: str, *args: object) -> EagerResult:
        return self.app.tasks[f"workers.tasks.{name}"].bill_to("acme").delay(*args)


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench_with() -> Iterator[MakeBench]:
    before = current_app._get_current_object()

    def make(**settings: object) -> Bench:
        app = Celery("ingestion", broker="memory://")
        app.conf.update(task_always_eager=True, task_store_eager_result=False)
        given = {"fetch_allow_networks": "127.0.0.0/8", "fetch_ports": "*", **settings}
        container = MemorySystem(skus=SKUS, credits={"acme": "10"}, clock=SystemClock())
        Metering(app, Settings(**given), build=lambda _: container)
        return Bench(app, container)

    yield make
    before.set_current()


def test_a_capture_costs_one_unit_and_is_about_the_page(bench_with: MakeBench):
    bench = bench_with()
    with serve({"/": page("Home")}) as site:
        got = bench.submit("capture_page", site.url()).get()

    (event,) = bench.container.events
    assert got["title"] == "Home"
    assert (event.sku, event.quantity, event.amount_microcredits) == ("page-capture", 1, CREDIT)
    assert (event.subject, set(event.dimensions)) == (site.url(), {"bytes"})


def test_a_capture_that_fails_is_a_failed_task_and_costs_nothing(bench_with: MakeBench):
    bench = bench_with()
    with serve({}) as site, pytest.raises(BadStatusError):
        bench.submit("capture_page", site.url("/gone")).get()
    (event,) = bench.container.events
    assert (event.line, event.amount_microcredits) == ("failed:page-capture:1", 0)
    assert event.subject == site.url("/gone")


def test_loopback_is_refused_unless_the_settings_allow_it(bench_with: MakeBench):
    bench = bench_with(fetch_allow_networks="")
    with serve({"/": page("Home")}) as site:
        with pytest.raises(RefusedError):
            bench.submit("capture_page", site.url()).get()
        assert site.paths == []


def test_a_premium_search_costs_one_unit_and_records_what_the_proxy_costs(bench_with: MakeBench):
    inside = "http://127.0.0.1:81/"
    with serve({inside: page("Found", text="word")}) as proxy:
        bench = bench_with(proxy_url=proxy.url(""), proxy_cost_micros=700)
        got = bench.submit("proxy_search", "word", [inside, f"{inside}gone"]).get()

    (event,) = bench.container.events
    assert [match["title"] for match in got["matches"]] == ["Found"]
    assert proxy.paths == [inside, f"{inside}gone"]
    assert (event.quantity, event.amount_microcredits, event.cost_micros) == (1, CREDIT, 1400)
    assert event.subject == "word"


def test_a_failed_premium_search_keeps_its_cost(bench_with: MakeBench):
    with serve({}) as proxy:
        bench = bench_with(proxy_url=proxy.url(""), proxy_cost_micros=700)
        with pytest.raises(BadStatusError):
            bench.submit("proxy_search", "word", ["http://127.0.0.1:81/"]).get()
    (event,) = bench.container.events
    assert (event.outcome.value, event.amount_microcredits, event.cost_micros) == ("failed", 0, 700)


def test_a_capture_never_goes_through_the_proxy(bench_with: MakeBench):
    with serve({}) as proxy, serve({"/": page("Home")}) as site:
        bench = bench_with(proxy_url=proxy.url(""))
        bench.submit("capture_page", site.url()).get()
        assert proxy.paths == []


def test_a_premium_search_without_a_proxy_is_direct_and_has_no_proxy_cost(bench_with: MakeBench):
    bench = bench_with(proxy_url=None)
    with serve({"/": page("Home", text="word")}) as site:
        bench.submit("proxy_search", "word", [site.url()]).get()
        assert site.paths == ["/"]
    assert bench.container.events[0].cost_micros == 0


def test_a_forensic_search_holds_for_the_most_and_settles_for_what_it_did(bench_with: MakeBench):
    bench = bench_with()
    with serve({"/": page("Home", "a"), "/a": page("A")}) as site:
        bench.submit("forensic_search", site.url(), "word", 8).get()

    (event,) = bench.container.events
    assert (event.held_microcredits, event.quantity) == (8 * CREDIT, 2)
    assert event.amount_microcredits == 2 * CREDIT


def test_a_forensic_search_that_cannot_be_paid_does_not_run(bench_with: MakeBench):
    bench = bench_with()
    with serve({"/": page("Home")}) as site:
        with pytest.raises(QuotaExceeded):
            bench.submit("forensic_search", site.url(), "word", 11).get()
        assert site.paths == []
    assert bench.container.events[0].amount_microcredits == 0


def test_a_forensic_search_that_dies_is_charged_for_the_pages_it_examined(
    bench_with: MakeBench, monkeypatch: pytest.MonkeyPatch
):
    bench = bench_with()

    class Dying(ingestion.Fetcher):
        def fetch(self, url: str, on_request: Callable[[], None] = lambda: None) -> Page:
            if url.endswith("/b"):
                raise MemoryError
            return super().fetch(url, on_request)

    monkeypatch.setattr(ingestion, "_fetcher", Dying)
    routes = {"/": page("Home", "a", "b"), "/a": page("A")}
    with serve(routes) as site, pytest.raises(MemoryError):
        bench.submit("forensic_search", site.url(), "word", 8).get()
    (event,) = bench.container.events
    assert (event.quantity, event.amount_microcredits) == (2, 2 * CREDIT)


def test_the_hold_gets_the_arguments_of_the_task_by_place_or_by_name():
    assert ingestion.pages_to_hold("http://a.example/", "word") == DEFAULT_MAX_PAGES
    assert ingestion.pages_to_hold("http://a.example/", "word", 7) == 7
    assert ingestion.pages_to_hold("http://a.example/", query="word", max_pages=7) == 7
    with pytest.raises(InvalidValue):
        ingestion.pages_to_hold("http://a.example/", "word", 0)


def test_a_process_has_one_fetcher_for_each_policy():
    policy = ingestion.policy_from(Settings())
    assert ingestion._fetcher(policy) is ingestion._fetcher(ingestion.policy_from(Settings()))


def test_each_task_is_sold_as_its_sku_and_retries_nothing_by_itself(bench_with: MakeBench):
    app = bench_with().app
    names = ("capture_page", "proxy_search", "forensic_search")
    tasks = [app.tasks[f"workers.tasks.{name}"] for name in names]
    assert [task.sku for task in tasks] == [sku.id for sku in SKUS]
    assert not any(getattr(task, "autoretry_for", ()) for task in tasks)
