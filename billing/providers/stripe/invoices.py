"""Invoices of ours at Stripe: a draft, its items, read back, and only then final.

The draft's metadata has our key and a digest of the lines it was asked with, each line's metadata
its key and its place: a draft left half done is completed, one with other lines is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import orjson
import stripe

from billing.core.errors import AlreadyExists, InvalidValue, NotFound
from billing.providers.builtin_checks import lines_as_data, total_of
from billing.providers.port import Invoice, InvoiceLine
from billing.providers.stripe.client import (
    PAGE,
    asking,
    id_of,
    idempotency_key,
    instant_of,
    is_missing,
    metadata_of,
    once,
)

MAX_LINES: Final = 250
"""Items that an invoice of Stripe's may have."""
MAX_LINE_KEY: Final = 200
KEY: Final = "weighbridge_invoice"
DIGEST: Final = "weighbridge_lines"
LINE: Final = "weighbridge_line"
PLACE: Final = "weighbridge_place"
_STATUSES: Final = {"draft": "draft", "paid": "paid", "void": "void"}


class StripeInvoices:
    """One-off invoices; nothing that is pending for the customer gets onto them.

    Args:
        client: The client of stripe-python.
    """

    def __init__(self, client: stripe.StripeClient) -> None:
        self._v1 = client.v1

    def open(
        self, key: str, customer_ref: str, currency: str, lines: Sequence[InvoiceLine]
    ) -> Invoice:
        """A draft with exactly these lines; asked again under the same key, the same invoice.

        Stripe never finalizes it by itself (``auto_advance`` is off).

        Raises:
            InvalidValue: More lines than an invoice has, or two under one key.
            AlreadyExists: The key is taken by an invoice with other content.
            StripeUnanswered: Stripe did not answer; ask again.
        """
        _check(lines)
        digest = digest_of(currency, lines)
        with asking():
            invoice = self._of_key(key, customer_ref)
            if invoice is None:
                invoice = self._draft(key, customer_ref, currency, digest)
            if metadata_of(invoice).get(DIGEST) != digest:
                raise AlreadyExists(f"invoice {key!r} is there already, with other content")
            if invoice.status == "draft":
                self._complete(invoice, customer_ref, currency, lines)
            return self._read(invoice.id)

    def finalise(self, provider_id: str) -> Invoice:
        """Make a draft final if it has the lines it was opened with; of a final one, what it is.

        Raises:
            NotFound: There is no such invoice, or none of ours.
            AlreadyExists: Its lines or its total are not what it was opened with.
            StripeUnanswered: Stripe did not answer; ask again.
        """
        with asking():
            invoice = self._read(provider_id)
            if invoice.status != "draft":
                return invoice
            params: Any = {"auto_advance": False}
            try:
                once(
                    idempotency_key("fin", provider_id),
                    lambda options: self._v1.invoices.finalize_invoice(
                        provider_id, params, options
                    ),
                    lambda: self._final(provider_id),
                )
            except stripe.InvalidRequestError:
                # Another process was faster; whatever it is, it shows in the invoice.
                if self._final(provider_id) is None:
                    raise
            return self._read(provider_id)

    def _of_key(self, key: str, customer_ref: str) -> stripe.Invoice | None:
        listed = self._v1.invoices.list({"customer": customer_ref, "limit": PAGE})
        for invoice in listed.auto_paging_iter():
            if metadata_of(invoice).get(KEY) == key:
                return invoice
        return None

    def _draft(self, key: str, customer_ref: str, currency: str, digest: str) -> stripe.Invoice:
        params: Any = {
            "customer": customer_ref,
            "currency": currency.lower(),
            "auto_advance": False,
            "pending_invoice_items_behavior": "exclude",
            "metadata": {KEY: key, DIGEST: digest},
        }
        return once(
            idempotency_key("inv", key),
            lambda options: self._v1.invoices.create(params, options),
            lambda: self._of_key(key, customer_ref),
        )

    def _complete(
        self,
        invoice: stripe.Invoice,
        customer_ref: str,
        currency: str,
        lines: Sequence[InvoiceLine],
    ) -> None:
        there = {metadata_of(line).get(LINE) for line in self._lines(invoice.id)}
        for place, line in enumerate(lines):
            if line.key in there:
                continue
            params: Any = {
                "customer": customer_ref,
                "invoice": invoice.id,
                "amount": line.amount_minor,
                "currency": currency.lower(),
                "description": line.description,
                "period": {"start": _unix(line.period_start), "end": _unix(line.period_end)},
                "metadata": {LINE: line.key, PLACE: str(place)},
            }
            self._add(invoice.id, line.key, params)

    def _add(self, invoice_id: str, line_key: str, params: Any) -> None:  # noqa: ANN401 - a TypedDict
        def listed() -> stripe.InvoiceItem | None:
            found = self._v1.invoice_items.list({"invoice": invoice_id, "limit": PAGE})
            for item in found.auto_paging_iter():
                if metadata_of(item).get(LINE) == line_key:
                    return item
            return None

        once(
            idempotency_key("ii", invoice_id, line_key),
            lambda options: self._v1.invoice_items.create(params, options),
            listed,
        )

    def _lines(self, invoice_id: str) -> list[stripe.InvoiceLineItem]:
        listed = self._v1.invoices.line_items.list(invoice_id, {"limit": PAGE})
        return list(listed.auto_paging_iter())

    def _final(self, provider_id: str) -> stripe.Invoice | None:
        invoice = self._v1.invoices.retrieve(provider_id)
        return invoice if invoice.status != "draft" else None

    def _read(self, provider_id: str) -> Invoice:
        """The invoice with its lines, compared with what it was opened with."""
        try:
            found = self._v1.invoices.retrieve(provider_id)
        except stripe.InvalidRequestError as error:
            if is_missing(error):
                raise NotFound("invoice", provider_id, "open it first") from error
            raise
        metadata = metadata_of(found)
        if KEY not in metadata:
            raise NotFound("invoice", provider_id, "it is none of ours; open one first")
        lines = _ours(self._lines(provider_id))
        currency = found.currency.upper()
        same = digest_of(currency, lines) == metadata.get(DIGEST)
        if not same or found.total != total_of(lines):
            raise AlreadyExists(
                f"invoice {provider_id} has lines or a total at Stripe that it was not opened "
                "with; delete the draft there and open it again"
            )
        return Invoice(
            provider_id=found.id,
            key=metadata[KEY],
            customer_ref=id_of(found.customer),
            currency=currency,
            status=_STATUSES.get(str(found.status), "open"),
            total_minor=found.total,
            lines=lines,
        )


