"""The statements of ``billing.reporting.planner``."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from billing.reporting.bucket_sql import held_of, reportable

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

# The SKU's meter now, and that of its last revision.
_NAMES: Final = "ARRAY[CAST(:meters AS jsonb) ->> t.sku_id, r.meter]"

# A bucket, its last revision, what each holder has of it, and until when its periods are closed.
_BUCKET: Final = """
    t.customer_id, t.sku_id, t.hour, t.total, t.carried, c.{ref} AS customer_ref,
    r.id AS last_id, r.provider AS last_provider, r.customer_ref AS last_ref,
    r.meter AS last_meter, r.revision AS last_revision, r.state AS last_state,
    r.cause AS last_cause, r.doubtful AS last_doubtful, r.total_microcredits AS last_total,
    (
        SELECT max(s.period_end) FROM report_seals AS s
        WHERE s.customer_id = t.customer_id AND s.meter = ANY({names})
    ) AS closed_until,
    (
        SELECT jsonb_agg(jsonb_build_array(
            has.provider, has.customer_ref, has.meter, has.held_microcredits::text))
        FROM ({held}) AS has
    ) AS taken
"""

# Buckets that may need something. Why is not asked here: the rules are revision_rules' and
# adjustments'. Their total is not the one that their last revision stood for; or that one is not
# taken and nobody waits for its answer; or it is taken and can make up for a negative hour.
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
        ELSE r.state IN ('pending', 'parked') AND NOT r.doubtful
            AND (r.total_microcredits <> t.total OR r.cause <> ALL(:at_rest))
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
            bucket=_BUCKET.format(ref=column, names=_NAMES, held=held_of("r")),
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
