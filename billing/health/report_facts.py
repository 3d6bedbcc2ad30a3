"""Facts about reporting, from settings and PostgreSQL, and their findings; no provider is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from billing.core.errors import ConfigurationError
from billing.health import report_rules as rules
from billing.health.facts import HealthSources
from billing.health.finding import HealthFinding
from billing.reporting.listing import NeedsAttention
from billing.reporting.report_store import ReportStore

# Each is answered from a partial index.
_UNKNOWN: Final = sa.text(
    """
    SELECT count(*) AS reports, min(first_sent_at) AS since FROM usage_reports
    WHERE provider = :provider AND state IN ('pending', 'unknown') AND state = 'unknown'
    """
)
_LAST_PASS: Final = sa.text("SELECT max(started_at) FROM report_passes WHERE provider = :provider")
_ANY_USAGE: Final = sa.text("SELECT EXISTS (SELECT FROM usage_hourly)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFacts:
    """The state of the reports to the present provider.

    Attributes:
        last_run: When usage was last compared with what was reported; None: never.
        has_usage: Whether there is anything to report.
        unconfirmed_since: Since when the report waits that waits longest for its answer or
            confirmation; None: none does.
        unknown: Reports that were sent and have no definite answer.
        unknown_since: When the first of them was sent.
        oldest_open: The hour of the oldest report without its answer.
        parked: Parked reports, by cause.
    """

    last_run: datetime | None
    has_usage: bool
    unconfirmed_since: datetime | None
    unknown: int
    unknown_since: datetime | None
    oldest_open: datetime | None
    parked: Sequence[NeedsAttention]

    @property
    def oldest_hour(self) -> datetime | None:
        """The oldest hour that has not arrived at the provider, open or parked for a person."""
        parked = [each.oldest for each in self.parked if each.cause not in rules.HARMLESS]
        return min((hour for hour in (self.oldest_open, *parked) if hour), default=None)


def report_facts(sources: HealthSources) -> ReportFacts:
    """Gather ``ReportFacts`` from PostgreSQL."""
    name, reports = sources.settings.provider_name, ReportStore(sources.engine)
    with sources.engine.connect() as connection:
        unknown = connection.execute(_UNKNOWN, {"provider": name}).one()
        last_run = connection.execute(_LAST_PASS, {"provider": name}).scalar()
        has_usage = bool(connection.scalar(_ANY_USAGE))
    return ReportFacts(
        last_run=last_run,
        has_usage=has_usage,
        unconfirmed_since=reports.oldest_unconfirmed(name),
        unknown=unknown.reports,
        unknown_since=unknown.since,
        oldest_open=reports.oldest_open(name),
        parked=reports.attention_by_cause(name),
    )


def report_findings(
    sources: HealthSources, facts: ReportFacts | None = None
) -> Iterator[HealthFinding]:
    """Every check of reporting; ``facts`` where they are gathered already."""
    name, now = sources.settings.provider_name, sources.clock.now()
    yield _provider(sources)
    has_secret = sources.settings.stripe_webhook_secret is not None
    if (secret := rules.webhook_secret(name, has_secret=has_secret)) is not None:
        yield secret
    facts = facts or report_facts(sources)
    yield rules.runs(facts.last_run, now=now, has_usage=facts.has_usage)
    yield rules.unconfirmed(facts.unconfirmed_since, now=now)
    yield rules.unknown(facts.unknown, facts.unknown_since, now=now)
    yield rules.parked({each.cause: each.reports for each in facts.parked})
    yield rules.oldest_hour(facts.oldest_hour, now=now, provider=name)


def _provider(sources: HealthSources) -> HealthFinding:
    """The provider as the settings choose it; it is not asked."""
    settings, problem = sources.settings, ""
    chosen = "STRIPE_API_KEY is set" if settings.stripe_api_key else "no STRIPE_API_KEY"
    try:
        name = sources.reporting.provider.name
    except ConfigurationError as error:
        name, problem = settings.provider_name, str(error)
    return rules.provider(
        name,
        chosen="WEIGHBRIDGE_PROVIDER" if settings.provider else chosen,
        live=sources.reporting.bills_live,
        problem=problem,
    )
