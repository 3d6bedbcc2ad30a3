"""Meaning for money, and remedy, of each cause a provider gives. Pure.

One table for parked reports and one for a provider that gave no answer. A cause that is in neither
is shown by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from billing.providers.port import ProviderCause, ProviderUnavailable
from billing.reporting.usage_report import AttentionCause

KEYS_PAGE: Final = "https://dashboard.stripe.com/test/apikeys"
_TRY_AGAIN: Final = "try again; reports are sent again by themselves"


@dataclass(frozen=True, slots=True)
class CauseHelp:
    """The meaning of a cause, and the remedy."""

    meaning: str
    remedy: str


PARKED: Final[dict[str, CauseHelp]] = {
    ProviderCause.TOO_OLD.value: CauseHelp(
        "the provider takes no figure as old as this",
        "it is carried into the hour under way by the next run; if it is not, see billing report "
        "show",
    ),
    ProviderCause.IN_THE_FUTURE.value: CauseHelp(
        "the provider says that the hour is still to come: a clock is wrong",
        "run an NTP client here, then billing report retry --cause in_the_future",
    ),
    ProviderCause.CUSTOMER_MISSING.value: CauseHelp(
        "the provider does not know the customer, or it was deleted there",
        "billing customers link CUSTOMER cus_...: then it is sent by itself",
    ),
    ProviderCause.UNMAPPED_CUSTOMER.value: CauseHelp(
        "the customer is linked to nobody at the provider: not yet, or it was deleted there",
        "billing stripe setup; for one that was deleted, billing customers link with another: then "
        "it is sent by itself",
    ),
    ProviderCause.METER_MISSING.value: CauseHelp(
        "the provider has no such meter",
        "billing stripe setup, then billing report retry --cause meter_missing",
    ),
    ProviderCause.METER_INACTIVE.value: CauseHelp(
        "somebody deactivated the meter at the provider",
        "reactivate it there, then billing report retry --cause meter_inactive",
    ),
    ProviderCause.INVALID_VALUE.value: CauseHelp(
        "the figure has more digits than a provider keeps exactly",
        "see billing report show; give the SKU a coarser scale (--meter-decimals) or split it",
    ),
    ProviderCause.INVALID_REQUEST.value: CauseHelp(
        "the provider refuses the request as it is",
        "billing report show says why; mend it, then billing report retry",
    ),
    AttentionCause.BELOW_ZERO.value: CauseHelp(
        "the hour comes to less than nothing, which no provider takes",
        "it is taken out of later hours; to settle it sooner give a credit at the provider",
    ),
    AttentionCause.PROVIDER_CHANGED.value: CauseHelp(
        "it was never sent, and another provider gets this usage now",
        "nothing: the next run reports it there",
    ),
    AttentionCause.NO_ANSWER.value: CauseHelp(
        "a meter that adds gave no answer while a repeat was harmless; a repeat now could count "
        "twice",
        "look at the provider, then billing report unpark ID --arrived, or --never-arrived",
    ),
    AttentionCause.NOTHING_TO_TELL.value: CauseHelp(
        "what it was about is gone before any provider heard of it; it comes to nothing",
        "nothing",
    ),
    AttentionCause.BELOW_UNIT.value: CauseHelp(
        "it comes to less than one unit of the meter", "nothing: the next hour with usage takes it"
    ),
    AttentionCause.PERIOD_CLOSED.value: CauseHelp(
        "the provider made its period final before it arrived",
        "nothing: what did not arrive is carried into the hour under way",
    ),
    AttentionCause.CARRIED.value: CauseHelp(
        "what it stood for was carried on; it comes to nothing", "nothing"
    ),
    AttentionCause.DIFFERS.value: CauseHelp(
        "it was accepted, and the provider counts another figure, however often it was sent",
        "billing reconcile provider shows both; mend it at the provider, then billing report retry",
    ),
    AttentionCause.BY_HAND.value: CauseHelp(
        "somebody held it back",
        "billing report retry ID once it may go",
    ),
}
"""By why a report is parked."""

_LOST_NOTHING: Final = "no usage is lost: it waits in PostgreSQL"

UNANSWERED: Final[dict[ProviderCause, CauseHelp]] = {
    ProviderCause.KEY_REFUSED: CauseHelp(
        f"Stripe does not accept the key: it was rolled, deleted, not copied whole, or belongs to "
        f"another sandbox; {_LOST_NOTHING}",
        f"copy the secret key of test mode (sk_test_...) from {KEYS_PAGE} into STRIPE_API_KEY, "
        "then billing stripe setup --dry-run",
    ),
    ProviderCause.PERMISSION_REFUSED: CauseHelp(
        f"the key is right, but may not do this; {_LOST_NOTHING}",
        f"use a secret key with full rights from {KEYS_PAGE}",
    ),
    ProviderCause.CONNECTION_FAILED: CauseHelp(
        f"the provider could not be reached; {_LOST_NOTHING}",
        f"is the network up, and is STRIPE_API_BASE right where it is set? {_TRY_AGAIN}",
    ),
    ProviderCause.TIMED_OUT: CauseHelp(
        f"the provider did not answer in time; {_LOST_NOTHING}", _TRY_AGAIN
    ),
    ProviderCause.SERVER_ERROR: CauseHelp(
        f"the provider has a fault; {_LOST_NOTHING}", f"see its status page; {_TRY_AGAIN}"
    ),
    ProviderCause.RATE_LIMITED: CauseHelp(
        f"the provider wants fewer requests; {_LOST_NOTHING}",
        f"lower WEIGHBRIDGE_REPORT_RATE, or {_TRY_AGAIN}",
    ),
    ProviderCause.LOCK_TIMEOUT: CauseHelp(
        f"the provider is at work on the same thing; {_LOST_NOTHING}", _TRY_AGAIN
    ),
    ProviderCause.CONFLICT: CauseHelp(
        f"the same request is under way already; {_LOST_NOTHING}", _TRY_AGAIN
    ),
}
"""By why there was no answer, or no further one."""

_UNKNOWN: Final = CauseHelp(
    f"the provider refuses the request; {_LOST_NOTHING}", "billing doctor, or report it"
)


def help_for_parked(cause: str) -> CauseHelp:
    """Help for a report that is parked for this cause."""
    return PARKED.get(cause, CauseHelp(f"parked: {cause}", "billing report show ID says more"))


def cause_in(text: str) -> ProviderCause | None:
    """The cause named in a sentence such as ``Stripe: key_refused: …``."""
    parts = text.split(":")
    named = [ProviderCause(part.strip()) for part in parts if part.strip() in set(ProviderCause)]
    return named[0] if named else None


def help_for_stop(text: str) -> CauseHelp:
    """Help for a provider that stopped us, from the sentence in the run's result."""
    cause = cause_in(text)
    return UNANSWERED.get(cause, _UNKNOWN) if cause else _UNKNOWN


def message_of_unavailable(error: ProviderUnavailable) -> str:
    """One sentence for an operator about a provider that did not answer a question."""
    help_ = UNANSWERED.get(error.cause, _UNKNOWN) if error.cause else help_for_stop(str(error))
    return f"{error}: {help_.meaning}. Remedy: {help_.remedy}"
