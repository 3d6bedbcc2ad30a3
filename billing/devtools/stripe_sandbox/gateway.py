"""From a request to its answer: key, version, idempotency, parameters, effect."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from billing.devtools.stripe_sandbox import errors, routes
from billing.devtools.stripe_sandbox.errors import Refusal
from billing.devtools.stripe_sandbox.events import API_VERSION
from billing.devtools.stripe_sandbox.faults import Fault
from billing.devtools.stripe_sandbox.idempotency import Reply
from billing.devtools.stripe_sandbox.params import decode_form
from billing.devtools.stripe_sandbox.sandbox import Sandbox

OK: Final = 200
REMEMBERED_REQUESTS: Final = 10_000
_VERSION: Final = re.compile(r"\d{4}-\d{2}-\d{2}(\.[a-z]+)?\Z")
_KEYS: Final = ("sk_test_", "rk_test_")
_FORM: Final = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A request as it came; names of headers in lower case."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def v2(self) -> bool:
        """Whether it is for the v2 API."""
        return self.path.startswith("/v2/")

    @property
    def key(self) -> str | None:
        """Its Idempotency-Key; only a POST has one."""
        return self.headers.get("idempotency-key") if self.method == "POST" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One answered request, for those who test; ``params`` are texts, as they came in a form."""

    id: str
    method: str
    path: str
    status: int
    idempotency_key: str | None
    fault: str | None
    replayed: bool
    params: Mapping[str, Any]


class Gateway:
    """Answers requests to one sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.seen: deque[Seen] = deque(maxlen=REMEMBERED_REQUESTS)
        self.answered = 0

    def answer(self, request: Incoming, fault: Fault | None = None) -> Reply:
        """The answer to a request. Never raises for what a client can send."""
        self.sandbox.advance()
        try:
            reply = self._answer(request, fault)
        except Refusal as refusal:
            reply = _refused(refusal, request)
        self.sandbox.advance()
        return self._finished(request, reply, fault)

    def refuse(self, request: Incoming, refusal: Refusal) -> Reply:
        """The answer that refuses a request for a reason outside it."""
        return self._finished(request, _refused(refusal, request), None)

    def _answer(self, request: Incoming, fault: Fault | None) -> Reply:
        instead = fault.instead() if fault else None
        if instead is not None:
            raise instead
        _authenticate(request)
        _check_version(request)
        found = routes.find(request.method, request.path)
        if found is None:
            raise errors.unrecognised_url(request.method, request.path)
        given = _given(request)
        if request.key is not None:
            stored = self.sandbox.keys.replay(request.key, request.path, given, v2=request.v2)
            if stored is not None:
                return stored
        return self._execute(request, *found, given, fault)

    def _execute(
        self,
        request: Incoming,
        route: routes.Route,
        object_id: str,
        given: dict[str, Any],
        fault: Fault | None,
    ) -> Reply:
        failing = fault is not None and fault.kind == "server_error"
        try:
            if fault is None or fault.carried_out:
                params = route.shape.read(given)
                decline = fault is not None and fault.kind == "decline"
                call = routes.Call(id=object_id, params=params, decline=decline)
                body = route.handler(self.sandbox, call)
            if failing:
                raise errors.server_error()
            reply = Reply(status=OK, content=json.dumps(body, indent=2))
        except Refusal as refusal:
            if not refusal.stored:
                raise
            reply = _refused(refusal, request)
        if request.key is not None:
            self.sandbox.keys.store(request.key, request.path, given, reply, v2=request.v2)
        return reply

    def _finished(self, request: Incoming, reply: Reply, fault: Fault | None) -> Reply:
        request_id = self.sandbox.ids.new("req")
        headers = {
            "Content-Type": "application/json",
            "Request-Id": request_id,
            "Stripe-Version": request.headers.get("stripe-version", API_VERSION),
            **reply.headers,
        }
        if request.key is not None:
            headers["Idempotency-Key"] = request.key
        self.answered += 1
        self.seen.append(
            Seen(
                id=request_id,
                method=request.method,
                path=request.path,
                status=reply.status,
                idempotency_key=request.key,
                fault=fault.kind if fault else None,
                replayed="Idempotent-Replayed" in reply.headers,
                params=_legible(request),
            )
        )
        return Reply(status=reply.status, content=reply.content, headers=headers)


def _refused(refusal: Refusal, request: Incoming) -> Reply:
    return Reply(
        status=refusal.status,
        content=json.dumps(refusal.body(v2=request.v2), indent=2),
        headers=dict(refusal.headers),
    )


def _authenticate(request: Incoming) -> None:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    key = ""
    if scheme.lower() == "bearer":
        key = credentials.strip()
    elif scheme.lower() == "basic":
        try:
            key = base64.b64decode(credentials, validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            key = ""
    if not key:
        raise errors.no_key()
    if not key.startswith(_KEYS) or key in _KEYS:
        raise errors.wrong_key(key)


def _check_version(request: Incoming) -> None:
    version = request.headers.get("stripe-version")
    if version is None:
        if request.v2:
            raise errors.parameter("Give the Stripe-Version header; v2 needs it.", "Stripe-Version")
        return
    if not _VERSION.match(version):
        raise errors.parameter(f"Invalid Stripe API version: {version}", "Stripe-Version")


def _given(request: Incoming) -> dict[str, Any]:
    if request.method != "POST":
        return decode_form(request.query)
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if request.v2:
        return _json(request.body)
    if request.body and kind != _FORM:
        raise Refusal(
            status=400,
            message="Invalid request (check that your POST content type is "
            f"{_FORM}). If you have any questions, we can help at https://support.stripe.com/.",
        )
    try:
        return decode_form(request.body.decode())
    except UnicodeDecodeError as error:
        raise Refusal(status=400, message="Invalid request: the body is not UTF-8.") from error


def _legible(request: Incoming) -> dict[str, Any]:
    try:
        return _given(request)
    except Refusal:
        return {}


def _json(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body or b"{}")
    except ValueError as error:
        raise Refusal(status=400, message="Invalid JSON in the request body.") from error
    if not isinstance(given, dict):
        raise Refusal(status=400, message="The request body must be a JSON object.")
    return given
