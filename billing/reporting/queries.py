"""The statements of ``billing.reporting.store``."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

TRY_LOCK: Final = sa.text("SELECT pg_try_advisory_xact_lock(:key)")

PASSES: Final = sa.text("SELECT depth, started_at FROM report_passes WHERE provider = :provider")

PASSED: Final = sa.text(
    """
    INSERT INTO report_passes (provider, depth, started_at) VALUES (:provider, :depth, :now)
    ON CONFLICT (provider, depth) DO UPDATE SET started_at = excluded.started_at
    """
)

# Buckets whose total is not the one that their last revision stood for, and those whose last
# revision can be tried elsewhere. Which of them get a revision is decided by due.revise.
_DUE: Final = """
    SELECT t.customer_id, t.sku_id, t.hour, t.total, c.{ref} AS customer_ref,
        r.id AS last_id, r.provider AS last_provider, r.customer_ref AS last_ref,
        r.meter AS last_meter, r.revision AS last_revision, r.state AS last_state,
        r.cause AS last_cause, r.doubtful AS last_doubtful, r.total_microcredits AS last_total,
        taken.taken
    FROM (
        SELECT customer_id, sku_id, hour, sum(amount_microcredits) AS total
        FROM usage_hourly
        WHERE hour < :until
            AND (CAST(:since AS timestamptz) IS NULL OR hour >= CAST(:since AS timestamptz))
        GROUP BY customer_id, sku_id, hour
    ) AS t
    JOIN customers AS c ON c.id = t.customer_id
    LEFT JOIN usage_reports AS r ON r.latest AND r.customer_id = t.customer_id
        AND r.sku_id = t.sku_id AND r.hour = t.hour
    LEFT JOIN LATERAL (
        SELECT jsonb_agg(jsonb_build_array(
            has.provider, has.customer_ref, has.meter, has.held_microcredits::text)) AS taken
        FROM (
            SELECT DISTINCT ON (provider, customer_ref, meter)
                provider, customer_ref, meter, held_microcredits
            FROM usage_reports AS a
            WHERE a.customer_id = r.customer_id AND a.sku_id = r.sku_id AND a.hour = r.hour
                AND a.state IN ('accepted', 'confirmed')
            ORDER BY provider, customer_ref, meter, revision DESC
        ) AS has
    ) AS taken ON true
    WHERE CASE
        WHEN r.id IS NULL THEN t.total <> 0
        WHEN r.state IN ('accepted', 'confirmed') THEN r.total_microcredits <> t.total
        WHEN r.state = 'pending' THEN r.provider <> :provider AND NOT r.doubtful
        WHEN r.state = 'parked' THEN NOT r.doubtful AND (
            r.total_microcredits <> t.total
            OR (r.cause <> :by_hand AND r.provider <> :provider)
            OR (r.cause = ANY(:follows) AND c.{ref} IS NOT NULL
                AND c.{ref} IS DISTINCT FROM r.customer_ref))
        ELSE false
    END
