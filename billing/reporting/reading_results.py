"""What a reading makes of a report, written down. Every function runs inside a transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy.engine import Connection

from billing.providers.port import ProviderCause
from billing.reporting import confirmation_queries as queries
from billing.reporting.confirmation_rules import Decided, Group, ReadingFinding
from billing.reporting.usage_report import ReportState, identifier_of

_MAX_DETAIL: Final = 500


def still(connection: Connection, group: Group, decided: Sequence[Decided]) -> Iterator[Decided]:
    """Lock the hours of a reading, and give those reports that stand as they stood before it."""
    parameters = {
        "customer": group.customer,
        "sku": group.sku,
        "hours": sorted({each.one.entry.hour for each in decided}),
    }
    locked = connection.execute(queries.LOCK, parameters).all()
    rows = {row.id: (ReportState(row.state), row.readings, row.doubtful) for row in locked}
    latest = {row.hour: row.id for row in locked if row.latest}
    for each in decided:
        one = each.one
        as_before = all(
            rows.get(entry.id) == (entry.state, entry.readings, entry.doubtful)
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
        environment: Of identifiers; see ``report.identifier_of``.
        now: The time.
    """
    entry, judgement = decided.one.entry, decided.judgement
    match judgement.finding:
        case ReadingFinding.CONFIRM:
            parameters = {"id": entry.id, "now": now, "taken": ProviderCause.TAKEN.value}
            connection.execute(queries.CONFIRM, parameters)
        case ReadingFinding.WAIT:
            parameters = {"id": entry.id, "readings": judgement.readings}
            at = {"confirm_at": judgement.confirm_at}
            connection.execute(queries.READ_AGAIN, parameters | at)
        case ReadingFinding.CLEAR:
            connection.execute(queries.CLEAR, {"id": entry.id})
        case ReadingFinding.CLOSE:
            connection.execute(queries.CLOSE, {"id": entry.id})
        case ReadingFinding.RESEND:
            _disprove(connection, decided)
            _next(connection, group, decided, environment, now)
        case ReadingFinding.PARK:
            _disprove(connection, decided)
            if decided.one.is_last:
                _park(connection, [entry.id], decided, judgement.confirm_at, doubtful=True)
            else:
                _next(connection, group, decided, environment, now)
        case ReadingFinding.GONE:
            _gone(connection, group, decided, environment, now)
        case ReadingFinding.LEAVE:
            return


def _disprove(connection: Connection, decided: Decided) -> None:
    """What was accepted for an hour that shows another figure counts as accepted no longer."""
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

    One that differs is doubtful: nothing follows it, here or elsewhere, before a person has looked.
    """
    one, finding = decided.one, decided.judgement.finding
    entry, revision = one.entry, one.last.revision + 1
    sent, differs = finding is ReadingFinding.RESEND, finding is ReadingFinding.PARK
    bucket = {"customer": group.customer, "sku": group.sku, "hour": entry.hour}
    total = connection.execute(queries.SUPERSEDE, bucket).scalar_one()
    parameters = {
        "id": entry.id, "revision": revision, "total": total, "now": now,
        "value": entry.value,
        "state": (ReportState.PENDING if sent else ReportState.PARKED).value,
        "cause": "" if sent else decided.cause, "detail": decided.detail[:_MAX_DETAIL],
        "doubtful": differs, "confirm_at": decided.judgement.confirm_at if differs else None,
        "resent": entry.resent + int(sent),
        "identifier": identifier_of(
            environment, group.holder.provider, group.holder.meter, group.customer,
            entry.hour, revision,
        ),
    }  # fmt: skip
    connection.execute(queries.INSERT, parameters)


def _park(
    connection: Connection,
    ids: Sequence[int],
    decided: Decided,
    confirm_at: datetime | None = None,
    *,
    doubtful: bool = False,
) -> None:
    parameters = {
        "ids": list(ids), "cause": decided.cause, "detail": decided.detail[:_MAX_DETAIL],
        "doubtful": doubtful, "confirm_at": confirm_at,
    }  # fmt: skip
    connection.execute(queries.PARK, parameters)
