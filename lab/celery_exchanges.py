"""Celery's own exchanges, which a run on somebody's RabbitMQ deletes again."""

from __future__ import annotations

from typing import Final

from billing.settings import Settings

_COMMON_QUEUE: Final = str(Settings.model_fields["task_queue"].default)


def exchanges_of(settings: Settings) -> tuple[str, ...]:
    """Names of Celery's own exchanges: tasks, events, control and its replies."""
    queue = settings.task_queue
    if queue == _COMMON_QUEUE:
        return (queue, "celeryev", "celery.pidbox", "reply.celery.pidbox")
    return (queue, f"{queue}.events", f"{queue}.control.pidbox", f"reply.{queue}.control.pidbox")
