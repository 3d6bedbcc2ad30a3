"""Invoices: a draft, its lines, final, paid or void; made by a client or at the end of a cycle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from billing.devtools.stripe_sandbox import errors
from billing.devtools.stripe_sandbox.clock import MovableClock
from billing.devtools.stripe_sandbox.customers import Customers
from billing.devtools.stripe_sandbox.errors import JsonObject
from billing.devtools.stripe_sandbox.events import Events
from billing.devtools.stripe_sandbox.ids import Ids
from billing.devtools.stripe_sandbox.invoice_objects import (
    AUTO_ADVANCE_SECONDS,
    invoice_object,
    line_object,
)
from billing.devtools.stripe_sandbox.paging import within

MAX_ITEMS: Final = 250
A_DAY: Final = 86_400

MeteredLines = Callable[[JsonObject], list[JsonObject]]
"""The metered lines of a draft as they would be if it became final now."""


class Invoices:
    """The invoices of this sandbox. Items are kept in ``InvoiceItems``, which reads this."""

    def __init__(self, clock: MovableClock, ids: Ids, events: Events, customers: Customers) -> None:
        self._clock = clock
        self._ids = ids
        self._events = events
        self._customers = customers
        self._by_id: dict[str, JsonObject] = {}
        self._lines: dict[str, list[JsonObject]] = {}
        self._advancing: set[str] = set()
        self._metered: dict[str, MeteredLines] = {}
        self._numbered = 0

    def create(self, params: dict[str, Any]) -> JsonObject:
        """A draft without lines.

        Raises:
            Refusal: No such customer, or a due date that does not fit the way of collection.
        """
        customer = self._customers.given(params["customer"])
        instant = int(self._clock.seconds())
        due = self._due(params, instant)
        invoice = invoice_object(self._ids.new("in"), customer, params, instant, due)
        self._by_id[invoice["id"]] = invoice
        self._lines[invoice["id"]] = []
        self._refresh(invoice)
        self._schedule(invoice)
        self._events.snapshot("invoice.created", invoice)
        return invoice

    def add_cycle(self, invoice: JsonObject, lines: MeteredLines) -> None:
        """A draft that Stripe itself has made; its metered lines are told now and when final."""
        self._by_id[invoice["id"]] = invoice
        self._lines[invoice["id"]] = lines(invoice)
        self._metered[invoice["id"]] = lines
        self._refresh(invoice)
        self._schedule(invoice)
        self._events.snapshot("invoice.created", invoice)

    def retrieve(self, invoice_id: str, *, param: str = "id") -> JsonObject:
        """The invoice.

        Raises:
            Refusal: There is none.
        """
        if invoice_id not in self._by_id:
            raise errors.no_such("invoice", invoice_id, param=param, in_path=param == "id")
        return self._by_id[invoice_id]

    def update(self, invoice_id: str, params: dict[str, Any]) -> JsonObject:
        """Change a draft; of a final one only its metadata and description."""
        invoice = self.retrieve(invoice_id)
        if invoice["status"] != "draft" and params.keys() - {"metadata", "description"}:
            raise _not_editable(invoice)
        if "metadata" in params:
            merged = {**invoice["metadata"], **params["metadata"]} if params["metadata"] else {}
            params = {**params, "metadata": {k: v for k, v in merged.items() if v != ""}}
        if "auto_advance" in params and "automatically_finalizes_at" not in params:
            at = invoice["created"] + AUTO_ADVANCE_SECONDS if params["auto_advance"] else None
            params = {**params, "automatically_finalizes_at": at}
        invoice.update(params)
        self._schedule(invoice)
        self._events.snapshot("invoice.updated", invoice)
        return invoice

    def delete(self, invoice_id: str) -> JsonObject:
        """Delete a draft that a client has made; any other invoice can only be voided.

        Raises:
            Refusal: It is final, or belongs to a subscription.
        """
        if self.draft(invoice_id)["parent"] is not None:
            raise errors.failed("You can't delete invoices created by subscriptions.")
        self._drop(invoice_id)
        return {"id": invoice_id, "object": "invoice", "deleted": True}

    def cancel_cycles(self, customer: str) -> None:
        """Delete the drafts of a customer's cycles, as the customer is deleted."""
        for invoice in self.newest({"customer": customer, "status": "draft"}):
            if invoice["parent"] is not None:
                self._drop(invoice["id"])

    def draft(self, invoice_id: str, *, param: str = "id") -> JsonObject:
        """The invoice, which has to be a draft.

        Raises:
            Refusal: It is final.
        """
        invoice = self.retrieve(invoice_id, param=param)
        if invoice["status"] != "draft":
            raise _not_editable(invoice)
        return invoice

    def finalise(self, invoice_id: str, *, at: int | None = None) -> JsonObject:
        """Make a draft final. What asks for nothing is paid at once.

        Args:
            invoice_id: Which.
            at: When it was due, where nobody asked for it.

        Raises:
            Refusal: It is final already.
        """
        invoice = self.retrieve(invoice_id)
        if invoice["status"] != "draft":
            raise errors.failed(
                "This invoice is already finalized, you can't re-finalize a non-draft invoice."
            )
        self._count_metered(invoice)
        instant = int(self._clock.seconds()) if at is None else at
        self._numbered += 1
        invoice.update(
            status="open",
            number=f"SANDBOX-{self._numbered:04d}",
            effective_at=instant,
            ending_balance=0,
            automatically_finalizes_at=None,
        )
        self._schedule(invoice)
        invoice["status_transitions"]["finalized_at"] = instant
        self._events.snapshot("invoice.finalized", invoice)
        if invoice["amount_due"] == 0:
            self._paid(invoice)
        return invoice

    def pay(self, invoice_id: str, *, decline: bool = False) -> JsonObject:
        """Pay an open invoice, or one that was given up.

        Raises:
            Refusal: It is neither, or the payment is declined.
        """
        invoice = self._collectible(invoice_id, "pay")
        invoice["attempted"] = True
        invoice["attempt_count"] += 1
        if decline:
            self._events.snapshot("invoice.payment_failed", invoice)
            raise errors.declined()
        self._paid(invoice)
        return invoice

    def void(self, invoice_id: str) -> JsonObject:
        """Void an open invoice, or one that was given up.

        Raises:
            Refusal: It is neither.
        """
        invoice = self._collectible(invoice_id, "void")
        return self._ended(invoice, "void", "voided_at", "invoice.voided")

    def give_up(self, invoice_id: str) -> JsonObject:
        """Mark an open invoice as uncollectible.

        Raises:
            Refusal: It is not open.
        """
        invoice = self.retrieve(invoice_id)
        if invoice["status"] != "open":
            raise _wrong_status(invoice, "mark as uncollectible")
        return self._ended(
            invoice, "uncollectible", "marked_uncollectible_at", "invoice.marked_uncollectible"
        )

    def finalise_due(self) -> None:
        """Finalize the drafts whose time has come (``auto_advance``)."""
        now = self._clock.seconds()
        for invoice_id in sorted(self._advancing):
            due: int = self._by_id[invoice_id]["automatically_finalizes_at"]
            if due <= now:
                self.finalise(invoice_id, at=due)

    def newest(
        self, wanted: Mapping[str, str] | None = None, created: Mapping[str, int] | None = None
    ) -> list[JsonObject]:
        """The invoices whose fields are as wanted, made in an interval; newest first."""
        return [
            invoice
            for invoice in reversed(self._by_id.values())
            if within(invoice["created"], created)
            and all(invoice[name] == value for name, value in (wanted or {}).items())
        ]

    def lines(self, invoice_id: str) -> list[JsonObject]:
        """The lines in the order they were added."""
        self.retrieve(invoice_id)
        return self._lines[invoice_id]

    def add_line(self, invoice: JsonObject, item: JsonObject) -> None:
        """Add the line of an item to a draft.

        Raises:
            Refusal: It has its 250 items already.
        """
        lines = self._lines[invoice["id"]]
        if len(lines) >= MAX_ITEMS:
            raise errors.failed(
                f"You can add up to {MAX_ITEMS} invoice items to an invoice.", param="invoice"
            )
        lines.append(line_object(self._ids.new("il"), invoice["id"], item))
        self._refresh(invoice)

    def remove_line(self, invoice: JsonObject, item_id: str) -> None:
        """Remove the line of an item from a draft."""
        self._lines[invoice["id"]] = [
            line for line in self._lines[invoice["id"]] if _item_of(line) != item_id
        ]
        self._refresh(invoice)

    def _count_metered(self, invoice: JsonObject) -> None:
        lines = self._metered.pop(invoice["id"], None)
        if lines is not None:
            added = [line for line in self._lines[invoice["id"]] if _item_of(line)]
            self._lines[invoice["id"]] = [*lines(invoice), *added]
            self._refresh(invoice)

    def _drop(self, invoice_id: str) -> None:
        invoice = self._by_id.pop(invoice_id)
        del self._lines[invoice_id]
        self._metered.pop(invoice_id, None)
        self._advancing.discard(invoice_id)
        self._events.snapshot("invoice.deleted", invoice)

    def _schedule(self, invoice: JsonObject) -> None:
        if invoice["automatically_finalizes_at"] is None:
            self._advancing.discard(invoice["id"])
        else:
            self._advancing.add(invoice["id"])

    def _refresh(self, invoice: JsonObject) -> None:
        lines = self._lines[invoice["id"]]
        total = sum(line["amount"] for line in lines)
        asked = max(0, total)
        invoice.update(
            subtotal=total,
            subtotal_excluding_tax=total,
            total=total,
            total_excluding_tax=total,
            amount_due=asked,
            amount_remaining=asked,
        )
        invoice["lines"] = {
            "object": "list",
            "url": f"/v1/invoices/{invoice['id']}/lines",
            "has_more": len(lines) > 10,  # noqa: PLR2004 - an invoice shows its first ten lines
            "data": lines[:10],
        }

    def _paid(self, invoice: JsonObject) -> None:
        invoice.update(
            status="paid",
            attempted=True,
            amount_paid=invoice["amount_due"],
            amount_remaining=0,
        )
        invoice["status_transitions"]["paid_at"] = int(self._clock.seconds())
        self._events.snapshot("invoice.paid", invoice)

    def _ended(self, invoice: JsonObject, status: str, transition: str, kind: str) -> JsonObject:
        invoice["status"] = status
        invoice["status_transitions"][transition] = int(self._clock.seconds())
        self._events.snapshot(kind, invoice)
        return invoice

    def _collectible(self, invoice_id: str, verb: str) -> JsonObject:
        invoice = self.retrieve(invoice_id)
        if invoice["status"] not in {"open", "uncollectible"}:
            raise _wrong_status(invoice, verb)
        return invoice

    def _due(self, params: dict[str, Any], instant: int) -> int | None:
        sends = params.get("collection_method") == "send_invoice"
        if not sends:
            for name in ("days_until_due", "due_date"):
                if name in params:
                    raise errors.parameter(
                        f"{name} needs collection_method to be send_invoice.", name
                    )
            return None
        if "due_date" in params:
            return int(params["due_date"])
        if "days_until_due" in params:
            return instant + int(params["days_until_due"]) * A_DAY
        raise errors.missing("days_until_due")


def _item_of(line: JsonObject) -> str | None:
    """The invoice item behind a line; None for a metered line."""
    details = line["parent"]["invoice_item_details"]
    return str(details["invoice_item"]) if details else None


def _wrong_status(invoice: JsonObject, verb: str) -> errors.Refusal:
    return errors.failed(f"You can only {verb} an open invoice; this one is {invoice['status']}.")


def _not_editable(invoice: JsonObject) -> errors.Refusal:
    return errors.failed(
        f"The invoice {invoice['id']} is {invoice['status']} and can't be edited.",
        code="invoice_not_editable",
    )
