"""Evidence of a small demo in which all is well, for tests to spoil."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from support import NOW, make_event

from billing.core.errors import DenialReason
from billing.core.usage_event import FIELDS
from billing.usage_log.receipts import ReceiptLine
from lab.demo.books import Books, CustomerBooks
from lab.demo.checks import Evidence
from lab.demo.reported import Reported
from lab.demo.results import End
from lab.demo.scenario import CustomerPlan, Expected, capture
from lab.demo.submission import Ticket

CREDIT = 1_000_000
DENIED = End("denied", "insufficient_credits")
SITE = "http://site"

PLANS = (
    CustomerPlan(
        id="atlas",
        name="Atlas",
        habit="captures",
        credits="10",
        expected=Expected(succeeded=2, failed=1),
    ),
    CustomerPlan(
        id="corvus",
        name="Corvus",
        habit="runs out",
        credits="1",
        expected=Expected(
            succeeded=1, denied={DenialReason.INSUFFICIENT_CREDITS: 2}, broken_chords=1
        ),
    ),
)

ENDS = {
    "a1": End("succeeded"),
    "a2": End("succeeded"),
    "a3": End("failed", "UnreachableError"),
    "c1": End("succeeded"),
    "c2": DENIED,
    "c3": DENIED,
}


def ticket(task_id: str, deliveries: int = 1) -> Ticket:
    customer = "atlas" if task_id.startswith("a") else "corvus"
    return Ticket(task_id, customer, capture(f"{SITE}/{task_id}"), deliveries)


def receipt_line(**overrides: Any) -> ReceiptLine:
    event = make_event(**overrides)
    fields = {name: getattr(event, name) for name in FIELDS}
    return ReceiptLine(**fields, logged_at=NOW)


def good_books() -> Books:
    atlas = CustomerBooks(
        customer="atlas",
        granted=10 * CREDIT,
        held=3 * CREDIT,
        logged=2 * CREDIT,
        settled=2 * CREDIT,
        available=8 * CREDIT,
        cost_micros=4_000,
        outcomes={("succeeded", ""): 2, ("failed", "exception"): 1},
        latest=[receipt_line(subject=f"{SITE}/a2"), receipt_line(cost_micros=4_000)],
    )
    corvus = CustomerBooks(
        customer="corvus",
        granted=CREDIT,
        held=CREDIT,
        logged=CREDIT,
        settled=CREDIT,
        outcomes={("succeeded", ""): 1, ("denied", "insufficient_credits"): 2},
    )
    return Books(
        customers=[atlas, corvus],
        events=6,
        duplicates=0,
        rolled_up=3 * CREDIT,
        open_holds=0,
        outbox=0,
        dead=0,
    )


def reported(customer: str, amount: int, **overrides: int) -> Reported:
    """A SKU that every side has the same figure of, but for ``overrides``."""
    figures = dict.fromkeys(("logged", "rolled_up", "reported", "confirmed"), amount)
    return Reported(customer=customer, sku="page-capture", **(figures | overrides))


def good_evidence(**overrides: Any) -> Evidence:
    """Evidence that passes every check; ``overrides`` spoil it."""
    ends = overrides.get("ends", ENDS)
    by_customer: dict[str, Counter[End]] = {"atlas": Counter(), "corvus": Counter()}
    for task_id, end in ends.items():
        by_customer["atlas" if task_id.startswith("a") else "corvus"][end] += 1
    evidence = Evidence(
        plans=PLANS,
        tickets=[ticket("a1", deliveries=2), *map(ticket, ("a2", "a3", "c1", "c2", "c3"))],
        ends=ends,
        by_customer=by_customer,
        broken_chords={"corvus": 1},
        books=good_books(),
        discrepancies=[],
        reported=[reported("atlas", 2 * CREDIT), reported("corvus", CREDIT)],
        visits={f"{SITE}/a1": 2, f"{SITE}/a2": 1, f"{SITE}/c1": 1},
    )
    return replace(evidence, **overrides)
