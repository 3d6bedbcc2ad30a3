"""Stripe's error bodies: what a refused request is answered with.

Wording in quotation marks of Stripe's own is kept where it is publicly known, because clients
match on it; where it is not, the sentence is ours and carries no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

JsonObject = dict[str, Any]

SHOULD_NOT_RETRY = {"Stripe-Should-Retry": "false"}
SHOULD_RETRY = {"Stripe-Should-Retry": "true"}


@dataclass(eq=False, kw_only=True)
class Refusal(Exception):  # noqa: N818 - a refusal is an answer of the API, not a fault of ours
    """An answer other than 200.

    ``stored`` says whether an Idempotency-Key replays it: what was refused before execution began
    (key, rate, parameters) is not stored, what failed in execution is.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stored: bool = False

    def body(self, *, v2: bool = False) -> JsonObject:
        """The JSON body; the v2 API names only a code and a message."""
        error: JsonObject = {"message": self.message}
        if v2:
            error["code"] = self.code or self.type
            return {"error": error}
        error["type"] = self.type
        if self.code is not None:
            error["code"] = self.code
            error["doc_url"] = "https://stripe.com/docs/error-codes/" + self.code.replace("_", "-")
        if self.param is not None:
            error["param"] = self.param
        return {"error": error}


def parameter(message: str, param: str, code: str | None = None) -> Refusal:
    """A parameter that is refused before anything is executed."""
    return Refusal(status=400, message=message, param=param, code=code)


def missing(param: str) -> Refusal:
    """A required parameter that is not there."""
    return parameter(f"Missing required param: {param}.", param, "parameter_missing")


def unknown(params: list[str]) -> Refusal:
    """Parameters that Stripe's description does not know."""
    noun = "parameter" if len(params) == 1 else "parameters"
    text = f"Received unknown {noun}: {', '.join(params)}"
    return parameter(text, params[0], "parameter_unknown")


def not_implemented(param: str) -> Refusal:
    """A parameter of Stripe's that this sandbox does not act on: said, never ignored."""
    return parameter(
        f"Stripe knows the parameter {param}, this sandbox does not act on it.",
        param,
        "sandbox_not_implemented",
    )


def no_such(kind: str, given: str, *, param: str = "id", in_path: bool = True) -> Refusal:
    """An object that does not exist: 404 where the path names it, 400 where a parameter does."""
    return Refusal(
        status=404 if in_path else 400,
        message=f"No such {kind}: '{given}'",
        code="resource_missing",
        param=param,
        stored=True,
    )


def failed(message: str, *, code: str | None = None, param: str | None = None) -> Refusal:
    """A request that is well formed and still cannot be done."""
    return Refusal(status=400, message=message, code=code, param=param, stored=True)


def duplicate_identifier(identifier: str, *, v2: bool) -> Refusal:
    """A second meter event under one identifier: in v1 there is no code, only the sentence."""
    return Refusal(
        status=400,
        message=f"An event already exists with identifier {identifier}.",
        code="duplicate_meter_event" if v2 else None,
        headers=SHOULD_NOT_RETRY,
        stored=True,
    )


def rate_limited(reason: str) -> Refusal:
    """Too many requests; the header says which limit."""
    return Refusal(
        status=429,
        message="Request rate limit exceeded. Learn more about rate limits here "
        "https://stripe.com/docs/rate-limits.",
        code="rate_limit",
        headers={"Stripe-Rate-Limited-Reason": reason},
    )


def lock_timeout() -> Refusal:
    """The object is held by another request; the only 429 that names no limit."""
    return Refusal(
        status=429,
        message="This object cannot be accessed right now because another API request or Stripe "
        "process is currently accessing it. If you see this error intermittently, retry the "
        "request. If you see this error frequently and are making multiple concurrent requests "
        "to a single object, make your requests serially or at a lower rate.",
        code="lock_timeout",
        headers=SHOULD_RETRY,
    )


def server_error() -> Refusal:
    """Stripe's own fault. In v1 it sticks to its Idempotency-Key."""
    return Refusal(
        status=500,
        type="api_error",
        message="An unknown error occurred",
        stored=True,
    )


def no_key() -> Refusal:
    """A request without an API key."""
    return Refusal(
        status=401,
        message="You did not provide an API key. You need to provide your API key in the "
        "Authorization header, using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
        headers={"WWW-Authenticate": 'Basic realm="Stripe"'},
    )


def wrong_key(key: str) -> Refusal:
    """A key that is not one of this sandbox: it takes test-mode secret keys only."""
    hidden = key[:8] + "*" * max(0, len(key) - 12) + key[-4:] if len(key) > 12 else "*" * len(key)  # noqa: PLR2004 - 8 shown in front, 4 behind
    return Refusal(status=401, message=f"Invalid API Key provided: {hidden}")


def no_permission() -> Refusal:
    """A key that may not do this."""
    return Refusal(
        status=403,
        message="The provided key does not have the required permissions for this endpoint.",
        headers=SHOULD_NOT_RETRY,
    )


def unrecognised_url(method: str, path: str) -> Refusal:
    """A path that is not in Stripe's description, or not in this sandbox."""
    return Refusal(
        status=404,
        message=f"Unrecognized request URL ({method}: {path}). Please see https://stripe.com/docs "
        "or we can help at https://support.stripe.com/.",
    )


def other_parameters(key: str) -> Refusal:
    """An Idempotency-Key used again for something else."""
    return Refusal(
        status=400,
        type="idempotency_error",
        message="Keys for idempotent requests can only be used with the same parameters they were "
        f"first used with. Try using a key other than '{key}' if you meant to execute a "
        "different request.",
    )


def other_endpoint(key: str, path: str) -> Refusal:
    """An Idempotency-Key used again on another path."""
    return Refusal(
        status=400,
        type="idempotency_error",
        message="Keys for idempotent requests can only be used for the same endpoint they were "
        f"first used for ('{path}'). Try using a key other than '{key}' if you meant to execute "
        "a different request.",
    )


def key_in_use(key: str) -> Refusal:
    """The first request under this Idempotency-Key is still running."""
    return Refusal(
        status=409,
        type="idempotency_error",
        message="There is currently another in-progress request using this Idempotent Key "
        f"({key}). Please try again later.",
        code="idempotency_key_in_use",
    )


def declined() -> Refusal:
    """A card that is refused when an invoice is paid."""
    return Refusal(
        status=402,
        type="card_error",
        message="Your card was declined.",
        code="card_declined",
        stored=True,
    )
