"""One run of a metered task, from its hold to its settlement.

A run is the tracer's one call of the task, whatever the task's classes make of it. So it is metered
around the outermost ``__call__``: a class that calls ``self.run`` in place of ``super().__call__``,
or has its body in ``__call__``, is part of the run as well. It cannot be metered around ``run``,
which Celery wraps when a task retries by itself: each attempt would end the run. Nor in
``on_success`` or ``after_return``: what is raised there is swallowed, and the event would be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, Final, NoReturn
from weakref import WeakSet

import structlog
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from billing.core.admission import Admission
from billing.core.reservation import ReleaseCause
from billing.metering.meter import Meter
from billing.metering.usage_recorder import UsageRecorder
from workers.billing_header import bill_to
from workers.canvas import is_mapped
from workers.current_usage import recording
from workers.errors import NotMetered

log = structlog.get_logger(__name__)

_RUN: Final = "_weighbridge_run"
_gates: Final[WeakSet[Callable[..., Any]]] = WeakSet()


@dataclass(slots=True)
class MeteredRun:
    """An admitted run, kept on its request.

    ``started`` once the tracer has called the task; ``calling`` while the ``__call__`` of its
    classes runs, outside the body; ``replaced`` once another task has taken over its hold.
    """

    meter: Meter
    admission: Admission
    recorder: UsageRecorder
    started: bool = False
    calling: bool = False
    replaced: bool = False


def run_of(request: Any) -> MeteredRun | None:
    """The admitted run of a request; None where none was admitted, or it has ended."""
    return getattr(request, _RUN, None)


def begin(request: Any, meter: Meter, admission: Admission) -> None:
    """Keep an admitted run on its request."""
    setattr(request, _RUN, MeteredRun(meter, admission, meter.recorder(admission.sku)))


def put_gates(task: Any) -> None:
    """Meter whatever a class calls when it is run, however it came by its methods.

    Args:
        task: The class of a metered task.
    """
    for name, gate in (("before_start", _closing), ("__call__", _metered)):
        method = getattr(task, name)
        if method not in _gates:
            gated = update_wrapper(gate(method), method)
            # Celery's annotations would reach through it to the method inside.
            del gated.__wrapped__
            _gates.add(gated)
            setattr(task, name, gated)


def _closing(before_start: Callable[..., Any]) -> Any:
    """A ``before_start`` that ends the run it admitted if it fails afterwards."""

    def gate(task: Any, *args: Any, **kwargs: Any) -> Any:
        request = task.request
        try:
            return before_start(task, *args, **kwargs)
        except BaseException as error:
            run = run_of(request)
            if run is not None:
                setattr(request, _RUN, None)
                _end(run, error)
            raise

    return gate


def _metered(call: Callable[..., Any]) -> Any:
    """A ``__call__`` that meters the run it is called for, once."""

    def gate(task: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the body and settle. A plain call of the function is not a run and is not metered.

        Raises:
            NotMetered: Celery runs it without a hold; the body does not run.
        """
        request = task.request
        run = run_of(request)
        if run is None and (not request.called_directly or is_mapped(task)):
            raise NotMetered(task.name)
        if run is not None and run.calling:  # super().__call__ of another class
            return call(task, *args, **kwargs)
        if run is None or run.started:
            with recording(None):
                return call(task, *args, **kwargs)
        with _settled(run):
            return call(task, *args, **kwargs)

    return gate


@contextmanager
def _settled(run: MeteredRun) -> Iterator[None]:
    run.started = run.calling = True
    try:
        # Called eagerly inside another's bill_to, it is still its own customer who pays.
        with bill_to(run.admission.facts.customer), recording(run.recorder):
            yield
        _settle(run)
    except BaseException as error:
        _end(run, error)
        raise
    finally:
        run.calling = False


def _settle(run: MeteredRun) -> None:
    try:
        run.meter.settle(run.admission, run.recorder)
    except OSError as error:
        _keep_the_message(run, error)


def _end(run: MeteredRun, error: BaseException) -> None:
    """Close a run that failed, was replaced, or will be tried again."""
    if isinstance(error, Retry):
        # The same task comes back and finds its hold; if it comes too late, the hold expires.
        _record_attempt(run)
    elif run.replaced:
        run.meter.hand_over(run.admission)
    else:
        _fail(run, _cause_of(error))


def _record_attempt(run: MeteredRun) -> None:
    """Best effort, as ``_fail``: only the margin depends on it, and the retry must go on."""
    try:
        run.meter.record_attempt(run.admission, run.recorder)
    except Exception as error:  # as the docstring says
        log.exception(
            "attempt_cost_not_recorded",
            task_id=run.admission.facts.task_id,
            customer=run.admission.facts.customer,
            money="the customer pays what is right; this task's margin looks too high",
            error=str(error),
        )


def _fail(run: MeteredRun, cause: ReleaseCause) -> None:
    """Best effort: the body's own error must not be hidden behind ours; holds expire."""
    try:
        run.meter.fail(run.admission, run.recorder, cause)
    except OSError as error:
        _keep_the_message(run, error)
    except Exception as error:  # as the docstring says
        log.exception(
            "hold_not_released",
            task_id=run.admission.facts.task_id,
            customer=run.admission.facts.customer,
            money="its credits stay held until the hold expires; nothing is charged",
            error=str(error),
        )


def _keep_the_message(run: MeteredRun, error: OSError) -> NoReturn:
    """Send the task back to its queue: Redis, RabbitMQ and the disk have all refused its usage."""
    log.critical(
        "usage_not_stored",
        task_id=run.admission.facts.task_id,
        customer=run.admission.facts.customer,
        problem="Redis, RabbitMQ and the disk refused it; the task goes back to its queue",
        money="the work was done and is not yet billed; it is done again, and billed then",
        remedy="free the disk of WEIGHBRIDGE_SPOOL_DIR, bring Redis and RabbitMQ back",
        error=str(error),
    )
    raise Reject(error, requeue=True) from error


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
