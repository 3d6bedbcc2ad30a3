"""The doctor's verdicts on reporting, pure: is usage on its way to the billing provider?"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from billing.cli.cause_help import words_of_parked
from billing.health.rules import HealthFinding, Level, fine
from billing.reporting.usage_report import AT_REST, AttentionCause

LATE_WARN: Final = timedelta(hours=8)
LATE_FAIL: Final = timedelta(hours=20)
"""A day is what most providers keep identifiers for."""
NEARLY_TOO_OLD: Final = timedelta(days=30)
"""Stripe takes figures of 35 days."""

HARMLESS: Final = frozenset(
    {
        *AT_REST,
        AttentionCause.PROVIDER_CHANGED,
        AttentionCause.BELOW_UNIT,
        AttentionCause.PERIOD_CLOSED,
    }
)
"""Parked for a cause that stands for nothing, or ends by itself with the next runs."""


def provider(name: str, *, chosen: str, live: bool, problem: str = "") -> HealthFinding:
    """Who gets usage.

    Args:
        name: Of the provider.
        chosen: How it was chosen.
        live: Whether real customers are billed.
        problem: Why it cannot be talked to; empty where it can. It is not asked.
    """
    check = "Provider"
    mode = {"stripe": ", live mode" if live else ", test mode"}.get(name, "")
    if not problem:
        return fine(check, f"{name}{mode} ({chosen})")
    return HealthFinding(
        check=check,
        level=Level.FAIL,
        found=f"{name} ({chosen}): {problem}",
        meaning="nothing is reported to it; usage is in the log and waits",
        remedy="correct the setting; then billing report run",
    )


def webhook_secret(provider: str, *, has_secret: bool) -> HealthFinding | None:
    """Whether what Stripe tells can be believed; None where Stripe does not get usage."""
    check = "Webhooks"
    if provider != "stripe":
        return None
    if has_secret:
        return fine(check, "a signing secret is set")
    return HealthFinding(
        check=check,
        level=Level.WARN,
        found="no STRIPE_WEBHOOK_SECRET",
        meaning="figures are read back and invoices polled hourly without them; but paid top-ups, "
        "deleted customers and meter errors are not noticed",
        remedy="docs/stripe.md, webhooks; put the destination's whsec_... into the setting",
    )


def runs(last: datetime | None, *, now: datetime, has_usage: bool) -> HealthFinding:
    """When usage was last compared with what was reported.

    Args:
        last: When a run last did it; None: never.
        now: The time.
        has_usage: Whether there is anything to report.
    """
    check = "Last reporting run"
    if last is None and not has_usage:
        return fine(check, "none yet; nothing was used")
    if last is not None and now - last <= LATE_WARN:
        return fine(check, f"{span_text(now - last)} ago")
    return HealthFinding(
        check=check,
        level=Level.FAIL if last is not None and now - last > LATE_FAIL else Level.WARN,
        found="never" if last is None else f"{span_text(now - last)} ago",
        meaning="new usage is not on its way to the provider; it waits in the log",
        remedy="is celery beat running? else billing report run",
    )


def unconfirmed(since: datetime | None, *, now: datetime) -> HealthFinding:
    """How long a report has waited for its answer, or to be read back.

    Args:
        since: Since when the one that waits longest; None: none does.
        now: The time.
    """
    check = "Reports"
    if since is None:
        return fine(check, "none waits for its answer or to be read back")
    late = max(now - since, timedelta(0))
    found = f"the oldest unconfirmed one has waited for {span_text(late)}"
    if late <= LATE_WARN:
        return fine(check, found)
    return HealthFinding(
        check=check,
        level=Level.FAIL if late > LATE_FAIL else Level.WARN,
        found=found,
        meaning="not lost, but an invoice that is made meanwhile lacks it",
        remedy="billing report run says what keeps it; billing report status shows where it waits",
    )


def oldest_hour(oldest: datetime | None, *, now: datetime, provider: str) -> HealthFinding:
    """The oldest hour that has not arrived at the provider, parked or open.

    Args:
        oldest: Its start; None: all arrived.
        now: The time.
        provider: Its name.
    """
    check = "Oldest usage not taken"
    if oldest is None:
        return fine(check, "none")
    found = f"of {oldest:%Y-%m-%d %H:%M} UTC"
    if now - oldest < NEARLY_TOO_OLD:
        return fine(check, found)
    return HealthFinding(
        check=check,
        level=Level.FAIL if provider == "stripe" else Level.WARN,
        found=found,
        meaning="Stripe takes no figure of 35 days: what is older is billed in a later period",
        remedy="billing report list --state parked --state unknown, and mend what keeps it",
    )


def span_text(late: timedelta) -> str:
    """A span for people: ``3 d 4 h``, ``2 h 5 min``, ``7 min``."""
    minutes = int(late.total_seconds()) // 60
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def unknown(count: int, since: datetime | None, *, now: datetime) -> HealthFinding:
    """Reports that were sent and have no definite answer, the first of them ``since``."""
    check = "Unknown reports"
    if not count or since is None:
        return fine(check, "none")
    found = f"{count:,} sent without an answer, the first {span_text(now - since)} ago"
    if now - since <= LATE_WARN:
        return fine(check, found)
    return HealthFinding(
        check=check,
        level=Level.WARN,
        found=found,
        meaning="each is sent again under its identifier and can never count twice",
        remedy="does the provider answer? billing report run",
    )


def parked(causes: Mapping[str, int]) -> HealthFinding:
    """Reports that wait for a person, by cause."""
    check = "Parked reports"
    waiting = {cause: n for cause, n in causes.items() if n and cause not in HARMLESS}
    if not waiting:
        return fine(check, "none that needs anybody")
    first = max(waiting, key=lambda cause: (waiting[cause], cause))
    words = words_of_parked(first)
    return HealthFinding(
        check=check,
        level=Level.WARN,
        found=", ".join(f"{cause} {n:,}" for cause, n in sorted(waiting.items())),
        meaning=f"not billed until somebody acts; {first}: {words.meaning}",
        remedy=words.remedy,
    )
