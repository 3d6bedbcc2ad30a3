"""Release the holds of runs whose end only the worker's main process sees: killed, revoked.

Best effort and bounded (``parent_redis_timeout_ms``): this process also consumes the task queue.
A release that is missed is made good by the expiry of holds.
"""

from __future__ import annotations

from typing import Any

import structlog
from celery.exceptions import TimeLimitExceeded, WorkerLostError
from celery.worker.request import Request

from billing.core.errors import InvalidValue, WeighbridgeError
from billing.core.reservation import ReleaseCause
from workers.billing_header import BillingHeader, bill_to, header_of
from workers.task import facts_of

log = structlog.get_logger(__name__)


class MeteredRequest(Request):
    """A request that gives its hold back when its child can no longer do so."""

    # Celery's; its stubs do not have them.
    task: Any
    _context: Any
    _errbacks_are_sent = False

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Do as Celery does, then release the hold of a run whose child could not."""
        header = self._billing_header()
        if header is None:
            return super().on_failure(exc_info, *args, **kwargs)
        # Error callbacks are published from here, where no task is running to inherit from.
        with bill_to(header.customer):
            result = super().on_failure(exc_info, *args, **kwargs)
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, TimeLimitExceeded):
            self._errbacks_are_sent = bool(self._acks_on_timeout() or not self.task.acks_late)
            self._release(ReleaseCause.HARD_TIME_LIMIT)
        elif isinstance(error, WorkerLostError | SystemExit) and not self._comes_back():
            self._release(ReleaseCause.WORKER_LOST)
        return result

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        """Do as Celery does, then release the hold of a run that hit its hard time limit."""
        header = self._billing_header()
        if header is None:
            return super().on_timeout(soft, timeout)
        if self._errbacks_are_sent:
            # Celery reports a hard limit twice; a metered error callback would be billed twice.
            self._context.errbacks = None
        # What is raised here would keep Celery from killing the child.
        with bill_to(header.customer):
            result = super().on_timeout(soft, timeout)
        if not soft and self._acks_on_timeout():
            self._release(ReleaseCause.HARD_TIME_LIMIT)
        return result

    def _acks_on_timeout(self) -> bool:
        """True if the message of a run that hit its hard time limit is not delivered again."""
        # Before Celery 5.7 there is one setting for failures and timeouts.
        one = self.task.acks_on_failure_or_timeout
        return bool(getattr(self.task, "acks_on_timeout", one))

    def _comes_back(self) -> bool:
        """True if this message, or a retry of it, will run again and find its hold."""
        if self.task.reject_on_worker_lost and self.task.acks_late:
            return True
        if not getattr(self.task, "retry_on_worker_lost", False):  # from Celery 5.7 on
            return False
        most = self.task.max_retries
        return most is None or self._context.retries < most

    def _billing_header(self) -> BillingHeader | None:
        try:
            return header_of(self._context)
        except InvalidValue:
            return None

    def _release(self, cause: ReleaseCause) -> None:
        release(self.task, self._context, cause)


def release(task: Any, context: Any, cause: ReleaseCause) -> None:
    """Release the hold of a task whose child could not. Never raises.

    Args:
        task: The task; nothing happens if it is not metered.
        context: Its request.
        cause: How it ended.
    """
    sku = getattr(task, "sku", "")
    if not sku:
        return
    try:
        outcome = task.metering.parent_meter.lost(facts_of(task, context), sku, cause)
        log.info("hold_ended_by_main_process", task_id=context.id, cause=cause, outcome=outcome)
    except WeighbridgeError as error:
        log.warning(
            "hold_not_released",
            task_id=context.id,
            cause=cause,
            money="its credits stay held until the hold expires; nothing is charged",
            error=str(error),
        )
    except Exception as error:  # the consumer of the task queue must go on
        log.exception("hold_not_released", task_id=context.id, error=str(error))
