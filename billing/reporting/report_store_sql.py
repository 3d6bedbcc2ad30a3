"""The statements of ``billing.reporting.report_store``."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from billing.reporting.bucket_sql import reportable

RECLAIM: Final = sa.text(
    """
    UPDATE usage_reports SET state = 'unknown', doubtful = true, claim = NULL, lease_until = NULL,
        next_at = :now, detail = 'its reporter was gone before the answer was written down'
    WHERE state = 'sending' AND lease_until <= :now
    """
)

# Which customers and meters have something waiting is found by hopping from one to the next in the
# index, in its order; a DISTINCT would walk over every report that waits, for every 64 of them.
# The heads are found without locks; whoever locks one first has it, and the others pass over it.
# The state is asked again, of the locked row, in words that no partial index answers to: after a
# great plan its statistics are old, and it would be read whole where 64 ids are to be looked up.
# Whatever provider has closed an hour's period, nothing is sent for it; what is too old and was
# never sent waits for the plan to carry it. What may have arrived is sent again at any age.
CLAIM: Final = sa.text(
    """
    WITH RECURSIVE waiting AS (
        (SELECT customer_id, meter FROM usage_reports
         WHERE provider = :provider AND state IN ('pending', 'unknown') AND customer_id > :after
         ORDER BY customer_id, meter LIMIT 1)
        UNION ALL
        SELECT following.customer_id, following.meter FROM waiting AS w, LATERAL (
            SELECT n.customer_id, n.meter FROM usage_reports AS n
            WHERE n.provider = :provider AND n.state IN ('pending', 'unknown')
                AND (n.customer_id, n.meter) > (w.customer_id, w.meter)
            ORDER BY n.customer_id, n.meter LIMIT 1
        ) AS following
    ), heads AS MATERIALIZED (
        SELECT head.id
        FROM waiting AS w
        CROSS JOIN LATERAL (
            SELECT max(s.period_end) AS until FROM report_seals AS s
            WHERE s.customer_id = w.customer_id AND s.meter = w.meter
        ) AS sealed
        CROSS JOIN LATERAL (
            SELECT q.id FROM usage_reports AS q
            WHERE q.provider = :provider AND q.state IN ('pending', 'unknown')
                AND q.customer_id = w.customer_id AND q.meter = w.meter
                AND q.latest AND q.next_at <= :now
                AND (q.state = 'unknown' OR CAST(:known AS text[]) IS NULL
                    OR q.meter = ANY(CAST(:known AS text[])))
                AND (sealed.until IS NULL OR q.hour + interval '1 hour' > sealed.until)
                AND (q.state = 'unknown' OR CAST(:too_old AS timestamptz) IS NULL
                    OR q.hour >= CAST(:too_old AS timestamptz))
            ORDER BY q.hour LIMIT 1
        ) AS head
        WHERE w.meter <> ALL(CAST(:blocked AS text[]))
            AND NOT EXISTS (
                SELECT FROM usage_reports AS s
                WHERE s.state = 'sending' AND s.provider = :provider
                    AND s.customer_id = w.customer_id AND s.meter = w.meter
            )
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
        detail = :detail, claim = NULL, lease_until = NULL, answered_at = :now, next_at = :next_at,
        confirm_at = CASE WHEN :state = 'accepted' OR (:state = 'parked' AND :doubtful)
            THEN CAST(:confirm_at AS timestamptz) END
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

_AS_IT_IS: Final = """
    UPDATE usage_reports SET state = CASE WHEN doubtful THEN 'unknown' ELSE 'pending' END,
        cause = '', confirm_at = NULL, next_at = :now
    WHERE id = :id AND state = 'parked' AND latest AND customer_ref IS NOT NULL
        AND cause NOT IN ('carried', 'nothing_to_tell', 'below_unit')
        AND held_microcredits >= 0 AND abs(value) <= :largest
"""

RETRY: Final = sa.text(_AS_IT_IS)

# What is held back by hand, or of which nobody knows whether it arrived.
_HELD_BACK: Final = "(cause IN ('by_hand', 'no_answer') OR doubtful)"

UNPARK: Final = sa.text(f"{_AS_IT_IS} AND {_HELD_BACK}")

ARRIVED: Final = sa.text(
    """
    UPDATE usage_reports SET state = 'accepted', doubtful = false, cause = :cause,
        answered_at = :now, confirm_at = :now
    WHERE id = :id AND state = 'parked' AND latest AND doubtful
    """
)

_NEVER_ARRIVED: Final = """
    UPDATE usage_reports SET doubtful = false, cause = :cause, confirm_at = NULL
    WHERE id = :id AND state = 'parked' AND latest AND {}
"""

NEVER_ARRIVED: Final = sa.text(_NEVER_ARRIVED.format(_HELD_BACK))

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
_SUMS: Final = """
    WITH reportable AS (
        SELECT customer_id, sku_id, hour, sum(amount) AS total, sum(carried) AS carried
        FROM ({reportable}) AS part GROUP BY 1, 2, 3
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
        coalesce(sum(reportable.total + reportable.carried), 0) AS logged,
        coalesce(sum(accepted.total), 0) AS accepted,
        coalesce(sum(last.total - coalesce(accepted.total, 0))
            FILTER (WHERE last.state IN ('pending', 'sending', 'unknown')), 0) AS open,
        coalesce(sum(last.total - coalesce(accepted.total, 0))
            FILTER (WHERE last.state = 'parked'), 0) AS parked,
        coalesce(sum(coalesce(reportable.total, 0) - coalesce(last.total, 0)), 0) AS unclaimed,
        coalesce(sum(reportable.carried), 0) AS carried
    FROM reportable
    FULL JOIN last USING (customer_id, sku_id, hour)
    FULL JOIN accepted USING (customer_id, sku_id, hour)
    GROUP BY customer_id, sku_id ORDER BY customer_id, sku_id
"""

SUMS: Final = sa.text(_SUMS.format(reportable=reportable("{0} >= :start AND {0} < :end")))
