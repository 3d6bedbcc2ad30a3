"""The statements of ``billing.reporting.closed_periods`` and ``settlement``."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

NOTICE: Final = sa.text(
    """
    INSERT INTO report_seals (provider, customer_id, customer_ref, meter, period_start, period_end,
        invoice_ref, billed_value, noticed_at)
    VALUES (:provider, :customer, :ref, :meter, :start, :end, :invoice, :billed, :now)
    ON CONFLICT (provider, invoice_ref, meter, period_end) DO NOTHING
    """
)

# The next comparison reads the hours of a month, not only the recent ones.
LOOK_BACK: Final = sa.text("DELETE FROM report_passes WHERE depth = 'month'")

LIST: Final = sa.text(
    """
    SELECT id, provider, customer_id, customer_ref, meter, period_start, period_end, invoice_ref,
        billed_value, noticed_at, settled_at
    FROM report_seals
    WHERE (CAST(:provider AS text) IS NULL OR provider = CAST(:provider AS text))
        AND (NOT :unsettled OR settled_at IS NULL)
    ORDER BY period_end DESC, id DESC LIMIT :limit
    """
)

UNSETTLED: Final = sa.text(
    """
    SELECT DISTINCT provider, customer_id, customer_ref, meter, period_start, period_end
    FROM report_seals
    WHERE settled_at IS NULL AND period_end <= :now
        AND (CAST(:provider AS text) IS NULL OR provider = CAST(:provider AS text))
    ORDER BY period_end, provider, customer_id, customer_ref, meter, period_start
    """
)

_PERIOD: Final = """
    provider = :provider AND customer_id = :customer AND customer_ref = :ref AND meter = :meter
        AND period_start = :start AND period_end = :end
"""
LOCK_SEALS: Final = sa.text(
    f"""
    SELECT invoice_ref, billed_value, settled_at FROM report_seals
    WHERE {_PERIOD} ORDER BY id FOR UPDATE
    """  # noqa: S608 - made of the constants above
)
SETTLED: Final = sa.text(
    f"UPDATE report_seals SET settled_at = :now WHERE {_PERIOD} AND settled_at IS NULL"  # noqa: S608 - as above
)

# Whoever it was for: what is sealed is sent to nobody. A claim that is at it in this moment passes
# over a locked row, or finds it parked.
PARK_OPEN: Final = sa.text(
    """
    UPDATE usage_reports SET state = 'parked', cause = :cause, detail = :detail,
        confirm_at = CASE WHEN doubtful THEN CAST(:now AS timestamptz) END
    WHERE id IN (
        SELECT id FROM usage_reports
        WHERE customer_id = :customer AND sku_id = :sku AND meter = :meter
            AND hour >= :first AND hour < :before AND state IN ('pending', 'unknown')
        ORDER BY id FOR UPDATE
    )
    """
)

LOCK_HOURS: Final = sa.text(
    """
    SELECT id FROM usage_reports
    WHERE latest AND customer_id = :customer AND sku_id = :sku AND hour >= :first AND hour < :before
    ORDER BY id FOR UPDATE
    """
)

# The last revision of each hour, what the holder has of it, and what all holders have.
HOURS: Final = sa.text(
    """
    SELECT l.id, l.hour, l.revision, l.state, l.cause, l.doubtful, l.meter, own.held,
        own.answered_at, coalesce(everybody.held, 0) AS taken
    FROM usage_reports AS l
    LEFT JOIN LATERAL (
        SELECT a.held_microcredits AS held, coalesce(a.answered_at, a.created_at) AS answered_at
        FROM usage_reports AS a
        WHERE a.customer_id = l.customer_id AND a.sku_id = l.sku_id AND a.hour = l.hour
            AND a.provider = :provider AND a.customer_ref = :ref AND a.meter = :meter
            AND a.state IN ('accepted', 'confirmed')
        ORDER BY a.revision DESC LIMIT 1
    ) AS own ON true
    LEFT JOIN LATERAL (
        SELECT sum(has.held_microcredits) AS held FROM (
            SELECT DISTINCT ON (provider, customer_ref, meter) held_microcredits
            FROM usage_reports AS a
            WHERE a.customer_id = l.customer_id AND a.sku_id = l.sku_id AND a.hour = l.hour
                AND a.state IN ('accepted', 'confirmed')
            ORDER BY provider, customer_ref, meter, revision DESC
        ) AS has
    ) AS everybody ON true
    WHERE l.latest AND l.customer_id = :customer AND l.sku_id = :sku
        AND l.hour >= :first AND l.hour < :before
    """
)

SUPERSEDE: Final = sa.text("UPDATE usage_reports SET latest = false WHERE id = :id")

INSERT: Final = sa.text(
    """
    INSERT INTO usage_reports (customer_id, sku_id, hour, revision, latest, provider, meter,
        overwrites, identifier, customer_ref, value, event_at, total_microcredits,
        held_microcredits, state, cause, detail, next_at, created_at, answered_at, confirmed_at)
    VALUES (:customer, :sku, :hour, :revision, true, :provider, :meter, true, :identifier,
        :ref, :value, :event_at, :total, :held, :state, :cause, :detail, :now, :now, :now, :now)
    """
)

CARRY: Final = sa.text(
    """
    INSERT INTO report_carries (customer_id, sku_id, from_hour, to_hour, amount_microcredits,
        reason, note, created_at)
    VALUES (:customer, :sku, :hour, :under_way, :amount, :reason, :note, :now)
    """
)
