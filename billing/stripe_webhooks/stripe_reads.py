"""Questions to Stripe about events: an event brings an id, Stripe's answer decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import stripe

from billing.core.errors import NotFound
from billing.providers.stripe.client import asking

_NOT_FOUND: Final = 404

Found = TypeVar("Found", bound=stripe.StripeObject)


class StripeReads:
    """Reads of things that only events need.

    Every method raises ``StripeUnanswered`` where Stripe has no answer or refuses to give one.

    Args:
        client: The client of stripe-python; may be used by several threads.
    """

    def __init__(self, client: stripe.StripeClient) -> None:
        self._client = client

    def thin_event(self, event_id: str) -> Mapping[str, Any]:
        """A thin event with its data, which is not in the webhook.

        Raises:
            NotFound: Stripe does not have it; it keeps events for 30 days.
        """
        return _found("event", event_id, lambda: self._client.v2.core.events.retrieve(event_id))

    def checkout(self, session_id: str) -> Mapping[str, Any]:
        """A checkout session as it stands.

        Raises:
            NotFound: There is none.
        """
        sessions = self._client.v1.checkout.sessions
        return _found("checkout session", session_id, lambda: sessions.retrieve(session_id))

    def meter_name(self, meter_id: str) -> str:
        """The event name of a meter, by which we know it.

        Raises:
            NotFound: There is none.
        """
        meters = self._client.v1.billing.meters
        meter = _found("meter", meter_id, lambda: meters.retrieve(meter_id))
        return str(meter["event_name"])


def _found(what: str, key: str, ask: Callable[[], Found]) -> Mapping[str, Any]:
    with asking():
        try:
            found: Mapping[str, Any] = ask().to_dict()
        except stripe.InvalidRequestError as error:
            if error.http_status == _NOT_FOUND:
                raise NotFound(what, key, "Stripe does not have it, or not any more") from error
            raise
    return found
