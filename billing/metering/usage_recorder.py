"""Usage that the body of a task records. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import orjson

from billing.core.admission import Admission
from billing.core.credits import check_microcredits
from billing.core.errors import InvalidValue, NotFound
from billing.core.sku import Pricing, Sku, check_sku_id, rate
from billing.core.usage_event import (
    Outcome,
    UsageEvent,
    check_dimensions,
    failed_line,
    retried_line,
    usage_line,
)

_MAX_SUBJECT = 500
_MAX_DIMENSIONS_BYTES = 32_768
"""Half of ``MAX_BODY_BYTES``; the other texts of an event fit into the other half."""


@dataclass(slots=True)
class _Line:
    quantity: int | None = None
    cost_micros: int = 0
    subject: str | None = None
    dimensions: dict[str, str] = field(default_factory=dict)


class UsageRecorder:
    """Collects what a body says it used. One run, one thread.

    Args:
        sku: The SKU of the task; ``record`` without a ``sku`` speaks of it.
        find: Gives the SKU of an id, or raises ``NotFound``.
    """

    def __init__(self, sku: Sku, find: Callable[[str], Sku]) -> None:
        self._sku = sku
        self._find = find
        self._skus = {sku.id: sku}
        self._lines: dict[str, _Line] = {sku.id: _Line()}

    def record(
        self,
        *,
        quantity: int | None = None,
        cost_micros: int | None = None,
        subject: str | None = None,
        dimensions: Mapping[str, str] | None = None,
        sku: str | None = None,
    ) -> None:
        """Add to what this run used.

        Args:
            quantity: Units used, added to those recorded before. A fixed SKU has none of its own:
                one task is one unit.
            cost_micros: What it cost us (proxy, compute, storage, a third party's fee), in
                millionths of the currency, added to the cost recorded before.
            subject: What the work was about (a URL, a document id), its first 500 characters; the
                last one counts.
            dimensions: Further texts by name, merged with those recorded before.
            sku: Another SKU that this run also used; it becomes a line of its own.

        Raises:
            InvalidValue: A figure is not an integer of zero or more, the whole of it is more than
                an event can say, a text is not one, or the SKU is fixed and a quantity other than 1
                was given. Nothing was added.
            NotFound: There is no such SKU, or it has no price. Nothing was added.
        """
        found = self._sku_of(sku)
        line = self._lines.get(found.id, _Line())
        total = line.quantity
        if quantity is not None:
            total = self._total(found, line.quantity or 0, quantity)
        check_microcredits(0 if cost_micros is None else cost_micros, field="cost_micros")
        cost = check_microcredits(line.cost_micros + (cost_micros or 0), field="cost_micros")
        # The costs of all lines are added where a run ends without a charge.
        check_microcredits(self.cost_micros + (cost_micros or 0), field="cost_micros")
        if subject is not None:
            _check_subject(subject)
        merged = _merged(line.dimensions, dimensions)
        self._lines[found.id] = _Line(
            quantity=total,
            cost_micros=cost,
            subject=line.subject if subject is None else subject[:_MAX_SUBJECT],
            dimensions=merged,
        )

    def _sku_of(self, name: str | None) -> Sku:
        if name is None:
            return self._sku
        if name not in self._skus:
            found = self._find(check_sku_id(name))
            _dearest(found)
            self._skus[name] = found
        return self._skus[name]

    def _total(self, sku: Sku, before: int, quantity: int) -> int:
        check_microcredits(quantity, field="quantity")
        if sku.id == self._sku.id and sku.pricing is Pricing.FIXED:
            if quantity != 1:
                raise InvalidValue(
                    "quantity",
                    quantity,
                    f"{sku.id} is fixed, one unit a task; add it as measured to bill by quantity",
                )
            return 1
        # At any of its prices: a settle must not be the first to find that it cannot be rated.
        rate(before + quantity, _dearest(sku))
        return before + quantity

    @property
    def cost_micros(self) -> int:
        """Provider cost over all lines."""
        return sum(line.cost_micros for line in self._lines.values())

    def events(
        self,
        admission: Admission,
        *,
        outcome: Outcome,
        reason: str,
        currency: str,
        finished_at: datetime,
    ) -> list[UsageEvent]:
        """One event per line, each with the amount it should cost.

        A line of another SKU that was spoken of counts even without a quantity, as one unit if that
        SKU is fixed.

        Args:
            admission: The admission this run has.
            outcome: How the run ended.
            reason: Why it failed; empty where it did not.
            currency: Of the provider cost.
            finished_at: When the run ended.
        """
        events = []
        for name, line in self._lines.items():
            sku = self._skus[name]
            quantity = line.quantity
            if quantity is None:
                quantity = 1 if sku.pricing is Pricing.FIXED else 0
            price = sku.unit_price_at(admission.facts.metered_at)
            events.append(
                admission.facts.event(
                    sku=name,
                    line=usage_line(name),
                    outcome=outcome,
                    reason=reason,
                    quantity=quantity,
                    amount_microcredits=rate(quantity, price),
                    held_microcredits=admission.held_microcredits if name == self._sku.id else 0,
                    cost_micros=line.cost_micros,
                    currency=currency,
                    subject=line.subject,
                    dimensions=line.dimensions,
                    degraded=admission.degraded,
                    started_at=admission.started_at,
                    finished_at=finished_at,
                )
            )
        return events

    def failure(
        self, admission: Admission, *, reason: str, currency: str, finished_at: datetime
    ) -> UsageEvent:
        """The event of a run that ended without a charge, with what it cost us all the same."""
        line = failed_line(self._sku.id, admission.number)
        return self._free(line, admission, reason, currency, finished_at)

    def retried(self, admission: Admission, *, currency: str, finished_at: datetime) -> UsageEvent:
        """The event of an attempt that asked to be run again, with what it cost us."""
        line = retried_line(self._sku.id, admission.facts.attempt)
        return self._free(line, admission, "retried", currency, finished_at)

    def _free(
        self, line: str, admission: Admission, reason: str, currency: str, finished_at: datetime
    ) -> UsageEvent:
        own = self._lines[self._sku.id]
        return admission.facts.event(
            sku=self._sku.id,
            line=line,
            outcome=Outcome.FAILED,
            reason=reason,
            held_microcredits=admission.held_microcredits,
            cost_micros=self.cost_micros,
            currency=currency,
            subject=own.subject,
            dimensions=own.dimensions,
            degraded=admission.degraded,
            started_at=admission.started_at,
            finished_at=finished_at,
        )


def _dearest(sku: Sku) -> int:
    if not sku.prices:
        raise NotFound("price", sku.id, f"set one with: billing skus price {sku.id} 1.5")
    return max(price.unit_price_microcredits for price in sku.prices)


def _check_subject(subject: object) -> None:
    if not isinstance(subject, str) or "\x00" in subject or not _is_utf8(subject):
        raise InvalidValue("subject", subject, "use text without NUL and lone surrogates")


def _merged(before: Mapping[str, str], more: Mapping[str, str] | None) -> dict[str, str]:
    if more is None:
        return dict(before)
    if not isinstance(more, Mapping):
        raise InvalidValue("dimensions", more, "use texts by name")
    merged = check_dimensions({**before, **more})
    try:
        size = len(orjson.dumps(merged))
    except TypeError:
        raise InvalidValue("dimensions", merged, "use text without lone surrogates") from None
    if size > _MAX_DIMENSIONS_BYTES:
        remedy = f"use at most {_MAX_DIMENSIONS_BYTES} bytes, as JSON"
        raise InvalidValue("dimensions", merged, remedy)
    return merged


def _is_utf8(text: str) -> bool:
    """Whether the wire can carry it: a lone surrogate, as JSON may escape one, has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
