"""Requests to Stripe: the client, errors as the port has them, creation exactly once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import requests
import stripe

from billing.core.errors import AlreadyExists
from billing.providers.port import ProviderCause, ProviderUnavailable
from billing.providers.stripe.errors import Failure, StripeErrorKind, cause_of

CONNECT_SECONDS: Final = 3.0
READ_SECONDS: Final = 15.0
MAX_KEY: Final = 255
PAGE: Final = 100
"""The most objects that one page of a list has."""
_ATTEMPTS: Final = 5
MAX_DETAIL: Final = 300
RATE_LIMIT_HEADER: Final = "stripe-rate-limited-reason"
REPLAYED_HEADER: Final = "idempotent-replayed"

UNREACHED: Final = (
    ("nameresolution", "its name could not be found (is the network up?)"),
    ("name or service not known", "its name could not be found (is the network up?)"),
    ("getaddrinfo", "its name could not be found (is the network up?)"),
    ("refused", "nobody listens there"),
    ("proxy", "the proxy on the way did not let it pass"),
    ("certificate", "its certificate was not accepted"),
    ("ssl", "no encrypted connection came about"),
    ("unreachable", "there is no way there (is the network up?)"),
    ("closed", "the connection was closed before the answer"),
    ("reset", "the connection was closed before the answer"),
    ("aborted", "the connection was closed before the answer"),
)
"""Why there was no connection, by a part (in lower case) of the error below; the first fits."""

Made = TypeVar("Made", bound=stripe.StripeObject)


class StripeUnanswered(ProviderUnavailable):
    """Stripe has no answer to a question, or refuses it; ``cause`` says why."""

    def __init__(self, cause: ProviderCause, detail: str) -> None:
        self.cause = cause
        super().__init__(f"Stripe: {cause.value}: {detail}")


def client_of(
    key: str, base: str, *, timeout: tuple[float, float] = (CONNECT_SECONDS, READ_SECONDS)
) -> stripe.StripeClient:
    """A client without retries of its own: a resend is the reporter's to decide, under its lease.

    Args:
        key: The secret key; see ``api_key.check_key``.
        base: One address for every API, empty for Stripe itself.
        timeout: Seconds to connect and to wait for an answer.
    """
    address: Any = {"base_addresses": {"api": base, "meter_events": base}} if base else {}
    return stripe.StripeClient(
        key,
        max_network_retries=0,
        http_client=stripe.RequestsClient(timeout=timeout),
        **address,
    )


@contextmanager
def asking() -> Iterator[None]:
    """Turn an error of Stripe's into the port's."""
    try:
        yield
    except stripe.IdempotencyError as error:
        raise AlreadyExists(f"Stripe: {failure_of(error).message}") from error
    except stripe.StripeError as error:
        failure = failure_of(error)
        raise StripeUnanswered(cause_of(failure), failure.message) from error


def failure_of(error: stripe.StripeError) -> Failure:
    """An error of stripe-python as data."""
    headers = _lowered(error.headers)
    # The attribute ``code`` is empty on several of the classes; the body has it.
    body = error.error
    code = getattr(body, "code", None) or error.code or ""
    param = getattr(body, "param", None) or getattr(error, "param", None) or ""
    kind = _kind(error)
    text = _unreached(error) if kind is StripeErrorKind.CONNECTION else error.user_message
    return Failure(
        kind=kind,
        status=error.http_status,
        code=code,
        param=param,
        message=(text or type(error).__name__)[:MAX_DETAIL],
        named_limit=RATE_LIMIT_HEADER in headers,
        replayed=headers.get(REPLAYED_HEADER) == "true",
    )


def _unreached(error: stripe.StripeError) -> str:
    """Say in a sentence why there was no connection: the library's own text is a dump."""
    below = error.__cause__ or error.__context__
    if not isinstance(below, requests.RequestException):
        return error.user_message or ""
    url = getattr(getattr(below, "request", None), "url", None) or ""
    text = f"{type(below).__name__} {below}".lower()
    why = next((words for part, words in UNREACHED if part in text), "the connection failed")
    return f"no answer from {urlsplit(url).netloc or 'the address'}: {why}"


def _kind(error: stripe.StripeError) -> StripeErrorKind:
    if isinstance(error, stripe.APIConnectionError):
        below = error.__cause__ or error.__context__
        return (
            StripeErrorKind.TIMEOUT
            if isinstance(below, requests.Timeout)
            else StripeErrorKind.CONNECTION
        )
    if isinstance(error, stripe.AuthenticationError) and error.http_status is None:
        return StripeErrorKind.NO_KEY
    return StripeErrorKind.ANSWER


def is_missing(error: stripe.StripeError) -> bool:
    """Whether a thing that was asked for is not there."""
    return failure_of(error).code == "resource_missing"


def metadata_of(thing: Any) -> dict[str, str]:  # noqa: ANN401 - any object of Stripe's that has it
    """The metadata of an object as a dictionary, which ``StripeObject`` is not."""
    metadata = thing.metadata
    return dict(metadata.to_dict()) if metadata is not None else {}


def id_of(thing: Any) -> str:  # noqa: ANN401 - an id, an object where it was expanded, or None
    """The id of a thing that another one refers to; empty where there is none."""
    if thing is None or isinstance(thing, str):
        return thing or ""
    return str(thing.id)


def instant_of(seconds: int) -> datetime:
    """Stripe's Unix seconds as an instant."""
    return datetime.fromtimestamp(seconds, UTC)


def idempotency_key(*parts: str) -> str:
    """The same key for the same parts; hashed where it would be too long."""
    full = ":".join(("wb", *parts))
    # Room for the attempt that ``once`` adds.
    if len(full) <= MAX_KEY - 2:
        return full
    return f"wb:{parts[0]}:{hashlib.sha256(full.encode()).hexdigest()}"


def once(key: str, make: Callable[[Any], Made], find: Callable[[], Made | None]) -> Made:
    """Make a thing under a stable Idempotency-Key, whatever became of earlier attempts.

    Stripe gives the stored answer of a key for a day: also a 500 that left nothing behind, or a
    thing that was deleted since. So a stored answer is never believed: ``find`` looks at what is
    there, and only if nothing is, the next key of a fixed series is used. Every process walks the
    same series, so two of them never make two.

    Args:
        key: The first key.
        make: Makes it; takes the request's options.
        find: What is there, by an up-to-date list.

    Raises:
        stripe.StripeError: Whatever Stripe said first-hand.
        StripeUnanswered: The whole series is used up.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        options = {"idempotency_key": key if attempt == 1 else f"{key}:{attempt}"}
        try:
            made = make(options)
        except stripe.IdempotencyError:
            # The key was used with other parameters.
            found = find()
            if found is None:
                raise
            return found
        except stripe.StripeError as error:
            if not failure_of(error).replayed:
                raise
        else:
            if not _replayed(made):
                return made
        found = find()
        if found is not None:
            return found
    raise StripeUnanswered(
        ProviderCause.CONFLICT, f"{_ATTEMPTS} attempts of {key} failed within a day"
    )


def _replayed(made: stripe.StripeObject) -> bool:
    response: Any = made.last_response
    return _lowered(response.headers).get(REPLAYED_HEADER) == "true"


def _lowered(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {name.lower(): value for name, value in (headers or {}).items()}
