"""The port to a billing provider, in words of ours.

A *meter* is where a provider counts one SKU. A *report* is one figure for one customer, SKU and
UTC hour. A provider keeps the last figure of an hour, so a resend can never add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol


class ProviderVerdict(StrEnum):
    """The meaning of a provider's answer for a report."""

    ACCEPTED = "accepted"
    """It has the figure (a duplicate identifier says so too). Not yet confirmed: see read_back."""
    UNKNOWN = "unknown"
    """No definite answer: it may have the figure or not. Ask again with the same identifier."""
    REFUSED = "refused"
    """It will not take this figure as it is; a person or a set-up has to change something."""
    STOPPED = "stopped"
    """It refuses us altogether (key, permission): stop reporting, nothing is lost."""


class ProviderCause(StrEnum):
    """The cause of an answer, exhaustively; each belongs to one verdict (``VERDICTS``)."""

    TAKEN = "taken"
    DUPLICATE_IDENTIFIER = "duplicate_identifier"
    TIMED_OUT = "timed_out"
    CONNECTION_FAILED = "connection_failed"
    SERVER_ERROR = "server_error"
    CONFLICT = "conflict"
    RATE_LIMITED = "rate_limited"
    LOCK_TIMEOUT = "lock_timeout"
    TOO_OLD = "too_old"
    IN_THE_FUTURE = "in_the_future"
    CUSTOMER_MISSING = "customer_missing"
    METER_MISSING = "meter_missing"
    METER_INACTIVE = "meter_inactive"
    INVALID_VALUE = "invalid_value"
    INVALID_REQUEST = "invalid_request"
    UNMAPPED_CUSTOMER = "unmapped_customer"
    KEY_REFUSED = "key_refused"
    PERMISSION_REFUSED = "permission_refused"


VERDICTS: Final[Mapping[ProviderCause, ProviderVerdict]] = {
    ProviderCause.TAKEN: ProviderVerdict.ACCEPTED,
    ProviderCause.DUPLICATE_IDENTIFIER: ProviderVerdict.ACCEPTED,
    ProviderCause.TIMED_OUT: ProviderVerdict.UNKNOWN,
    ProviderCause.CONNECTION_FAILED: ProviderVerdict.UNKNOWN,
    ProviderCause.SERVER_ERROR: ProviderVerdict.UNKNOWN,
    ProviderCause.CONFLICT: ProviderVerdict.UNKNOWN,
    ProviderCause.RATE_LIMITED: ProviderVerdict.UNKNOWN,
    ProviderCause.LOCK_TIMEOUT: ProviderVerdict.UNKNOWN,
    ProviderCause.TOO_OLD: ProviderVerdict.REFUSED,
    ProviderCause.IN_THE_FUTURE: ProviderVerdict.REFUSED,
    ProviderCause.CUSTOMER_MISSING: ProviderVerdict.REFUSED,
    ProviderCause.METER_MISSING: ProviderVerdict.REFUSED,
    ProviderCause.METER_INACTIVE: ProviderVerdict.REFUSED,
    ProviderCause.INVALID_VALUE: ProviderVerdict.REFUSED,
    ProviderCause.INVALID_REQUEST: ProviderVerdict.REFUSED,
    ProviderCause.UNMAPPED_CUSTOMER: ProviderVerdict.REFUSED,
    ProviderCause.KEY_REFUSED: ProviderVerdict.STOPPED,
    ProviderCause.PERMISSION_REFUSED: ProviderVerdict.STOPPED,
}
assert set(VERDICTS) == set(ProviderCause)  # noqa: S101 - a relation between constants


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderAnswer:
    """A provider's answer to one report."""

    cause: ProviderCause
    detail: str = ""

    @property
    def verdict(self) -> ProviderVerdict:
        """The meaning for the report."""
        return VERDICTS[self.cause]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderMeter:
    """A provider's counter of one SKU.

    ``name`` is the event name it listens to; ``display_name`` is for people. The last figure of an
    hour counts (an hour window).
    """

    sku: str
    name: str
    display_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterCheck:
    """The result of ``ensure_meters`` for one meter.

    ``differences`` are texts such as ``event_time_window is day, needed hour``: then nothing may be
    reported to it. ``provider_id`` is the provider's own id, empty where it does not exist yet.
    """

    meter: ProviderMeter
    provider_id: str
    created: bool
    differences: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """One figure, complete: what is written down before the first byte leaves, and sent as it is.

    ``value`` is in the meter's smallest unit, an integer; ``timestamp`` lies inside ``hour``.
    ``identifier`` (at most 100 characters) is the same for every attempt of this revision.
    """

    identifier: str
    customer_ref: str
    meter: str
    hour: datetime
    value: int
    timestamp: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceLine:
    """One line of an invoice of ours; ``amount_minor`` in minor units of the invoice's currency."""

    key: str
    description: str
    amount_minor: int
    period_start: datetime
    period_end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """An invoice as the provider has it. ``status``: draft, open, paid, void."""

    provider_id: str
    key: str
    customer_ref: str
    currency: str
    status: str
    total_minor: int
    lines: Sequence[InvoiceLine] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteredLine:
    """The billed usage of one meter on an invoice: ``value`` in the meter's smallest unit.

    Of several lines of one meter and period (tiers, a price changed in between) the sum.
    """

    meter: str
    period_start: datetime
    period_end: datetime
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderInvoice:
    """An invoice that the provider itself made from what was reported, as it stands now.

    ``status``: draft, open, paid, void, uncollectible, deleted. Once ``finalised_at`` is set,
    nothing that is reported for the periods of its ``lines`` changes it any more.
    """

    provider_id: str
    customer_ref: str
    status: str
    currency: str
    total_minor: int
    period_start: datetime
    period_end: datetime
    finalised_at: datetime | None
    payment_failed: bool
    lines: Sequence[MeteredLine] = field(default_factory=tuple)


