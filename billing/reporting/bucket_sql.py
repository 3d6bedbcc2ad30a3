"""SQL fragments about buckets: their totals, what each holder has, whether a period is final."""

from __future__ import annotations

from typing import Final

_REPORTABLE: Final = """
    SELECT customer_id, sku_id, hour, amount_microcredits AS amount, 0 AS carried
    FROM usage_hourly WHERE {hour}
    UNION ALL
    SELECT customer_id, sku_id, from_hour, -amount_microcredits, amount_microcredits
    FROM report_carries WHERE {from_hour}
    UNION ALL
    SELECT customer_id, sku_id, to_hour, amount_microcredits, -amount_microcredits
    FROM report_carries WHERE {to_hour}
"""


def reportable(condition: str) -> str:
    """Select the parts that hours come to: the log's amounts, and adjustments out of and into them.

    Args:
        condition: On ``{0}``, the column of the hour.
    """
    names = ("hour", "from_hour", "to_hour")
    return _REPORTABLE.format(**{name: condition.format(name) for name in names})


def held_of(bucket: str) -> str:
    """Select what each holder has of a bucket: the last revision that it accepted.

    Args:
        bucket: The alias of a row with the bucket's key.
    """
    return f"""
        SELECT DISTINCT ON (provider, customer_ref, meter)
            provider, customer_ref, meter, held_microcredits
        FROM usage_reports AS a
        WHERE a.customer_id = {bucket}.customer_id AND a.sku_id = {bucket}.sku_id
            AND a.hour = {bucket}.hour AND a.state IN ('accepted', 'confirmed')
        ORDER BY provider, customer_ref, meter, revision DESC
    """  # noqa: S608 - an alias of ours


PERIOD_IS_FINAL: Final = """
    EXISTS (
        SELECT FROM report_seals AS s
        WHERE s.customer_id = r.customer_id AND s.meter = r.meter
            AND s.period_end >= r.hour + interval '1 hour'
    )
"""
"""Of a report ``r``: a provider's invoice for its hour is final."""
