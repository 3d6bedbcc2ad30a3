"""MeteredTask: a Celery task that is weighed on the way in and on the way out.

::

    @app.task(base=MeteredTask, sku="page-capture")
    def capture_page(url): ...

    capture_page.bill_to("acme").delay("https://example.com/")

Credits are held in ``before_start``: the tracer calls it inside its ``try`` and outside the
autoretry wrapper, in every pool and eagerly; a ``task_prerun`` receiver cannot stop a task, because
signals swallow exceptions. They are settled around ``__call__``; see ``metered_run``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from celery import Task

from billing.core.admission import TaskFacts
from billing.core.errors import ConfigurationError, QuotaUnavailable
from billing.metering.meter import Meter
from workers.billing_header import (
    HEADER,
    BillingHeader,
    current_customer,
    header_of,
    running_header,
)
from workers.bound_task import BilledTask
from workers.canvas import hand_over
from workers.errors import CustomerRequired
from workers.metered_run import begin, put_gates, run_of
from workers.refusal import defer_unknown, refuse

if TYPE_CHECKING:
    _Task = Task[Any, Any]
else:
    # Before Celery 5.7 it takes no parameters where it runs.
    _Task = Task


class MeteredTask(_Task):
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

    def __init_subclass__(cls, **options: Any) -> None:
        """Meter whatever the class overrides."""
        super().__init_subclass__(**options)
        put_gates(cls)

    @classmethod
    def bind(cls, app: Any) -> Any:
        """Register with an app; meters what a class was given since it was made, too."""
        bound = super().bind(app)
        put_gates(cls)
        return bound

    # -- submission ----------------------------------------------------------------------------

    def bill_to(self, customer: str) -> BilledTask:
        """Bind the customer who pays for what is submitted through the returned task."""
        return BilledTask(self, customer)

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        *positional: Any,
        customer: str | None = None,
        **options: Any,
    ) -> Any:
        """Submit; ``customer`` pays, else that of ``bill_to`` or of the running task.

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
            Retry: Sent back to its queue; the body does not run.
        """
        super().before_start(task_id, args, kwargs)
        request: Any = self.request  # Celery's stubs do not know its limits
        try:
            meter: Meter = self.metering.meter
            admission = meter.admit(
                facts_of(self, request),
                self.sku,
                self._units(args, kwargs),
                # apply_async(time_limit=…) can be longer than what was checked at start-up, and
                # Celery does not stop a run before its soft limit, if that is the longer one.
                time_limit_seconds=_longest_limit(request),
                may_repeat=_may_repeat(request),
            )
        except QuotaUnavailable as error:
            # Not even the SKU, and so its policy, is known: come back, as the default policy says.
            defer_unknown(self, error)
        if not admission.admitted:
            refuse(self, meter, admission)
        begin(request, meter, admission)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the body: within a run as a part of it, else as the plain function it is."""
        run = run_of(self.request)
        if run is None or not run.calling:
            return super().__call__(*args, **kwargs)
        # A task that calls itself in its body is called as a function.
        run.calling = False
        try:
            return self.run(*args, **kwargs)
        finally:
            run.calling = True

    def replace(self, sig: Any) -> Any:
        """Replace this task. A metered replacement takes over the hold under the same task id."""
        run = run_of(self.request)
        if run is not None:
            run.replaced = hand_over(sig, header_of(self.request), MeteredTask)
        return super().replace(sig)

    def _units(self, args: Any, kwargs: Any) -> int | None:
        # Through the class: a plain function set as an attribute would bind to self.
        quantity = type(self).hold_quantity
        if isinstance(quantity, staticmethod):
            quantity = quantity.__func__
        return quantity(*args, **kwargs) if callable(quantity) else quantity


def _longest_limit(request: Any) -> float:
    """The longer of a message's own time limits, in seconds; 0 without any."""
    # Before Celery 5.7 a request has the pair alone; in eager mode a later one has the two alone.
    named = (getattr(request, name, None) for name in ("time_limit", "soft_time_limit"))
    return max((limit for limit in (*(request.timelimit or ()), *named) if limit), default=0)


def facts_of(task: Task[Any, Any], request: Any) -> TaskFacts:
    """The fields that all events of a task share, from its request.

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
    """True if this message, or one before it, may have run before."""
    return bool(request.retries or (request.delivery_info or {}).get("redelivered"))


__all__ = ["BilledTask", "MeteredTask", "facts_of"]
