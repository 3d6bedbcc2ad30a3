"""``summary.json``: what came of the demo, for machines. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from billing.core.credits import format_credits
from lab.demo.checks import Check, Evidence
from lab.demo.results import tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Counts of metered tasks and of log lines; credits as decimal strings such as ``"1234.5"``.

    ``duplicates`` are log lines beyond one per task and line; ``discrepancies`` are violations of
    invariants.
    """

    tasks_submitted: int
    tasks_succeeded: int
    tasks_failed: int
    tasks_denied: int
    events_logged: int
    credits_settled: str
    credits_logged: str
    credits_rolled_up: str
    credits_reported: str
    credits_confirmed: str
    open_holds: int
    duplicates: int
    discrepancies: int

    def to_json(self) -> str:
        """As one JSON object, in the order above."""
        return json.dumps(asdict(self), indent=2) + "\n"


def summarise(evidence: Evidence, found: Sequence[Check]) -> Summary:
    """The summary of what was seen and of the checked invariants."""
    ends = Counter(evidence.ends[ticket.task_id] for ticket in evidence.tickets)
    books = evidence.books
    return Summary(
        tasks_submitted=len(evidence.tickets),
        tasks_succeeded=tally(ends, "succeeded"),
        tasks_failed=tally(ends, "failed"),
        tasks_denied=tally(ends, "denied"),
        events_logged=books.events,
        credits_settled=plain_credits(books.settled),
        credits_logged=plain_credits(books.logged),
        credits_rolled_up=plain_credits(books.rolled_up),
        credits_reported=plain_credits(sum(row.reported for row in evidence.reported)),
        credits_confirmed=plain_credits(sum(row.confirmed for row in evidence.reported)),
        open_holds=books.open_holds,
        duplicates=books.duplicates,
        discrepancies=sum(len(check.violations) for check in found),
    )


def plain_credits(microcredits: int) -> str:
    """An amount as a decimal string without thousands separators."""
    return format_credits(microcredits).replace(",", "")
