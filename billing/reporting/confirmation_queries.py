"""The statements of ``billing.reporting.confirmations``."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

# What the same holder has accepted a later revision of is never looked at by itself again.
FORGET: Final = sa.text(
    """
    UPDATE usage_reports SET confirm_at = NULL
    WHERE id IN (
        SELECT r.id FROM usage_reports AS r
        WHERE r.provider = :provider AND r.confirm_at <= :now AND r.state = 'accepted'
            AND EXISTS (
                SELECT FROM usage_reports AS n
                WHERE n.customer_id = r.customer_id AND n.sku_id = r.sku_id AND n.hour = r.hour
                    AND n.revision > r.revision AND n.provider = r.provider
                    AND n.customer_ref = r.customer_ref AND n.meter = r.meter
                    AND n.state IN ('accepted', 'confirmed')
            )
        ORDER BY r.id FOR UPDATE SKIP LOCKED
    )
    """
)

# Doubtful reports that were parked otherwise than by an answer: by hand, or after a day of silence.
ADOPT: Final = sa.text(
    """
    UPDATE usage_reports SET confirm_at = :now
    WHERE id IN (
        SELECT id FROM usage_reports
        WHERE provider = :provider AND latest AND state = 'parked' AND doubtful
            AND confirm_at IS NULL AND customer_ref IS NOT NULL
        ORDER BY id FOR UPDATE SKIP LOCKED
    )
    """
)

# A bucket with an open revision waits for its answer.
DUE: Final = sa.text(
    """
    SELECT r.id, r.confirm_at, r.customer_id, r.sku_id, r.customer_ref, r.meter, r.hour
    FROM usage_reports AS r
    WHERE r.provider = :provider AND r.confirm_at <= :now AND r.confirm_at >= :after_at
        AND (r.confirm_at, r.id) > (:after_at, :after_id)
        AND r.state IN ('accepted', 'parked') AND r.customer_ref IS NOT NULL
        AND NOT EXISTS (
            SELECT FROM usage_reports AS o
            WHERE o.customer_id = r.customer_id AND o.sku_id = r.sku_id AND o.hour = r.hour
                AND o.state IN ('pending', 'sending', 'unknown')
        )
    ORDER BY r.confirm_at, r.id
    LIMIT :limit
    """
)

DAY: Final = sa.text(
    """
    SELECT r.id, r.hour, r.revision, r.provider, r.customer_ref, r.meter, r.value,
        r.held_microcredits, r.state, r.cause, r.doubtful, r.confirm_at, r.confirmed_at,
        r.readings, r.resent,
        coalesce(r.answered_at, r.first_sent_at, r.created_at) AS answered_at,
        EXISTS (
            SELECT FROM report_seals AS s
            WHERE s.customer_id = r.customer_id AND s.meter = r.meter
                AND s.period_end >= r.hour + interval '1 hour'
        ) AS sealed
    FROM usage_reports AS r
    WHERE r.customer_id = :customer AND r.sku_id = :sku AND r.hour >= :start AND r.hour < :end
    """
)

# A revision that was written meanwhile is not seen here, but then what was the last one before it
# is no longer: whoever writes one has locked that first.
LOCK: Final = sa.text(
    """
    SELECT id, hour, revision, latest, state, readings, doubtful FROM usage_reports
    WHERE customer_id = :customer AND sku_id = :sku
        AND hour = ANY(CAST(:hours AS timestamptz[]))
    ORDER BY id FOR UPDATE
    """
)

CONFIRM: Final = sa.text(
    """
    UPDATE usage_reports SET state = 'confirmed', doubtful = false, confirmed_at = :now,
        confirm_at = NULL, detail = '', cause = CASE state WHEN 'parked' THEN :taken ELSE cause END
    WHERE id = :id
    """
)

READ_AGAIN: Final = sa.text(
    "UPDATE usage_reports SET readings = :readings, confirm_at = :confirm_at WHERE id = :id"
)

CLEAR: Final = sa.text(
    """
    UPDATE usage_reports SET doubtful = false, readings = 0, confirm_at = NULL WHERE id = :id
    """
)

CLOSE: Final = sa.text("UPDATE usage_reports SET confirm_at = NULL WHERE id = :id")

PARK: Final = sa.text(
    """
    UPDATE usage_reports SET state = 'parked', cause = :cause, detail = :detail,
        doubtful = :doubtful, readings = 0, confirm_at = :confirm_at
    WHERE id = ANY(CAST(:ids AS bigint[]))
    """
)

SUPERSEDE: Final = sa.text(
    """
    UPDATE usage_reports SET latest = false
    WHERE customer_id = :customer AND sku_id = :sku AND hour = :hour AND latest
    RETURNING total_microcredits
    """
)

INSERT: Final = sa.text(
    """
    INSERT INTO usage_reports (customer_id, sku_id, hour, revision, latest, provider, meter,
        overwrites, identifier, customer_ref, value, event_at, total_microcredits,
        held_microcredits, state, cause, detail, doubtful, confirm_at, next_at, created_at, resent)
    SELECT customer_id, sku_id, hour, :revision, true, provider, meter, overwrites, :identifier,
        customer_ref, :value, event_at, :total, held_microcredits, :state, :cause, :detail,
        :doubtful, :confirm_at, :now, :now, :resent
    FROM usage_reports WHERE id = :id
    """
)

# What is to be reported of a customer's days: its usage, less what was carried out of their hours,
# and what was carried into them; and the days that anything was reported of.
DAYS: Final = sa.text(
    """
    SELECT sku_id, CAST(hour AT TIME ZONE 'UTC' AS date) AS day, sum(amount) AS total
    FROM (
        SELECT sku_id, hour, amount_microcredits AS amount, false AS reported FROM usage_hourly
        WHERE customer_id = :customer AND hour >= :start AND hour < :end
        UNION ALL
        SELECT sku_id, from_hour, -amount_microcredits, false FROM report_carries
        WHERE customer_id = :customer AND from_hour >= :start AND from_hour < :end
        UNION ALL
        SELECT sku_id, to_hour, amount_microcredits, false FROM report_carries
        WHERE customer_id = :customer AND to_hour >= :start AND to_hour < :end
        UNION ALL
        SELECT sku_id, hour, 0, true FROM usage_reports
        WHERE customer_id = :customer AND hour >= :start AND hour < :end
            AND provider = :provider AND state IN ('accepted', 'confirmed')
    ) AS told
    GROUP BY 1, 2 HAVING sum(amount) <> 0 OR bool_or(reported)
    ORDER BY 1, 2
    """
)

_CUSTOMERS: Final = """
    SELECT id, {ref} AS customer_ref FROM customers
    WHERE CAST(:customer AS text) IS NULL OR id = CAST(:customer AS text) ORDER BY id
