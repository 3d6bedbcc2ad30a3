"""Who the five customers are, what they ask for, and what must come of it. Pure.

The numbers are chosen so that every outcome is certain, in whatever order the tasks happen to run:
a customer with 100 credits and 205 captures of one credit gets exactly 100 of them. Where an order
matters (searches before captures, a chord after the credits are gone) the batches are in different
waves, and a wave is submitted when the one before it is done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from billing.core.errors import DenialReason
from billing.core.sku import FailurePolicy, Pricing
from lab.demo.pages import LIGHT_PAGES, SEARCH_SEEDS

CAPTURE: Final = "workers.tasks.capture_page"
PREMIUM: Final = "workers.tasks.proxy_search"
FORENSIC: Final = "workers.tasks.forensic_search"
PATIENT: Final = "lab.demo.patient_capture"

SKU_OF: Final[Mapping[str, str]] = {
    CAPTURE: "page-capture",
    PATIENT: "page-capture",
    PREMIUM: "premium-proxy-search",
    FORENSIC: "forensic-search",
}

SOFT_LIMIT: Final = 2
"""Seconds, of searches that a slow host keeps waiting; they pay for the pages they got to."""
_PREMIUM_PAGES: Final = 3
METADATA_URL: Final = "http://169.254.169.254/latest/meta-data/"
"""What a cloud machine tells its own secrets at; the fetch guard must not let anybody there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkuPlan:
    """One thing that is sold. ``price`` is in credits, a decimal string."""

    id: str
    unit: str
    price: str
    description: str
    pricing: Pricing = Pricing.FIXED
    hold_quantity: int = 1
    failure_policy: FailurePolicy = FailurePolicy.RELEASE


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What must come of a customer's tasks."""

    succeeded: int
    failed: int = 0
    denied: Mapping[DenialReason, int] = field(default_factory=dict)
    broken_chords: int = 0
    """Chords that must fail because one of their tasks was denied."""

    @property
    def tasks(self) -> int:
        """All of them."""
        return self.succeeded + self.failed + sum(self.denied.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerPlan:
    """One customer. Credits and budgets are decimal strings; ``*`` is the budget over all SKUs."""

    id: str
    name: str
    habit: str
    credits: str
    budgets: Mapping[str, str] = field(default_factory=dict)
    expected: Expected


class Way(StrEnum):
    """How a batch is submitted: the ways that a program has to say who pays."""

    BILL_TO = "task.bill_to(customer).delay(…)"
    OPTION = "task.apply_async(…, customer=customer)"
    BLOCK = "with bill_to(customer): task.delay(…)"
    GROUP = "with bill_to(customer): group(…)"
    CHORD = "with bill_to(customer): chord(…)"
    TWICE = "the same message delivered twice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One task to be submitted. No other asks for its ``urls``."""

    task: str
    args: tuple[object, ...]
    urls: tuple[str, ...]
    soft_time_limit: int | None = None

    @property
    def sku(self) -> str:
        """What it is sold as."""
        return SKU_OF[self.task]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Calls that are submitted together, in one way."""

    customer: str
    way: Way
    calls: tuple[Call, ...]
    wave: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the pages are. URLs without a slash at the end."""

    site: str
    difficult: str
    nowhere: str
    """Of a port where nobody listens."""


SKUS: Final = (
    SkuPlan(
        id="page-capture",
        unit="page",
        price="1",
        description="one page, fetched and read",
    ),
    SkuPlan(
        id="premium-proxy-search",
        unit="search",
        price="5",
        description="a search of given pages through the proxy",
    ),
    SkuPlan(
        id="forensic-search",
        unit="page",
        price="0.5",
        description="a crawl, by pages examined; what it examined is charged even if it fails",
        pricing=Pricing.MEASURED,
        hold_quantity=40,
        failure_policy=FailurePolicy.CHARGE,
    ),
)

CUSTOMERS: Final = (
    CustomerPlan(
        id="atlas",
        name="Atlas News Desk",
        habit="a burst of cheap captures",
        credits="1000",
        expected=Expected(succeeded=720),
    ),
    CustomerPlan(
        id="borealis",
        name="Borealis Investigations",
        habit="a few deep searches",
        credits="400",
        expected=Expected(succeeded=14),
    ),
    CustomerPlan(
        id="corvus",
        name="Corvus Research",
        habit="runs out of credits half-way",
        credits="100",
        expected=Expected(
            succeeded=100,
            denied={DenialReason.INSUFFICIENT_CREDITS: 105},
            broken_chords=1,
        ),
    ),
    CustomerPlan(
        id="delphi",
        name="Delphi Analytics",
        habit="has credits, but a monthly budget",
        credits="1000",
        budgets={"*": "120", "premium-proxy-search": "60"},
        expected=Expected(
            succeeded=72,
            denied={DenialReason.SKU_BUDGET_EXCEEDED: 8, DenialReason.BUDGET_EXCEEDED: 40},
        ),
    ),
    CustomerPlan(
        id="elbrus",
        name="Elbrus Monitoring",
        habit="asks for pages that are not there",
        credits="300",
        expected=Expected(succeeded=10, failed=50),
    ),
)


def batches(places: Places) -> list[Batch]:
    """Everything that is submitted, in order. The same places give the same batches."""
    site = _Site(places)
    return [*_atlas(site), *_borealis(site), *_corvus(site), *_delphi(site), *_elbrus(site)]


def interleaved(planned: Sequence[Batch], slices: int = 24) -> list[Batch]:
    """The batches in small pieces, so that nobody's tasks wait behind all of another's.

    Groups and chords stay whole.

    Args:
        planned: Of one wave.
        slices: About how many pieces each customer's tasks are cut into.
    """
    totals = tasks_of(planned)
    begun: Counter[str] = Counter()
    placed: list[tuple[float, Batch]] = []
    for batch in planned:
        size = len(batch.calls)
        if batch.way not in {Way.GROUP, Way.CHORD}:
            size = max(1, -(-totals[batch.customer] // slices))
        for start in range(0, len(batch.calls), size):
            piece = replace(batch, calls=batch.calls[start : start + size])
            placed.append((begun[batch.customer] / totals[batch.customer], piece))
            begun[batch.customer] += len(piece.calls)
    return [piece for _, piece in sorted(placed, key=lambda each: each[0])]


def tasks_of(planned: Iterable[Batch]) -> Counter[str]:
    """How many tasks each customer submits; one that is delivered twice is one."""
    counted: Counter[str] = Counter()
    for batch in planned:
        counted[batch.customer] += len(batch.calls)
    return counted


def waves(planned: Sequence[Batch]) -> list[list[Batch]]:
    """The batches by wave, in order."""
    numbers = sorted({batch.wave for batch in planned})
    return [[batch for batch in planned if batch.wave == number] for number in numbers]


class _Site:
    """Makes URLs. Each carries a query of its own, so that the site's log tells tasks apart."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self._given: Counter[str] = Counter()

    def page(self, customer: str) -> str:
        """The next light page for a customer."""
        number = self._given[customer]
        self._given[customer] += 1
        name = LIGHT_PAGES[number % len(LIGHT_PAGES)]
        return f"{self.places.site}/{name}.html?{customer}-{number}"

    def captures(self, customer: str, count: int) -> tuple[Call, ...]:
        """Captures of light pages."""
        return tuple(capture(self.page(customer)) for _ in range(count))

    def premium(self, customer: str, query: str) -> Call:
        """A premium search over some light pages."""
        urls = tuple(self.page(customer) for _ in range(_PREMIUM_PAGES))
        return Call(task=PREMIUM, args=(query, list(urls)), urls=urls)


def capture(url: str, task: str = CAPTURE) -> Call:
    """A capture of one URL."""
    return Call(task=task, args=(url,), urls=(url,))


def forensic(seed_url: str, query: str, max_pages: int, soft_limit: int | None = None) -> Call:
    """A deep search from one URL."""
    return Call(
        task=FORENSIC,
        args=(seed_url, query, max_pages),
        urls=(seed_url,),
        soft_time_limit=soft_limit,
    )


def _atlas(site: _Site) -> list[Batch]:
    ways = {Way.BILL_TO: 440, Way.OPTION: 120, Way.BLOCK: 60, Way.GROUP: 50, Way.CHORD: 30}
    usual = [
        Batch(customer="atlas", way=way, calls=site.captures("atlas", count))
        for way, count in ways.items()
    ]
    return [*usual, Batch(customer="atlas", way=Way.TWICE, calls=site.captures("atlas", 20))]


def _borealis(site: _Site) -> list[Batch]:
    deep = [
        forensic(f"{site.places.site}/{name}.html?borealis-deep-{number}", "python", pages)
        for number, (name, pages) in enumerate(
            zip(SEARCH_SEEDS, (40, 36, 32, 28, 24, 20, 20, 20), strict=True)
        )
    ]
    # A site of seven pages: of the forty units held, thirty-three are given back.
    deep += [
        forensic(f"{site.places.difficult}/leaflet/?borealis-leaflet-{number}", "page", 40)
        for number in range(2)
    ]
    premium = [site.premium("borealis", query) for query in ("text", "file", "error", "object")]
    return [
        Batch(customer="borealis", way=Way.BILL_TO, calls=tuple(deep)),
        Batch(customer="borealis", way=Way.OPTION, calls=tuple(premium)),
    ]


def _corvus(site: _Site) -> list[Batch]:
    return [
        Batch(customer="corvus", way=Way.BILL_TO, calls=site.captures("corvus", 200)),
        # By then nothing is left: the chord's tasks are denied, so it fails, and nothing hangs.
        Batch(customer="corvus", way=Way.CHORD, calls=site.captures("corvus", 5), wave=2),
    ]


def _delphi(site: _Site) -> list[Batch]:
    searches = tuple(site.premium("delphi", "module") for _ in range(20))
    return [
        Batch(customer="delphi", way=Way.OPTION, calls=searches),
        Batch(customer="delphi", way=Way.BLOCK, calls=site.captures("delphi", 100), wave=2),
    ]


def _elbrus(site: _Site) -> list[Batch]:
    places = site.places
    gone = [capture(f"{places.difficult}/gone/{n}.html?elbrus-gone-{n}") for n in range(25)]
    nowhere = [capture(f"{places.nowhere}/{n}.html?elbrus-nowhere-{n}") for n in range(18)]
    forbidden = [capture(f"{METADATA_URL}?elbrus-forbidden-{n}") for n in range(2)]
    # The proxy is asked, and charges us, though none of the pages is there: cost without revenue.
    lost = Call(
        task=PREMIUM,
        args=("anything", [f"{places.nowhere}/a.html", f"{places.nowhere}/b.html"]),
        urls=(f"{places.nowhere}/a.html", f"{places.nowhere}/b.html"),
    )
    slow = [
        forensic(f"{places.difficult}/slow/{n}00.html?elbrus-slow-{n}", "page", 40, SOFT_LIMIT)
        for n in range(4)
    ]
    busy = [
        capture(f"{places.difficult}/busy/{n}?elbrus-busy-{n}", task=PATIENT) for n in range(10)
    ]
    return [
        Batch(customer="elbrus", way=Way.BILL_TO, calls=tuple(busy)),
        Batch(customer="elbrus", way=Way.OPTION, calls=(*slow, *gone, *nowhere, *forbidden, lost)),
    ]
