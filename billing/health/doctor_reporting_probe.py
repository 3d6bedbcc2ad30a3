"""What the doctor asks about reporting: settings and PostgreSQL, never the provider."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa

from billing.container import Container
from billing.core.errors import ConfigurationError
from billing.health import doctor_reporting as rules
from billing.health.rules import HealthFinding

# Each is answered from a partial index.
_UNKNOWN: Final = sa.text(
    """
    SELECT count(*) AS reports, min(first_sent_at) AS since FROM usage_reports
    WHERE provider = :provider AND state IN ('pending', 'unknown') AND state = 'unknown'
    """
)
_LAST_PASS: Final = sa.text("SELECT max(started_at) FROM report_passes WHERE provider = :provider")
_ANY_USAGE: Final = sa.text("SELECT EXISTS (SELECT FROM usage_hourly)")


def chosen_by(container: Container) -> str:
    """How the provider was chosen, in words."""
    if container.settings.provider:
        return "WEIGHBRIDGE_PROVIDER"
    return "STRIPE_API_KEY is set" if container.settings.stripe_api_key else "no STRIPE_API_KEY"


def examine_reporting(container: Container, connection: sa.Connection) -> Iterator[HealthFinding]:
    """Every check of reporting."""
    name = container.settings.provider_name
    yield provider_finding(container)
    secret = rules.webhook_secret(
        name, has_secret=container.settings.stripe_webhook_secret is not None
    )
    if secret is not None:
        yield secret
    now = container.clock.now()
    reports = container.reporting.reports
    last = connection.execute(_LAST_PASS, {"provider": name}).scalar()
    yield rules.runs(last, now=now, has_usage=bool(connection.scalar(_ANY_USAGE)))
    yield rules.unconfirmed(reports.oldest_unconfirmed(name), now=now)
    found = connection.execute(_UNKNOWN, {"provider": name}).one()
    yield rules.unknown(found.reports, found.since, now=now)
    parked = reports.attention_by_cause(name)
    yield rules.parked({each.cause: each.reports for each in parked})
    waiting = [each.oldest for each in parked if each.cause not in rules.HARMLESS]
    hours = [hour for hour in (reports.oldest_open(name), *waiting) if hour is not None]
    yield rules.oldest_hour(min(hours, default=None), now=now, provider=name)


def provider_finding(container: Container) -> HealthFinding:
    """Whether the provider can be talked to as the settings are; it is not asked."""
    problem = ""
    try:
        name = container.reporting.provider.name
    except ConfigurationError as error:
        name, problem = container.settings.provider_name, str(error)
    return rules.provider(
        name, chosen=chosen_by(container), live=container.reporting.bills_live, problem=problem
    )
