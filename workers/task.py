"""MeteredTask: a Celery task that is weighed on the way in and on the way out.

::

    @app.task(base=MeteredTask, sku="page-capture")
    def capture_page(url): ...

    capture_page.bill_to("acme").delay("https://example.com/")

The gate is ``before_start``: the tracer calls it inside its ``try`` and outside the autoretry
wrapper, in every pool and eagerly; a ``task_prerun`` receiver cannot stop a task, because signals
swallow exceptions. The settlement is in ``__call__``: what is raised in ``on_success`` or
``after_return`` is logged and swallowed, and the event would be lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, NoReturn

import structlog
from celery import Task
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from billing.core.errors import ConfigurationError, DenialReason, QuotaUnavailable
from billing.core.reservation import ReleaseCause
from billing.core.sku import DenialPolicy, UnavailablePolicy
from billing.metering.meter import Meter
from billing.metering.usage_recorder import Admission, TaskFacts, UsageRecorder
from workers.billing_header import (
    HEADER,
    BillingHeader,
    CustomerRequired,
    bill_to,
    current_customer,
    header_of,
    recording,
    running_header,
)
from workers.bound_task import BilledTask
from workers.canvas import hand_over, is_mapped
from workers.errors import NotMetered, QuotaExceeded

log = structlog.get_logger(__name__)

_RUN = "_weighbridge_run"


@dataclass(slots=True)
class _Run:
    """An admitted run, kept on its request; entered once, by the tracer."""

    admission: Admission
    recorder: UsageRecorder
    entered: bool = False
    replaced: bool = False


class MeteredTask(Task[Any, Any]):
    """Base of tasks that are sold.

    Attributes:
        sku: What a run is sold as. Required.
        hold_quantity: Units to hold: a number, or a callable that gets the task's arguments. None
            holds what the SKU says.
        show_arguments: Whether logs, events and Flower show the arguments; they are a customer's
            data, so not by default.
    """

    abstract = True
    acks_late = True
    Request = f"{__package__}.worker_request:MeteredRequest"
    sku: ClassVar[str] = ""
    hold_quantity: ClassVar[int | Callable[..., int] | None] = None
    show_arguments: ClassVar[bool] = False

    # -- submission ----------------------------------------------------------------------------

    def bill_to(self, customer: str) -> BilledTask:
        """This task, submitted at the expense of ``customer``."""
        return BilledTask(self, customer)

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        *positional: Any,
        customer: str | None = None,
        **options: Any,
    ) -> Any:
        """Submit; ``customer`` says who pays, else ``bill_to`` or the running task does.

        Raises:
            CustomerRequired: Nobody was named.
        """
        options["headers"] = self._stamped(customer, options)
        if not self.show_arguments:
            options = {"argsrepr": "(…)", "kwargsrepr": "{…}", **options}
        return super().apply_async(args, kwargs, *positional, **options)

    def apply(  # type: ignore[override]  # the options after the arguments only by name
        self, args: Any = None, kwargs: Any = None, *, customer: str | None = None, **options: Any
    ) -> Any:
        """Run here and now, metered as in a worker.

        Raises:
            CustomerRequired: Nobody was named.
        """
        options["headers"] = self._stamped(customer, options)
        return super().apply(args, kwargs, **options)

    def _stamped(self, customer: str | None, options: dict[str, Any]) -> dict[str, Any]:
        """The message's headers with the billing header in them.

        A retry or a replacement (the same task id) keeps the header it was first stamped with, so
        that its events keep their ids.
        """
        headers = dict(options.get("headers") or {})
        given = headers.get(HEADER)
        stamped = BillingHeader.from_message(given) if given is not None else None
        request = self.app.current_worker_task and self.app.current_worker_task.request
        if stamped is None and request and options.get("task_id") == request.id:
            stamped = header_of(request)
        if stamped is None or (customer is not None and customer != stamped.customer):
            payer = customer or current_customer()
            if not payer:
                raise CustomerRequired(self.name)
            stamped = BillingHeader(payer, self._metered_at(options))
        headers[HEADER] = stamped.to_message()
        return headers

    def _metered_at(self, options: dict[str, Any]) -> datetime:
        now = self._submitted_at(options)
        eta, countdown = options.get("eta"), options.get("countdown")
        if isinstance(eta, str):
            eta = datetime.fromisoformat(eta)
        if isinstance(eta, datetime):
            # Celery reads a naive ETA in the app's time zone.
            return eta if eta.tzinfo else eta.replace(tzinfo=self.app.timezone)
        return now + timedelta(seconds=countdown) if countdown else now

    def _submitted_at(self, options: dict[str, Any]) -> datetime:
        """Now; of a task that got its id before its parent ran, the parent's ``metered_at``.

        So the next of a chain, or a chord's body: a parent that is run again after its child died
        submits it again under the same id, and another instant would make another event of it.
        """
        header = running_header() if options.get("task_id") else None
        now: datetime = self.metering.clock.now()
        return header.metered_at if header else now

    # -- the run -------------------------------------------------------------------------------

    @property
    def metering(self) -> Any:
        """The app's ``Metering``.

        Raises:
            ConfigurationError: The app has none.
        """
        app: Any = self.app
        try:
            return app.metering
        except AttributeError:
            raise ConfigurationError(
                "Metering",
                f"the app {self.app.main!r} of {self.name} has metered tasks but no meter",
                "call Metering(app) where the app is made",
            ) from None

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """The weighbridge on the way in: hold the credits, or do not run.

        Raises:
            QuotaExceeded: Refused; the body does not run.
            Retry: Told to come back later; the body does not run.
        """
        super().before_start(task_id, args, kwargs)
        request: Any = self.request  # its limits are untold by Celery's stubs
        facts = facts_of(self, request)
        try:
            meter: Meter = self.metering.meter
            admission = meter.admit(
                facts,
                self.sku,
                self._units(args, kwargs),
                # apply_async(time_limit=…) can be longer than what was checked at start-up, and
                # Celery does not stop a run before its soft limit, if that is the longer one.
                time_limit_seconds=max(request.time_limit or 0, request.soft_time_limit or 0),
                may_repeat=_may_repeat(request),
            )
        except QuotaUnavailable as error:
            # Not even the SKU, and so its policy, is known: come back, as the default policy says.
            self._defer_unknown(error)
        if not admission.admitted:
            self._refuse(meter, admission)
        run = _Run(admission, meter.recorder(admission.sku))
        setattr(request, _RUN, run)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body and settle. A plain call of the function is not a run and is not metered.

        Raises:
            Unweighed: Celery runs it, but past the weighbridge; the body does not run.
        """
        run: _Run | None = getattr(self.request, _RUN, None)
        if run is None and (not self.request.called_directly or is_mapped(self)):
            raise NotMetered(self.name)
        if run is None or run.entered:
            with recording(None):
                return super().__call__(*args, **kwargs)
        run.entered = True
        meter: Meter = self.metering.meter
        try:
            # Called eagerly inside another's bill_to, it is still its own customer who pays.
            with bill_to(run.admission.facts.customer), recording(run.recorder):
                result = self.run(*args, **kwargs)
            self._settle(meter, run)
        except Retry:
            # The same task comes back and finds its hold; if it comes too late, the hold expires.
            self._record_attempt(meter, run)
            raise
        except BaseException as error:
            if run.replaced:
                meter.hand_over(run.admission)
            else:
                self._end(meter, run, _cause_of(error))
            raise
        return result

    def replace(self, sig: Any) -> Any:
        """Replace this task. A metered replacement takes over the hold under the same task id."""
        run: _Run | None = getattr(self.request, _RUN, None)
        if run is not None:
            run.replaced = hand_over(sig, header_of(self.request), MeteredTask)
        return super().replace(sig)

    def _settle(self, meter: Meter, run: _Run) -> None:
        try:
            meter.settle(run.admission, run.recorder)
        except OSError as error:
            self._keep_the_message(run, error)

    def _keep_the_message(self, run: _Run, error: OSError) -> NoReturn:
        """Redis, RabbitMQ and the node's disk all refused: only the broker still has the task."""
        log.critical(
            "usage could not be kept anywhere; the task goes back to its queue",
            task_id=run.admission.facts.task_id,
            customer=run.admission.facts.customer,
            money="the work was done and is not yet billed; it is done again, and billed then",
            remedy="free the disk of WEIGHBRIDGE_SPOOL_DIR, bring Redis and RabbitMQ back",
            error=str(error),
        )
        raise Reject(error, requeue=True) from error

    def _units(self, args: Any, kwargs: Any) -> int | None:
        # Through the class: a plain function set as an attribute would bind to self.
        quantity = type(self).hold_quantity
        if isinstance(quantity, staticmethod):
            quantity = quantity.__func__
        return quantity(*args, **kwargs) if callable(quantity) else quantity

    def _refuse(self, meter: Meter, admission: Admission) -> NoReturn:
        header = header_of(self.request)
        deferrals = header.deferrals if header else 0
        policy = admission.sku
        if admission.reason is DenialReason.QUOTA_UNAVAILABLE:
            comes_back = policy.unavailable_policy is not UnavailablePolicy.DENY
        else:
            may_change = admission.reason not in _FINAL
            comes_back = may_change and policy.denial_policy is DenialPolicy.DEFER
        settings = self.metering.settings
        # An eager task has no queue to come back from.
        may_come_back = header is not None and not self.request.is_eager
        if may_come_back and header and admission.contended and not comes_back and not deferrals:
            # Refused for good only if it still lacks credits when the leases of others are over.
            header = replace(header, deferrals=1)
            self._defer(header, settings.lease_seconds + 1, _exceeded(admission))
        comes_back = comes_back and deferrals < settings.max_deferrals
        if not comes_back or self.request.is_eager or header is None:
            meter.record_denial(admission)
            raise _exceeded(admission)
        if deferrals == 0 and admission.reason is not DenialReason.QUOTA_UNAVAILABLE:
            meter.record_denial(admission)
        header = replace(header, deferrals=deferrals + 1)
        self._defer(header, settings.defer_seconds, _exceeded(admission))

    def _defer_unknown(self, error: QuotaUnavailable) -> NoReturn:
        header = header_of(self.request)
        settings = self.metering.settings
        if header is None or self.request.is_eager or header.deferrals >= settings.max_deferrals:
            raise error
        self._defer(replace(header, deferrals=header.deferrals + 1), settings.defer_seconds, error)

    def _defer(self, header: BillingHeader, seconds: int, why: Exception) -> NoReturn:
        """Send the task back to its queue, without using up its own retries."""
        request = self.request
        # Spread, so that ten thousand deferred tasks do not come back in one moment.
        countdown = seconds * (1 + random.random() / 5)  # noqa: S311 - not a secret
        headers = {**(request.headers or {}), HEADER: header.to_message()}
        signature = self.signature_from_request(
            request, countdown=countdown, retries=request.retries
        )
        signature.set(headers=headers)
        try:
            signature.apply_async()
        except Exception as error:  # whatever the broker raises: the message must not be lost
            raise Reject(error, requeue=True) from error
        raise Retry(exc=why, when=countdown)  # type: ignore[arg-type]  # a float is a number

    def _record_attempt(self, meter: Meter, run: _Run) -> None:
        """Best effort, as ``_end``: only the margin depends on it, and the retry must go on."""
        try:
            meter.record_attempt(run.admission, run.recorder)
        except Exception as error:  # as the docstring says
            log.exception(
                "the cost of an attempt could not be recorded",
                task_id=run.admission.facts.task_id,
                money="the customer pays what is right; this task's margin looks too high",
                error=str(error),
            )

    def _end(self, meter: Meter, run: _Run, cause: ReleaseCause) -> None:
        """Best effort: the body's own error must not be hidden behind ours; holds expire."""
        try:
            meter.fail(run.admission, run.recorder, cause)
        except OSError as error:
            self._keep_the_message(run, error)
        except Exception as error:  # as the docstring says
            log.exception(
                "a hold could not be ended",
                task_id=run.admission.facts.task_id,
                customer=run.admission.facts.customer,
                money="its credits stay held until the hold expires; nothing is charged",
                error=str(error),
            )


