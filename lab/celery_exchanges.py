"""Celery's own exchanges, which a run on somebody's RabbitMQ deletes again."""

from __future__ import annotations

from billing.settings import Settings
from workers.app import COMMON_QUEUE


def exchanges_of(settings: Settings) -> tuple[str, ...]:
    """Names of Celery's own exchanges: tasks, events, control and its replies."""
    queue = settings.task_queue
    if queue == COMMON_QUEUE:
        return (queue, "celeryev", "celery.pidbox", "reply.celery.pidbox")
    return (queue, f"{queue}.events", f"{queue}.control.pidbox", f"reply.{queue}.control.pidbox")