"""
CUSTOMERS: Final = {
    column: sa.text(_CUSTOMERS.format(ref=column)) for column in ("id", "stripe_customer_id")
}

PROVIDERS: Final = sa.text(
    "SELECT DISTINCT provider FROM usage_reports WHERE confirm_at IS NOT NULL ORDER BY provider"
)

# What was sent between the first sending and the answer may have been judged in the window.
RECHECK: Final = sa.text(
    """
    UPDATE usage_reports SET confirm_at = :now, readings = greatest(readings, 1)
    WHERE id IN (
        SELECT id FROM usage_reports
        WHERE provider = :provider AND confirm_at IS NOT NULL AND state = 'accepted'
            AND (CAST(:meter AS text) IS NULL OR meter = CAST(:meter AS text))
            AND first_sent_at <= :end AND answered_at >= :start
        ORDER BY id FOR UPDATE
    )
    """
)

REJECT: Final = sa.text(
    """
    UPDATE usage_reports SET state = 'parked', cause = :cause, detail = :detail, confirm_at = NULL
    WHERE id IN (
        SELECT r.id FROM usage_reports AS r
        WHERE r.identifier = ANY(CAST(:identifiers AS text[])) AND r.state = 'accepted' AND r.latest
            AND NOT EXISTS (
                SELECT FROM report_seals AS s
                WHERE s.customer_id = r.customer_id AND s.meter = r.meter
                    AND s.period_end >= r.hour + interval '1 hour'
            )
        ORDER BY r.id FOR UPDATE OF r
    )
    """
)

RECHECK_BUCKETS: Final = sa.text(
    """
    UPDATE usage_reports SET confirm_at = :now, readings = greatest(readings, 1)
    WHERE id IN (
        SELECT r.id FROM usage_reports AS r
        JOIN usage_reports AS named ON named.customer_id = r.customer_id
            AND named.sku_id = r.sku_id AND named.hour = r.hour
        WHERE named.identifier = ANY(CAST(:identifiers AS text[]))
            AND r.provider = named.provider AND r.state = 'accepted'
        ORDER BY r.id FOR UPDATE OF r
    )
    """
)