_FINAL = frozenset({DenialReason.REVOKED, DenialReason.UNKNOWN_CUSTOMER})
"""Refusals that coming back later cannot change."""


def facts_of(task: Task[Any, Any], request: Any) -> TaskFacts:
    """What the events of a task have in common, from its request.

    Raises:
        CustomerRequired: The message has no billing header.
        InvalidValue: Its header cannot be read.
    """
    header = header_of(request)
    if header is None:
        raise CustomerRequired(task.name)
    return TaskFacts(
        task_id=request.id,
        customer=header.customer,
        metered_at=header.metered_at,
        task_name=task.name,
        root_id=request.root_id,
        parent_id=request.parent_id,
        group_id=request.group,
        attempt=request.retries or 0,
        worker=request.hostname or "",
    )


def _may_repeat(request: Any) -> bool:
    """Whether this message, or one before it, may have run before."""
    return bool(request.retries or (request.delivery_info or {}).get("redelivered"))


def _cause_of(error: BaseException) -> ReleaseCause:
    if isinstance(error, SoftTimeLimitExceeded):
        return ReleaseCause.SOFT_TIME_LIMIT
    if isinstance(error, Ignore):
        return ReleaseCause.IGNORED
    if isinstance(error, Reject):
        return ReleaseCause.REJECTED
    if isinstance(error, Exception):
        return ReleaseCause.EXCEPTION
    return ReleaseCause.EXITED


def _exceeded(admission: Admission) -> QuotaExceeded:
    reason = admission.reason
    return QuotaExceeded(
        reason.value if reason else "",
        admission.facts.customer,
        admission.sku.id,
        admission.needed_microcredits,
        admission.left_microcredits,
    )


__all__ = ["BilledTask", "MeteredTask", "facts_of"]
