"""The statements of ``billing.reporting.report_store``."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

# A comparison is read to its end: a plan that is quick with its first rows would be slow.
READ_WHOLE: Final = sa.text("SET LOCAL cursor_tuple_fraction = 1")

PASSES: Final = sa.text("SELECT depth, started_at FROM report_passes WHERE provider = :provider")

PASSED: Final = sa.text(
    """
    INSERT INTO report_passes (provider, depth, started_at) VALUES (:provider, :depth, :now)
    ON CONFLICT (provider, depth) DO UPDATE SET started_at = excluded.started_at
    """
)

SKUS: Final = sa.text("SELECT id FROM skus ORDER BY id")

# What the hours of a stretch come to, in parts: the log's amounts, less what was carried out of
# them, and what was carried into them.
REPORTABLE: Final = """
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
    """``REPORTABLE`` where a condition on ``{0}``, the column of the hour, is met."""
    names = ("hour", "from_hour", "to_hour")
    return REPORTABLE.format(**{name: condition.format(name) for name in names})


# The SKU's meter now, and that of its last revision.
_NAMES: Final = "ARRAY[CAST(:meters AS jsonb) ->> t.sku_id, r.meter]"

# A bucket, its last revision, what each holder has of it, and until when it is sealed.
_BUCKET: Final = """
    t.customer_id, t.sku_id, t.hour, t.total, t.carried, c.{ref} AS customer_ref,
    r.id AS last_id, r.provider AS last_provider, r.customer_ref AS last_ref,
    r.meter AS last_meter, r.revision AS last_revision, r.state AS last_state,
    r.cause AS last_cause, r.doubtful AS last_doubtful, r.total_microcredits AS last_total,
    (
        SELECT max(s.period_end) FROM report_seals AS s
        WHERE s.customer_id = t.customer_id AND s.meter = ANY({names})
    ) AS sealed_until,
    (
        SELECT jsonb_agg(jsonb_build_array(
            has.provider, has.customer_ref, has.meter, has.held_microcredits::text))
        FROM (
            SELECT DISTINCT ON (provider, customer_ref, meter)
                provider, customer_ref, meter, held_microcredits
            FROM usage_reports AS a
            WHERE a.customer_id = r.customer_id AND a.sku_id = r.sku_id AND a.hour = r.hour
                AND a.state IN ('accepted', 'confirmed')
            ORDER BY provider, customer_ref, meter, revision DESC
        ) AS has
    ) AS taken
"""

_CLOSED: Final = """
    (t.hour < CAST(:too_old AS timestamptz) OR EXISTS (
        SELECT FROM report_seals AS s
        WHERE s.customer_id = t.customer_id AND s.meter = ANY({names})
            AND s.period_end >= t.hour + interval '1 hour'))
"""

# Buckets whose total is not the one that their last revision stood for, those whose last revision
# can be tried elsewhere, those that are closed before they were told, and those that can make up
# for a negative hour. Which of them get what is decided by carry.weigh.
_DUE: Final = """
    SELECT {bucket}
    FROM (
        SELECT customer_id, sku_id, hour, sum(amount) AS total, sum(carried) AS carried
        FROM ({reportable}) AS part GROUP BY customer_id, sku_id, hour
    ) AS t
    JOIN customers AS c ON c.id = t.customer_id
    LEFT JOIN usage_reports AS r ON r.latest AND r.customer_id = t.customer_id
        AND r.sku_id = t.sku_id AND r.hour = t.hour
    WHERE CASE
        WHEN r.id IS NULL THEN t.total <> 0
        WHEN r.state IN ('accepted', 'confirmed') THEN r.total_microcredits <> t.total
            OR (t.total > 0 AND (t.customer_id, t.sku_id) IN (
                SELECT customer_id, sku_id FROM usage_reports
                WHERE state = 'parked' AND latest AND cause = 'below_zero' AND NOT doubtful))
        WHEN r.state = 'pending' THEN NOT r.doubtful AND (r.provider <> :provider
            OR r.meter <> CAST(:meters AS jsonb) ->> t.sku_id OR {closed})
        WHEN r.state = 'parked' THEN NOT r.doubtful AND (
            r.total_microcredits <> t.total
            OR (r.cause <> ALL(:at_rest) AND r.provider <> :provider)
            OR r.cause = :no_answer
            OR (r.cause = ANY(:follows) AND c.{ref} IS NOT NULL
                AND c.{ref} IS DISTINCT FROM r.customer_ref)
            OR (r.cause <> ALL(:at_rest) AND c.{ref} IS NOT NULL AND {closed}))
        ELSE false
    END
    ORDER BY t.customer_id, t.sku_id, t.hour
"""

# What earlier hours could not tell, of the SKUs of some customers. The causes are written out, for
# the index has them in its condition.
_LEFTOVERS: Final = """
    SELECT {bucket}
    FROM (
        SELECT DISTINCT customer_id, sku_id
        FROM unnest(CAST(:of_customers AS text[]), CAST(:of_skus AS text[]))
            AS o (customer_id, sku_id)
    ) AS o
    JOIN usage_reports AS r ON r.customer_id = o.customer_id AND r.sku_id = o.sku_id
        AND r.state = 'parked' AND r.latest AND r.cause IN ('below_zero', 'below_unit')
        AND NOT r.doubtful AND r.provider = :provider
    CROSS JOIN LATERAL (
        SELECT r.customer_id, r.sku_id, r.hour, r.total_microcredits AS total, 0 AS carried
    ) AS t
    JOIN customers AS c ON c.id = t.customer_id
"""


def _by_customer_column(statement: str) -> dict[str, sa.TextClause]:
    made = {}
    for column in ("id", "stripe_customer_id"):
        text = statement.format(
            bucket=_BUCKET.format(ref=column, names=_NAMES), closed=_CLOSED.format(names=_NAMES),
            ref=column,
            reportable=reportable(
                "{0} < :until AND (CAST(:since AS timestamptz) IS NULL"
                " OR {0} >= CAST(:since AS timestamptz))"
            ),
        )  # fmt: skip
        made[column] = sa.text(text)
    return made


DUE: Final = _by_customer_column(_DUE)
LEFTOVERS: Final = _by_customer_column(_LEFTOVERS)

LOCK_LASTS: Final = sa.text(
    """
    SELECT id, state, cause, doubtful FROM usage_reports
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

# One statement however many: it says which of them were written.
INSERT: Final = sa.text(
    """
    INSERT INTO usage_reports (customer_id, sku_id, hour, revision, latest, provider, meter,
        overwrites, identifier, customer_ref, value, event_at, total_microcredits,
        held_microcredits, state, cause, detail, next_at, created_at)
    SELECT customer, sku, hour, revision, true, :provider, meter, true, identifier,
        customer_ref, value, event_at, total, held, state, cause, detail, :now, :now
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS n (customer text, sku text, hour timestamptz,
        revision integer, meter text, identifier text, customer_ref text, value numeric,
        event_at timestamptz, total numeric, held numeric, state text, cause text,
        detail text)
    ON CONFLICT DO NOTHING
    RETURNING identifier
    """
)

CARRY: Final = sa.text(
    """
    INSERT INTO report_carries (customer_id, sku_id, from_hour, to_hour, amount_microcredits,
        reason, created_at)
    SELECT customer, sku, from_hour, to_hour, amount, reason, :now
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS n (customer text, sku text,
        from_hour timestamptz, to_hour timestamptz, amount numeric, reason text)
    """
)

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
# Whatever provider has sealed an hour, nothing is sent for it; what is too old and was never sent
# waits for the plan to carry it. What may have arrived is asked for again at any age.
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
