"""Periods that a provider has made final, in PostgreSQL: recorded, then trued up.

Once an invoice is final, nothing is sent any more for the hours of its periods: it is the last
reading of what the provider has. Truing up compares it with what was accepted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError

from billing.providers.port import ProviderInvoice
from billing.reporting.destination import Metered
from billing.reporting.true_up import LOOK_BACK, Difference, TrueUp

_RECORD: Final = sa.text(
    """
    INSERT INTO report_seals (provider, customer_id, customer_ref, meter, period_start, period_end,
        invoice_ref, billed_value, noticed_at)
    VALUES (:provider, :customer, :ref, :meter, :start, :end, :invoice, :billed, :now)
    ON CONFLICT (provider, invoice_ref, meter, period_end) DO NOTHING
    """
)

_LIST: Final = sa.text(
    """
    SELECT id, provider, customer_id, customer_ref, meter, period_start, period_end, invoice_ref,
        billed_value, noticed_at, settled_at
    FROM report_seals
    WHERE (CAST(:provider AS text) IS NULL OR provider = CAST(:provider AS text))
        AND (NOT :unsettled OR settled_at IS NULL)
    ORDER BY period_end DESC, id DESC LIMIT :limit
    """
)

_UNSETTLED: Final = sa.text(
    """
    SELECT DISTINCT provider, customer_id, customer_ref, meter, period_start, period_end
    FROM report_seals
    WHERE settled_at IS NULL AND period_end <= :now
        AND (CAST(:provider AS text) IS NULL OR provider = CAST(:provider AS text))
    ORDER BY period_end, provider, customer_id, customer_ref, meter, period_start
    """
)


def record_closed_periods(
    connection: Connection,
    provider: str,
    customer_id: str,
    invoice: ProviderInvoice,
    now: datetime,
) -> int:
    """Record the periods that an invoice makes final, once, in the caller's transaction.

    Args:
        connection: Of that transaction.
        provider: Whose invoice.
        customer_id: Our customer.
        invoice: One that is not final closes nothing.
        now: The time.

    Returns:
        How many periods were closed by this call.
    """
    if invoice.finalised_at is None:
        return 0
    # Two lines of one meter that end together are one period, whatever begins within it.
    billed: defaultdict[tuple[str, datetime], int] = defaultdict(int)
    starts: dict[tuple[str, datetime], datetime] = {}
    for line in invoice.lines:
        key = (line.meter, line.period_end)
        billed[key] += line.value
        starts[key] = min(line.period_start, starts.get(key, line.period_start))
    closed = 0
    for (meter, end), value in sorted(billed.items()):
        parameters = {
            "provider": provider, "customer": customer_id, "ref": invoice.customer_ref,
            "meter": meter, "start": starts[meter, end], "end": end,
            "invoice": invoice.provider_id, "billed": value, "now": now,
        }  # fmt: skip
        closed += connection.execute(_RECORD, parameters).rowcount
    if closed:
        connection.execute(LOOK_BACK)
    return closed


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedPeriod:
    """One period of one meter on one invoice; ``billed_value`` in the meter's smallest unit."""

    id: int
    provider: str
    customer: str
    customer_ref: str
    meter: str
    period_start: datetime
    period_end: datetime
    invoice_ref: str
    billed_value: int
    noticed_at: datetime
    settled_at: datetime | None


class ClosedPeriods:
    """Closed periods.

    Args:
        engine: PostgreSQL, as the owner role.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def true_up(
        self,
        provider: str | None,
        metered: Callable[[str], Metered | None],
        now: datetime,
    ) -> Sequence[Difference]:
        """Compare what was billed with what was accepted, of every period that can be settled.

        What was open in such a period is parked first. A period is settled once nothing of it is
        being sent or doubtful: then the books are made to say what was billed, and the difference
        is carried to the hour under way.

        Args:
            provider: Whose periods; None: everybody's.
            metered: How a meter of this name counts; None where nobody knows: its periods wait.
            now: The time.

        Returns:
            What differed.
        """
        differed = []
        with self._engine.connect() as connection:
            waiting = connection.execute(_UNSETTLED, {"provider": provider, "now": now}).all()
        for row in waiting:
            found = metered(row.meter)
            if found is None:
                continue
            try:
                with self._engine.begin() as connection:
                    difference = TrueUp(connection, row, found, now).run()
            except IntegrityError:
                # Another revision of one of these hours was written in this moment; next time.
                continue
            if difference is not None:
                differed.append(difference)
        return differed

    def list(
        self, provider: str | None = None, limit: int = 100, *, unsettled: bool = False
    ) -> Sequence[ClosedPeriod]:
        """Closed periods, the one that ended last first.

        Args:
            provider: Only of this one.
            limit: The most to give.
            unsettled: Only those that wait to be compared with what was accepted.
        """
        parameters = {"provider": provider, "limit": limit, "unsettled": unsettled}
        with self._engine.connect() as connection:
            return [
                ClosedPeriod(
                    id=row.id, provider=row.provider, customer=row.customer_id,
                    customer_ref=row.customer_ref, meter=row.meter, period_start=row.period_start,
                    period_end=row.period_end, invoice_ref=row.invoice_ref,
                    billed_value=int(row.billed_value), noticed_at=row.noticed_at,
                    settled_at=row.settled_at,
                )
                for row in connection.execute(_LIST, parameters)
            ]  # fmt: skip
