"""Errors for operators and developers: the problem, its meaning for money, the remedy."""

from __future__ import annotations

from enum import StrEnum


class WeighbridgeError(Exception):
    """Something went wrong in Weighbridge.

    ``args`` are those of the constructor, texts all of them, so that an error comes back the same
    through pickle and through Celery's JSON results.
    """

    def __init__(self, message: str | None = None) -> None:
        self._message = message or (self.__doc__ or "").strip()
        super().__init__(self._message)

    def __str__(self) -> str:
        return self._message


class InvalidValue(WeighbridgeError, ValueError):  # noqa: N818 - reads as what it is, beside ValueError
    """A value that cannot be right; names the field, the value and the remedy."""

    def __init__(self, field: str, value: object, remedy: str, shown: str | None = None) -> None:
        self.field = field
        self.value = value
        self.remedy = remedy
        # Given where the error comes back as JSON: its value is a text by then.
        shown = repr(value)[:200] if shown is None else shown
        super().__init__(f"{field}={shown}: {remedy}")
        self.args = (field, shown, remedy, shown)


class ConfigurationError(WeighbridgeError):
    """A setting that cannot be right; the process refuses to start."""

    def __init__(self, setting: str, problem: str, remedy: str) -> None:
        self.setting = setting
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{setting}: {problem}. Remedy: {remedy}")
        self.args = (setting, problem, remedy)


class NotFound(WeighbridgeError):  # noqa: N818 - as above
    """A customer, SKU, task or dead letter that is not there."""

    def __init__(self, what: str, key: str, remedy: str) -> None:
        self.what = what
        self.key = key
        self.remedy = remedy
        super().__init__(f"no {what} {key!r}: {remedy}")
        self.args = (what, key, remedy)


class AlreadyExists(WeighbridgeError):  # noqa: N818 - as above
    """Something of that name is there already, with other content."""


class QuotaUnavailable(WeighbridgeError):  # noqa: N818 - as above
    """The quota store (Redis) did not answer; nothing was admitted by this call."""


class PublishFailed(WeighbridgeError):  # noqa: N818 - as above
    """RabbitMQ did not confirm. The events were not lost: the caller still has them."""


class DenialReason(StrEnum):
    """Why an admission was refused."""

    INSUFFICIENT_CREDITS = "insufficient_credits"
    BUDGET_EXCEEDED = "budget_exceeded"
    SKU_BUDGET_EXCEEDED = "sku_budget_exceeded"
    CUSTOMER_SUSPENDED = "customer_suspended"
    UNKNOWN_CUSTOMER = "unknown_customer"
    REVOKED = "revoked"
    """The task was revoked before it started: its release came before its hold."""
    QUOTA_UNAVAILABLE = "quota_unavailable"
    """Redis, or PostgreSQL behind a missing balance, did not answer; the SKU's policy denies."""


def first_line(error: object) -> str:
    """The first line of an error's text, or its type where it has none; at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