"""
DUE: Final = {column: sa.text(_DUE.format(ref=column)) for column in ("id", "stripe_customer_id")}

LOCK_LASTS: Final = sa.text(
    """
    SELECT id, state, doubtful FROM usage_reports
    WHERE id = ANY(CAST(:ids AS bigint[])) AND latest ORDER BY id FOR UPDATE
    """
)

HAND_OVER: Final = sa.text(
    """
    UPDATE usage_reports SET state = 'parked', cause = :cause
    WHERE id = ANY(CAST(:ids AS bigint[]))
    """
)

NO_LONGER_LATEST: Final = sa.text(
    "UPDATE usage_reports SET latest = false WHERE id = ANY(CAST(:ids AS bigint[]))"
)

INSERT: Final = sa.text(
    """
    INSERT INTO usage_reports (customer_id, sku_id, hour, revision, latest, provider, meter,
        overwrites, identifier, customer_ref, value, event_at, total_microcredits,
        held_microcredits, state, cause, next_at, created_at)
    VALUES (:customer, :sku, :hour, :revision, true, :provider, :meter, :overwrites, :identifier,
        :customer_ref, :value, :event_at, :total, :held, :state, :cause, :now, :now)
    ON CONFLICT DO NOTHING
    """
)

RECLAIM: Final = sa.text(
    """
    UPDATE usage_reports SET state = 'unknown', doubtful = true, claim = NULL, lease_until = NULL,
        next_at = :now, detail = 'its reporter was gone before the answer was written down'
    WHERE state = 'sending' AND lease_until <= :now
    """
)

PARK_UNDECIDED: Final = sa.text(
    """
    UPDATE usage_reports SET state = 'parked', cause = :cause, detail = :detail
    WHERE state = 'unknown' AND NOT overwrites AND first_sent_at <= :before
    """
)

# The heads are found without locks; whoever locks one first has it, and the others pass over it.
# The state is asked again, of the locked row, in words that no partial index answers to: after a
# great plan its statistics are old, and it would be read whole where 64 ids are to be looked up.
CLAIM: Final = sa.text(
    """
    WITH heads AS MATERIALIZED (
        SELECT DISTINCT ON (q.customer_id, q.meter) q.id
        FROM usage_reports AS q
        WHERE q.provider = :provider AND q.state IN ('pending', 'unknown') AND q.latest
            AND q.next_at <= :now AND q.customer_id > :after
            AND q.meter <> ALL(CAST(:blocked AS text[]))
            AND NOT EXISTS (
                SELECT FROM usage_reports AS s
                WHERE s.state = 'sending' AND s.provider = q.provider
                    AND s.customer_id = q.customer_id AND s.meter = q.meter
            )
        ORDER BY q.customer_id, q.meter, q.hour
        LIMIT :limit
    ), picked AS (
        SELECT id FROM usage_reports
        WHERE id = ANY(ARRAY(SELECT id FROM heads))
            AND state NOT IN ('sending', 'accepted', 'confirmed', 'parked')
        ORDER BY id
        FOR UPDATE SKIP LOCKED
    )
    UPDATE usage_reports AS u SET state = 'sending', claim = :claim, lease_until = :until,
        attempts = u.attempts + 1, first_sent_at = coalesce(u.first_sent_at, :now)
    FROM picked WHERE u.id = picked.id
    RETURNING u.id, u.customer_id, u.identifier, u.customer_ref, u.meter, u.hour, u.value,
        u.event_at, u.attempts, u.doubtful
    """
)

ANSWER: Final = sa.text(
    """
    UPDATE usage_reports SET state = :state, doubtful = :doubtful, cause = :cause,
        detail = :detail, claim = NULL, lease_until = NULL, answered_at = :now, next_at = :next_at
    WHERE id = :id AND state = 'sending' AND claim = :claim
    """
)

RELEASE: Final = sa.text(
    """
    UPDATE usage_reports SET state = CASE WHEN doubtful THEN 'unknown' ELSE 'pending' END,
        claim = NULL, lease_until = NULL, attempts = attempts - 1,
        first_sent_at = CASE WHEN attempts > 1 THEN first_sent_at END
    WHERE id = ANY(CAST(:ids AS bigint[])) AND state = 'sending' AND claim = :claim
    """
)

RETRY: Final = sa.text(
    """
    UPDATE usage_reports SET state = CASE WHEN doubtful THEN 'unknown' ELSE 'pending' END,
        cause = '', next_at = :now
    WHERE id = :id AND state = 'parked' AND latest AND customer_ref IS NOT NULL
        AND held_microcredits >= 0 AND abs(value) < 1000000000000000
        AND (overwrites OR NOT doubtful)
    """
)

PARK: Final = sa.text(
    """
    UPDATE usage_reports SET state = 'parked', cause = :cause, detail = :detail
    WHERE id = :id AND state IN ('pending', 'unknown')
    """
)

OLDEST_OPEN: Final = sa.text(
    """
    SELECT min(hour) FROM usage_reports
    WHERE provider = :provider AND state IN ('pending', 'sending', 'unknown')
    """
)

OPEN_ELSEWHERE: Final = sa.text(
    """
    SELECT DISTINCT provider FROM usage_reports
    WHERE state IN ('pending', 'sending', 'unknown') AND provider <> :provider ORDER BY provider
    """
)

# Accepted is what the providers said they have, whatever the last revision stands for; what that
# one adds to it is open or parked.
SUMS: Final = sa.text(
    """
    WITH logged AS (
        SELECT customer_id, sku_id, hour, sum(amount_microcredits) AS total
        FROM usage_hourly WHERE hour >= :start AND hour < :end GROUP BY 1, 2, 3
    ), accepted AS (
        SELECT customer_id, sku_id, hour, sum(held_microcredits) AS total
        FROM (
            SELECT DISTINCT ON (customer_id, sku_id, hour, provider, customer_ref, meter)
                customer_id, sku_id, hour, held_microcredits
            FROM usage_reports
            WHERE hour >= :start AND hour < :end AND state IN ('accepted', 'confirmed')
            ORDER BY customer_id, sku_id, hour, provider, customer_ref, meter, revision DESC
        ) AS has GROUP BY 1, 2, 3
    ), last AS (
        SELECT customer_id, sku_id, hour, state, total_microcredits AS total
        FROM usage_reports WHERE latest AND hour >= :start AND hour < :end
    )
    SELECT customer_id, sku_id,
        coalesce(sum(logged.total), 0) AS logged,
        coalesce(sum(accepted.total), 0) AS accepted,
        coalesce(sum(last.total - coalesce(accepted.total, 0))
            FILTER (WHERE last.state IN ('pending', 'sending', 'unknown')), 0) AS open,
        coalesce(sum(last.total - coalesce(accepted.total, 0))
            FILTER (WHERE last.state = 'parked'), 0) AS parked,
        coalesce(sum(coalesce(logged.total, 0) - coalesce(last.total, 0)), 0) AS unclaimed
    FROM logged
    FULL JOIN last USING (customer_id, sku_id, hour)
    FULL JOIN accepted USING (customer_id, sku_id, hour)
    GROUP BY customer_id, sku_id ORDER BY customer_id, sku_id
    """
)