def digest_of(currency: str, lines: Sequence[InvoiceLine]) -> str:
    """The same text for the same lines in the same order, to the second. Pure."""
    data = [currency.upper(), lines_as_data([_to_the_second(line) for line in lines])]
    return hashlib.sha256(orjson.dumps(data)).hexdigest()


def _check(lines: Sequence[InvoiceLine]) -> None:
    if len(lines) > MAX_LINES:
        raise InvalidValue("lines", len(lines), f"an invoice at Stripe has at most {MAX_LINES}")
    keys = [line.key for line in lines]
    if len(set(keys)) != len(keys):
        raise InvalidValue("lines", keys, "each line has a key of its own")
    for line in lines:
        if not 1 <= len(line.key) <= MAX_LINE_KEY:
            raise InvalidValue("key", line.key, f"1 to {MAX_LINE_KEY} characters")


def _ours(found: Iterable[stripe.InvoiceLineItem]) -> tuple[InvoiceLine, ...]:
    lines = [(metadata_of(line), line) for line in found]
    lines.sort(key=lambda pair: int(pair[0].get(PLACE, "0")))
    return tuple(
        InvoiceLine(
            key=metadata.get(LINE, ""),
            description=line.description or "",
            amount_minor=line.amount,
            period_start=instant_of(line.period.start),
            period_end=instant_of(line.period.end),
        )
        for metadata, line in lines
    )


def _to_the_second(line: InvoiceLine) -> InvoiceLine:
    return replace(
        line,
        period_start=instant_of(_unix(line.period_start)),
        period_end=instant_of(_unix(line.period_end)),
    )


def _unix(instant: datetime) -> int:
    return int(instant.timestamp())
