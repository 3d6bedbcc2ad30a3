"""What differs in v2: JSON, instants in RFC 3339, and a payload that is judged at once."""

from __future__ import annotations

from typing import Any, Final

from billing.core.clock import parse_instant
from billing.core.errors import InvalidValue
from billing.devtools.stripe_sandbox import errors
from billing.devtools.stripe_sandbox.errors import JsonObject
from billing.devtools.stripe_sandbox.params import Shape, strings, text
from billing.devtools.stripe_sandbox.sandbox import Sandbox
from billing.devtools.stripe_sandbox.usage import as_v2


def _instant(name: str, raw: object) -> int:
    try:
        return int(parse_instant(str(raw), field=name).timestamp())
    except InvalidValue as error:
        raise errors.parameter(f"Invalid timestamp: {raw}", name) from error


V2_METER_EVENT: Final = Shape(
    {"event_name": text(100), "identifier": text(100), "payload": strings, "timestamp": _instant},
    frozenset({"event_name", "payload"}),
)


def create_v2_meter_event(box: Sandbox, params: dict[str, Any]) -> JsonObject:
    """Take an event, having looked at its meter and payload; its customer is still judged later.

    Raises:
        Refusal: With one of the codes that Stripe's description lists for v2.
    """
    meter = box.meters.listening_to(params["event_name"])
    if meter is None:
        raise _refused("no_meter", f"No meter found with event name {params['event_name']}.")
    if meter["status"] == "inactive":
        raise _refused("archived_meter", f"The meter {meter['id']} is archived.")
    payload: dict[str, str] = params["payload"]
    key = meter["customer_mapping"]["event_payload_key"]
    if not payload.get(key):
        raise _refused("payload_no_customer_defined", f"The payload has no key {key}.")
    if meter["default_aggregation"]["formula"] != "count":
        key = meter["value_settings"]["event_payload_key"]
        if key not in payload:
            raise _refused("payload_no_value_defined", f"The payload has no key {key}.")
        if not payload[key].isdecimal() or not int(payload[key]):
            # Stripe's description: v2 takes positive integers only; v1 takes decimals.
            raise _refused("payload_invalid_value", f"{key} must be a positive integer.")
    return as_v2(box.usage.take(params, v2=True))


def _refused(code: str, message: str) -> errors.Refusal:
    return errors.failed(message, code=code)
