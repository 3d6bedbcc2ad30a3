"""Calling Stripe: the client, errors as the port has them, and making a thing only once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import stripe

from billing.core.errors import AlreadyExists
from billing.providers.port import ProviderCause, ProviderUnavailable
from billing.providers.stripe.errors import REPLAYED_HEADER, cause_of, failure_of

CONNECT_SECONDS: Final = 3.0
READ_SECONDS: Final = 15.0
MAX_KEY: Final = 255
PAGE: Final = 100
"""The most objects that one page of a list has."""
_ATTEMPTS: Final = 5

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
        key: The secret key; see ``stripe_key.check_key``.
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
    """Tells an error of Stripe's as the port does."""
    try:
        yield
    except stripe.IdempotencyError as error:
        raise AlreadyExists(f"Stripe: {failure_of(error).message}") from error
    except stripe.StripeError as error:
        failure = failure_of(error)
        raise StripeUnanswered(cause_of(failure), failure.message) from error


def is_missing(error: stripe.StripeError) -> bool:
    """Whether a thing that was asked for is not there."""
    return failure_of(error).code == "resource_missing"


def metadata_of(thing: Any) -> dict[str, str]:  # noqa: ANN401 - any object of Stripe's that has it
    """The metadata of an object as a dictionary, which ``StripeObject`` is not."""
    metadata = thing.metadata
    return dict(metadata.to_dict()) if metadata is not None else {}


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
    headers = {name.lower(): value for name, value in response.headers.items()}
    return headers.get(REPLAYED_HEADER) == "true"
