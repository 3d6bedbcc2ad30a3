"""The built-in provider: PostgreSQL alone. The default where there is no key for another.

It behaves as a provider with hour windows: the last figure taken for an hour counts, an identifier
is taken once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from billing.core.errors import AlreadyExists, NotFound
from billing.providers.builtin_checks import (
    BuiltinProvider,
    line_of,
    lines_as_data,
    refusal,
    total_of,
)
from billing.providers.port import (
    Invoice,
    InvoiceLine,
    ProviderAnswer,
    ProviderCause,
    ProviderUnavailable,
    UsageReport,
)

_TAKE: Final = sa.text(
    """
    INSERT INTO ledger_figures (identifier, customer_id, meter, hour, value, event_at)
    SELECT :identifier, id, :meter, :hour, :value, :event_at FROM customers WHERE id = :customer
    ON CONFLICT (identifier) DO NOTHING
    """
)
_IS_TAKEN: Final = sa.text("SELECT FROM ledger_figures WHERE identifier = :identifier")
_CUSTOMER: Final = sa.text("SELECT id FROM customers WHERE id = :customer")
_DAY: Final = sa.text(
    """
    SELECT DISTINCT ON (hour) hour, value FROM ledger_figures
    WHERE customer_id = :customer AND meter = :meter AND hour >= :start AND hour < :end
    ORDER BY hour, id DESC
    """
)
_OPEN: Final = sa.text(
    """
    INSERT INTO ledger_invoices (key, customer_id, currency, lines)
    VALUES (:key, :customer, :currency, CAST(:lines AS jsonb)) ON CONFLICT (key) DO NOTHING
    """
)
_INVOICE: Final = sa.text(
    "SELECT id, key, customer_id, currency, status, lines FROM ledger_invoices WHERE key = :key"
)
_FINALISE: Final = sa.text(
    """
    UPDATE ledger_invoices SET status = CASE status WHEN 'draft' THEN 'open' ELSE status END
    WHERE id = :id RETURNING id, key, customer_id, currency, status, lines
    """
)


class LedgerProvider(BuiltinProvider):
    """Accepted figures and invoices as rows.

    Args:
        engine: PostgreSQL, as the owner role.
    """

    name = "ledger"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def link_customer(self, customer: str, name: str, *, dry_run: bool = False) -> str:
        """The customer's own id.

        Raises:
            NotFound: There is no such customer.
            ProviderUnavailable: PostgreSQL did not answer.
        """
        del name, dry_run
        with _Asking(), self._engine.connect() as connection:
            found = connection.execute(_CUSTOMER, {"customer": customer}).scalar()
        if found is None:
            raise NotFound("customer", customer, "see: billing customers list")
        return customer

    def report_usage(self, report: UsageReport) -> ProviderAnswer:
        """Take a figure; see ``port.Provider``."""
        refused = refusal(report)
        if refused is not None:
            return refused
        parameters = {
            "identifier": report.identifier,
            "customer": report.customer_ref,
            "meter": report.meter,
            "hour": report.hour,
            "value": report.value,
            "event_at": report.timestamp,
        }
        try:
            with self._engine.begin() as connection:
                if connection.execute(_TAKE, parameters).rowcount:
                    return ProviderAnswer(cause=ProviderCause.TAKEN)
                taken = connection.execute(_IS_TAKEN, parameters).first() is not None
        except DBAPIError as error:
            # Whether a COMMIT whose answer was lost has happened cannot be known.
            return ProviderAnswer(
                cause=ProviderCause.CONNECTION_FAILED, detail=str(error.orig)[:300]
            )
        if taken:
            return ProviderAnswer(cause=ProviderCause.DUPLICATE_IDENTIFIER)
        return ProviderAnswer(
            cause=ProviderCause.CUSTOMER_MISSING, detail=f"no customer {report.customer_ref!r}"
        )

    def read_back(self, customer_ref: str, meter: str, day: date) -> Mapping[datetime, int]:
        """The figures of a UTC day; see ``port.Provider``."""
        start = datetime.combine(day, time(), UTC)
        parameters = {
            "customer": customer_ref,
            "meter": meter,
            "start": start,
            "end": start + timedelta(days=1),
        }
        with _Asking(), self._engine.connect() as connection:
            rows = connection.execute(_DAY, parameters).all()
        return {row.hour.astimezone(UTC): int(row.value) for row in rows}

    def open_invoice(
        self, key: str, customer_ref: str, currency: str, lines: Sequence[InvoiceLine]
    ) -> Invoice:
        """A draft; see ``port.Provider``.

        Raises:
            AlreadyExists: The key is taken by an invoice with other content.
            ProviderUnavailable: PostgreSQL did not answer.
        """
        parameters = {
            "key": key,
            "customer": customer_ref,
            "currency": currency,
            "lines": orjson.dumps(lines_as_data(lines)).decode(),
        }
        with _Asking(), self._engine.begin() as connection:
            connection.execute(_OPEN, parameters)
            invoice = _invoice(connection.execute(_INVOICE, {"key": key}).one())
        asked = (customer_ref, currency, tuple(lines))
        if (invoice.customer_ref, invoice.currency, invoice.lines) != asked:
            raise AlreadyExists(f"invoice {key!r} is there already, with other content")
        return invoice

    def finalise_invoice(self, provider_id: str) -> Invoice:
        """Make a draft final; see ``port.Provider``.

        Raises:
            NotFound: There is no such invoice.
            ProviderUnavailable: PostgreSQL did not answer.
        """
        row = None
        if provider_id.isdecimal():
            with _Asking(), self._engine.begin() as connection:
                row = connection.execute(_FINALISE, {"id": int(provider_id)}).one_or_none()
        if row is None:
            raise NotFound("invoice", provider_id, "open it first")
        return _invoice(row)


class _Asking:
    """Tells a database that does not answer as ``ProviderUnavailable``."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DBAPIError) and not isinstance(error, sa.exc.IntegrityError):
            raise ProviderUnavailable(str(error.orig)[:300]) from error


def _invoice(row: Any) -> Invoice:  # noqa: ANN401 - a row of either statement
    lines = tuple(line_of(data) for data in row.lines)
    return Invoice(
        provider_id=str(row.id),
        key=row.key,
        customer_ref=row.customer_id,
        currency=row.currency,
        status=row.status,
        total_minor=total_of(lines),
        lines=lines,
    )
