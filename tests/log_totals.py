"""Every customer's totals, from the log row by row and from the rollups: an oracle of tests."""

from __future__ import annotations

import sqlalchemy as sa

from billing.usage_log.totals import Totals, totals_of

_LOG = sa.text(
    """
    SELECT customer_id, count(*), sum(quantity), sum(amount_microcredits),
        sum(shortfall_microcredits), sum(cost_micros)
    FROM usage_events GROUP BY customer_id
    """
)
_ROLLUPS = sa.text(
    """
    SELECT customer_id, sum(events), sum(quantity), sum(amount_microcredits),
        sum(shortfall_microcredits), sum(cost_micros)
    FROM usage_hourly GROUP BY customer_id
    """
)


def totals_from_log(connection: sa.Connection) -> dict[str, Totals]:
    """Added up row by row."""
    return {row[0]: totals_of(row[1:]) for row in connection.execute(_LOG)}


def totals_from_rollups(connection: sa.Connection) -> dict[str, Totals]:
    """As the hourly rollups have them."""
    return {row[0]: totals_of(row[1:]) for row in connection.execute(_ROLLUPS)}
