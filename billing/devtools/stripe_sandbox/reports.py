"""Error reports: how an event that was taken and then rejected becomes known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from billing.devtools.stripe_sandbox.errors import JsonObject
from billing.devtools.stripe_sandbox.events import Events, rfc3339

VALIDATION_SECONDS: Final = 10
"""Length of the windows that Stripe's examples of reports cover."""

SAMPLES: Final = 5
"""A report counts every error of a kind and lists this many, as Stripe's lists only samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An event that was judged and not counted; ``meter`` is None where no meter has its name."""

    meter: str | None
    code: str
    message: str
    identifier: str
    received: float


class ErrorReports:
    """Turns rejections into thin events, one per meter and validation window."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def report(self, rejections: Iterable[Rejection]) -> None:
        """Report them."""
        windows: defaultdict[tuple[str | None, int], list[Rejection]] = defaultdict(list)
        for rejection in rejections:
            start = int(rejection.received) // VALIDATION_SECONDS * VALIDATION_SECONDS
            windows[rejection.meter, start].append(rejection)
        for (meter, start), group in windows.items():
            data = _data(group, start)
            if meter is None:
                self._events.thin("v1.billing.meter.no_meter_found", data)
                continue
            url = f"/v1/billing/meters/{meter}"
            self._events.thin(
                "v1.billing.meter.error_report_triggered",
                data,
                related={"id": meter, "type": "billing.meter", "url": url},
            )


def _data(group: Sequence[Rejection], start: int) -> JsonObject:
    kinds: defaultdict[str, list[Rejection]] = defaultdict(list)
    for rejection in group:
        kinds[rejection.code].append(rejection)
    noun = "event" if len(group) == 1 else "events"
    verb = "is" if len(group) == 1 else "are"
    return {
        "developer_message_summary": f"There {verb} {len(group)} invalid {noun}",
        "reason": {
            "error_count": len(group),
            "error_types": [
                {
                    "code": code,
                    "error_count": len(kind),
                    "sample_errors": [
                        {
                            "error_message": rejection.message,
                            "request": {"identifier": rejection.identifier},
                        }
                        for rejection in kind[:SAMPLES]
                    ],
                }
                for code, kind in kinds.items()
            ],
        },
        "validation_start": rfc3339(start),
        "validation_end": rfc3339(start + VALIDATION_SECONDS),
    }
