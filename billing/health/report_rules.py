"""Rules for reporting: usage on its way to the billing provider. Pure; each threshold once."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from billing.health.cause_help import help_for_parked
from billing.health.finding import Check, HealthFinding, fail_if
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
    """The provider that gets usage.

    Args:
        name: Of the provider.
        chosen: How it was chosen.
        live: Whether real customers are billed.
        problem: Why it cannot be talked to; empty where it can. It is not asked.
    """
    check = Check("Provider")
    mode = {"stripe": ", live mode" if live else ", test mode"}.get(name, "")
    if not problem:
        return check.ok(f"{name}{mode} ({chosen})")
    return check.fail(
        f"{name} ({chosen}): {problem}",
        "nothing is reported to it; usage is in the log and waits",
        "correct the setting; then billing report run",
    )


def webhook_secret(provider: str, *, has_secret: bool) -> HealthFinding | None:
    """The secret that Stripe's webhooks are signed with; None where Stripe does not get usage."""
    check = Check("Webhooks")
    if provider != "stripe":
        return None
    if has_secret:
        return check.ok("a signing secret is set")
    return check.warn(
        "no STRIPE_WEBHOOK_SECRET",
        "figures are read back and invoices polled hourly without them; but paid top-ups, "
        "deleted customers and meter errors are not noticed",
        "docs/stripe.md, webhooks; put the destination's whsec_... into the setting",
    )


def runs(last: datetime | None, *, now: datetime, has_usage: bool) -> HealthFinding:
    """The last comparison of usage with reports; ``last`` is None where there was none yet."""
    check = Check("Last reporting run")
    if last is None and not has_usage:
        return check.ok("none yet; nothing was used")
    found = "never" if last is None else f"{span_text(now - last)} ago"
    if last is not None and now - last <= LATE_WARN:
        return check.ok(found)
    return check.warn(
        found,
        "new usage is not on its way to the provider; it waits in the log",
        "is celery beat running? else billing report run",
        level=fail_if(last is not None and now - last > LATE_FAIL),
    )


def unconfirmed(since: datetime | None, *, now: datetime) -> HealthFinding:
    """The report that has waited longest for its answer or confirmation; None: none waits."""
    check = Check("Reports")
    if since is None:
        return check.ok("none waits for its answer or to be read back")
    late = max(now - since, timedelta(0))
    found = f"the oldest unconfirmed one has waited for {span_text(late)}"
    if late <= LATE_WARN:
        return check.ok(found)
    return check.warn(
        found,
        "not lost, but an invoice that is made meanwhile lacks it",
        "billing report run says what keeps it; billing report status shows where it waits",
        level=fail_if(late > LATE_FAIL),
    )


def oldest_hour(oldest: datetime | None, *, now: datetime, provider: str) -> HealthFinding:
    """The start of the oldest hour that has not arrived at the provider, parked or open."""
    check = Check("Oldest usage not taken")
    if oldest is None:
        return check.ok("none")
    found = f"of {oldest:%Y-%m-%d %H:%M} UTC"
    if now - oldest < NEARLY_TOO_OLD:
        return check.ok(found)
    return check.warn(
        found,
        "Stripe takes no figure of 35 days: what is older is billed in a later period",
        "billing report list --state parked --state unknown, and mend what keeps it",
        level=fail_if(provider == "stripe"),
    )


def unknown(count: int, since: datetime | None, *, now: datetime) -> HealthFinding:
    """Reports that were sent and have no definite answer, the first of them ``since``."""
    check = Check("Unknown reports")
    if not count or since is None:
        return check.ok("none")
    found = f"{count:,} sent without an answer, the first {span_text(now - since)} ago"
    if now - since <= LATE_WARN:
        return check.ok(found)
    return check.warn(
        found,
        "each is sent again under its identifier and can never count twice",
        "does the provider answer? billing report run",
    )


def parked(causes: Mapping[str, int]) -> HealthFinding:
    """Reports that wait for a person, by cause."""
    check = Check("Parked reports")
    waiting = {cause: n for cause, n in causes.items() if n and cause not in HARMLESS}
    if not waiting:
        return check.ok("none that needs anybody")
    first = max(waiting, key=lambda cause: (waiting[cause], cause))
    help_ = help_for_parked(first)
    return check.warn(
        ", ".join(f"{cause} {n:,}" for cause, n in sorted(waiting.items())),
        f"not billed until somebody acts; {first}: {help_.meaning}",
        help_.remedy,
    )


def span_text(late: timedelta) -> str:
    """A span for people: ``3 d 4 h``, ``2 h 5 min``, ``7 min``."""
    minutes = int(late.total_seconds()) // 60
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
