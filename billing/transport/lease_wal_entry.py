"""One entry of the lease write-ahead log: a run under a lease, as a line of JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from billing.core.credits import check_microcredits
from billing.core.errors import InvalidValue
from billing.core.usage_event import InvalidEvent, UsageEvent
from billing.core.usage_event_json import from_wire


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseWalEntry:
    """One run under a lease, or without events the announcement of the lease.

    ``promised_microcredits`` of the lease are for it; ``events`` have the amounts they should cost.
    """

    lease_id: str
    customer: str
    promised_microcredits: int = 0
    events: tuple[UsageEvent, ...] = ()

    def to_line(self, wires: Sequence[bytes] | None = None) -> bytes:
        """One line, a JSON object.

        Args:
            wires: The events as they are on the wire, if somebody has encoded them already.
        """
        if wires is None:
            wires = [event.to_wire() for event in self.events]
        wire = {
            "lease": self.lease_id,
            "customer": self.customer,
            "promised": self.promised_microcredits,
            "events": [orjson.Fragment(event) for event in wires],
        }
        return orjson.dumps(wire, option=orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def from_line(cls, line: bytes) -> LeaseWalEntry:
        """Read an entry from its line.

        Raises:
            InvalidValue: It is none.
        """
        try:
            wire: dict[str, Any] = orjson.loads(line)
            events = tuple(from_wire(orjson.dumps(event)) for event in wire["events"])
            lease_id, customer = wire["lease"], wire["customer"]
            promised = check_microcredits(wire["promised"], field="promised")
            if not isinstance(lease_id, str) or not isinstance(customer, str):
                raise InvalidValue("lease", lease_id, "use text")
        except (orjson.JSONDecodeError, InvalidEvent, KeyError, TypeError) as error:
            raise InvalidValue("entry", line[:80], str(error)) from error
        return cls(
            lease_id=lease_id, customer=customer, promised_microcredits=promised, events=events
        )