class ProviderUnavailable(Exception):  # noqa: N818 - as billing.core.errors.QuotaUnavailable
    """No definite answer to a question; the answer to a report is an ``ProviderAnswer``.

    ``cause`` says why, where that is known: a thing that was asked about may not be there.
    """

    cause: ProviderCause | None = None


class Provider(Protocol):
    """A billing provider. Every implementation passes the same contract suite.

    Questions (``ensure_meters``, ``read_back``, invoices) raise ``ProviderUnavailable`` where there
    is no definite answer; ``report_usage`` never raises for what a provider can answer.
    """

    name: str
    """The word in reports and settings: ``stripe``, ``ledger``, ``file``."""

    max_age: timedelta | None
    """How old a figure it takes; None: any age. What is older is carried into the open period."""

    def ensure_meters(
        self, meters: Sequence[ProviderMeter], *, dry_run: bool = False
    ) -> list[MeterCheck]:
        """Create what is missing (not with ``dry_run``) and compare what is there."""
        ...

    def link_customer(self, customer: str, name: str, *, dry_run: bool = False) -> str:
        """The provider's own id of a customer of ours; made there if it has none. Repeatable."""
        ...

    def report_usage(self, report: UsageReport) -> ProviderAnswer:
        """Send one figure. The same report may be sent any number of times."""
        ...

    def read_back(self, customer_ref: str, meter: str, day: date) -> Mapping[datetime, int]:
        """The figures of one UTC day by the start of their hour; unknown hours are absent.

        Raises:
            ProviderUnavailable: No answer; or, with its ``cause``, it says that the customer or
                the meter is not there. A provider that does not know has no figures of it.
        """
        ...

    def open_invoice(
        self, key: str, customer_ref: str, currency: str, lines: Sequence[InvoiceLine]
    ) -> Invoice:
        """A draft with exactly these lines; asked again under the same key, the same draft."""
        ...

    def finalise_invoice(self, provider_id: str) -> Invoice:
        """Make a draft final; of a final one, what it is."""
        ...

    def invoices_since(self, created: datetime) -> Sequence[ProviderInvoice]:
        """Invoices that it made itself for metered usage and created at or after ``created``.

        Webhooks can be lost: this is how closed periods are found without them.
        """
        ...

    def provider_invoice(self, provider_id: str) -> ProviderInvoice:
        """One of them, as it stands now. Raises NotFound where there is none."""
        ...
