"""Findings about reports, written down. Every function runs inside a transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.providers.port import ProviderCause
from billing.reporting.confirmation_rules import Decided, Group, ReadBackFinding
from billing.reporting.usage_report import ReportState, identifier_of

_MAX_DETAIL: Final = 500


# A revision that was written meanwhile is not seen here, but then what was the last one before it
# is no longer: whoever writes one has locked that first.
_LOCK: Final = sa.text(
    """
    SELECT id, hour, revision, latest, state, readings, doubtful FROM usage_reports
    WHERE customer_id = :customer AND sku_id = :sku
        AND hour = ANY(CAST(:hours AS timestamptz[]))
    ORDER BY id FOR UPDATE
    """
)

_CONFIRM: Final = sa.text(
    """
    UPDATE usage_reports SET state = 'confirmed', doubtful = false, confirmed_at = :now,
        confirm_at = NULL, detail = '', cause = CASE state WHEN 'parked' THEN :taken ELSE cause END
    WHERE id = :id
    """
)

_READ_AGAIN: Final = sa.text(
    "UPDATE usage_reports SET readings = :readings, confirm_at = :confirm_at WHERE id = :id"
)

_CLEAR: Final = sa.text(
    """
    UPDATE usage_reports SET doubtful = false, readings = 0, confirm_at = NULL WHERE id = :id
    """
)

_CLOSE: Final = sa.text("UPDATE usage_reports SET confirm_at = NULL WHERE id = :id")

_PARK: Final = sa.text(
    """
    UPDATE usage_reports SET state = 'parked', cause = :cause, detail = :detail,
        doubtful = :doubtful, readings = 0, confirm_at = :confirm_at
    WHERE id = ANY(CAST(:ids AS bigint[]))
    """
)

_SUPERSEDE: Final = sa.text(
    """
    UPDATE usage_reports SET latest = false
    WHERE customer_id = :customer AND sku_id = :sku AND hour = :hour AND latest
    RETURNING total_microcredits
    """
)

_INSERT: Final = sa.text(
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


def still(connection: Connection, group: Group, decided: Sequence[Decided]) -> Iterator[Decided]:
    """Lock the hours of a reading, and give those reports that stand as they stood before it."""
    parameters = {
        "customer": group.customer,
        "sku": group.sku,
        "hours": sorted({each.one.entry.hour for each in decided}),
    }
    locked = connection.execute(_LOCK, parameters).all()
    rows = {row.id: (ReportState(row.state), row.readings, row.doubtful) for row in locked}
    latest = {row.hour: row.id for row in locked if row.latest}
    for each in decided:
        one = each.one
        as_before = all(
            rows.get(entry.id) == (entry.state, entry.readings, entry.outcome_unknown)
            for entry in (one.entry, one.last)
        )
        if as_before and latest.get(one.entry.hour) == one.last.id:
            yield each


def note(
    connection: Connection, group: Group, decided: Decided, environment: str, now: datetime
) -> None:
    """Write down what was found of one report that ``still`` gave.

    Args:
        connection: The transaction of ``still``.
        group: What was read.
        decided: What was found.
        environment: Of identifiers; see ``usage_report.identifier_of``.
        now: The time.
    """
    entry, judgement = decided.one.entry, decided.judgement
    match judgement.finding:
        case ReadBackFinding.CONFIRM:
            parameters = {"id": entry.id, "now": now, "taken": ProviderCause.TAKEN.value}
            connection.execute(_CONFIRM, parameters)
        case ReadBackFinding.WAIT:
            parameters = {"id": entry.id, "readings": judgement.readings}
            at = {"confirm_at": judgement.confirm_at}
            connection.execute(_READ_AGAIN, parameters | at)
        case ReadBackFinding.CLEAR:
            connection.execute(_CLEAR, {"id": entry.id})
        case ReadBackFinding.CLOSE:
            connection.execute(_CLOSE, {"id": entry.id})
        case ReadBackFinding.RESEND:
            _disprove(connection, decided)
            _next(connection, group, decided, environment, now)
        case ReadBackFinding.PARK:
            _disprove(connection, decided)
            if decided.one.is_last:
                _park(connection, [entry.id], decided, judgement.confirm_at, outcome_unknown=True)
            else:
                _next(connection, group, decided, environment, now)
        case ReadBackFinding.GONE:
            _gone(connection, group, decided, environment, now)
        case ReadBackFinding.LEAVE:
            return


def _disprove(connection: Connection, decided: Decided) -> None:
    """Park what was accepted for an hour that shows another figure."""
    one = decided.one
    _park(connection, [one.entry.id, *(each.id for each in one.older)], decided)


def _gone(
    connection: Connection, group: Group, decided: Decided, environment: str, now: datetime
) -> None:
    """Park what a missing customer or meter was told; whoever comes in its place gets it.

    A bucket's last revision says what of it is parked. Where that one says nothing of it, another
    one is written that does.
    """
    _disprove(connection, decided)
    if decided.one.behind_rest:
        _next(connection, group, decided, environment, now)


def _next(
    connection: Connection, group: Group, decided: Decided, environment: str, now: datetime
) -> None:
    """Write the bucket's next revision, of the same figure: to be sent, or parked.

    The outcome of one that differs is unknown: nothing follows it, here or elsewhere, before a
    person has looked.
    """
    one, finding = decided.one, decided.judgement.finding
    entry, revision = one.entry, one.last.revision + 1
    sent, differs = finding is ReadBackFinding.RESEND, finding is ReadBackFinding.PARK
    bucket = {"customer": group.customer, "sku": group.sku, "hour": entry.hour}
    total = connection.execute(_SUPERSEDE, bucket).scalar_one()
    parameters = {
        "id": entry.id, "revision": revision, "total": total, "now": now,
        "value": entry.value,
        "state": (ReportState.PENDING if sent else ReportState.NEEDS_ATTENTION).value,
        "cause": "" if sent else decided.cause, "detail": decided.detail[:_MAX_DETAIL],
        "doubtful": differs, "confirm_at": decided.judgement.confirm_at if differs else None,
        "resent": entry.resent + int(sent),
        "identifier": identifier_of(
            environment, group.holder.provider, group.holder.meter, group.customer,
            entry.hour, revision,
        ),
    }  # fmt: skip
    connection.execute(_INSERT, parameters)


def _park(
    connection: Connection,
    ids: Sequence[int],
    decided: Decided,
    confirm_at: datetime | None = None,
    *,
    outcome_unknown: bool = False,
) -> None:
    parameters = {
        "ids": list(ids), "cause": decided.cause, "detail": decided.detail[:_MAX_DETAIL],
        "doubtful": outcome_unknown, "confirm_at": confirm_at,
    }  # fmt: skip
    connection.execute(_PARK, parameters)
