"""Talking to a local Stripe without a client library."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import httpx
from stripe_description import problems_of_answer

from billing.devtools.stripe_sandbox.cycles import Cycle
from billing.devtools.stripe_sandbox.faults import Fault
from billing.devtools.stripe_sandbox.gateway import Gateway, Incoming
from billing.devtools.stripe_sandbox.routes import find
from billing.devtools.stripe_sandbox.sandbox import Sandbox

KEY = "sk_test_4eC39HqLyjWDarjtT1zdp7dc"
VERSION = "2026-10-28.endive"


class Control:
    """The control API."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def get(self, path: str, /) -> Any:
        return self.client.get(f"/_sandbox/{path}").raise_for_status().json()

    def post(self, path: str, /, **order: Any) -> Any:
        return self.client.post(f"/_sandbox/{path}", json=order).raise_for_status().json()

    def fault(self, kind: str, **order: Any) -> None:
        self.post("faults", kind=kind, **order)


class Answer:
    """What came back."""

    def __init__(self, status: int, body: Any, headers: dict[str, str]) -> None:
        self.status = status
        self.body = body
        self.headers = headers

    @property
    def error(self) -> dict[str, Any]:
        assert self.status != 200, f"it was not refused: {self.body}"
        return self.body["error"]  # type: ignore[no-any-return]

    def __getitem__(self, name: str) -> Any:
        assert self.status == 200, f"it was refused: {self.body}"
        return self.body[name]


class Api:
    """Requests to a gateway in memory; every answer has to be as Stripe describes it."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.succeeded: set[tuple[str, str]] = set()

    @property
    def box(self) -> Sandbox:
        return self.gateway.sandbox

    def get(self, path: str, **params: Any) -> Answer:
        return self.ask("GET", path, params)

    def post(self, path: str, params: Any = None, **options: Any) -> Answer:
        return self.ask("POST", path, params or {}, **options)

    def delete(self, path: str) -> Answer:
        return self.ask("DELETE", path, {})

    def ask(
        self,
        method: str,
        path: str,
        params: dict[str, Any],
        *,
        key: str | None = None,
        fault: Fault | None = None,
        described: bool = True,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        v2 = path.startswith("/v2/")
        sent = {"authorization": f"Bearer {KEY}", "stripe-version": VERSION}
        sent["content-type"] = "application/json" if v2 else "application/x-www-form-urlencoded"
        if key is not None:
            sent["idempotency-key"] = key
        form = urlencode(flat(params))
        body = json.dumps(params) if v2 else form
        reply = self.gateway.answer(
            Incoming(
                method=method,
                path=path,
                query=form if method != "POST" else "",
                headers={**sent, **(headers or {})},
                body=body.encode() if method == "POST" else b"",
            ),
            fault,
        )
        content = json.loads(reply.content)
        if described:
            assert problems_of_answer(method, path, reply.status, content) == []
            found = find(method, path)
            if found is not None and reply.status == 200:
                self.succeeded.add((method, found[0].path))
        return Answer(reply.status, content, reply.headers)

    def meter(self, name: str = "searches", **params: Any) -> str:
        """The id of a new meter, hourly unless said otherwise."""
        given = {
            "display_name": name,
            "event_name": name,
            "default_aggregation": {"formula": "sum"},
            "event_time_window": "hour",
            **params,
        }
        made = self.post(
            "/v1/billing/meters", {name: value for name, value in given.items() if value}
        )
        return str(made["id"])

    def customer(self, **params: Any) -> str:
        """The id of a new customer."""
        return str(self.post("/v1/customers", params)["id"])

    def report(
        self,
        customer: str,
        value: str,
        *,
        at: int | None = None,
        name: str = "searches",
        **more: Any,
    ) -> Answer:
        """Send a meter event, by default of this very second."""
        payload = {"stripe_customer_id": customer, "value": value}
        event = {"event_name": name, "payload": payload, **more}
        if at is not None:
            event["timestamp"] = at
        return self.post("/v1/billing/meter_events", event)

    def cycle(self, customer: str, start: int, end: int, **more: Any) -> Answer:
        """The draft of a billing cycle that ends."""
        cycle = Cycle(customer=customer, period_start=start, period_end=end, **more)
        return self.get(f"/v1/invoices/{self.box.cycles.end(cycle)['id']}")

    def billed(self, invoice: str) -> dict[str, str]:
        """What an invoice bills, by what its lines are called after their quantity."""
        lines = self.get(f"/v1/invoices/{invoice}/lines", limit=100)["data"]
        return {line["description"].split(" ")[-1]: line["quantity_decimal"] for line in lines}

    def summary(
        self, meter: str, customer: str, start: int, end: int, **params: Any
    ) -> dict[int, float]:
        """The figures of an interval by their start."""
        found = self.get(
            f"/v1/billing/meters/{meter}/event_summaries",
            customer=customer,
            start_time=start,
            end_time=end,
            **params,
        )
        return {one["start_time"]: one["aggregated_value"] for one in found["data"]}


def flat(params: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested parameters as a form has them."""
    if isinstance(params, dict):
        pairs = [(f"{name}[{key}]" if name else str(key), item) for key, item in params.items()]
    elif isinstance(params, list):
        pairs = [(f"{name}[{place}]", item) for place, item in enumerate(params)]
    else:
        return [(name, str(params).lower() if isinstance(params, bool) else str(params))]
    return [one for key, item in pairs for one in flat(item, key)]
