"""Tasks that only the demo needs; its worker imports them beside the shipped ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from celery import shared_task

from workers.task import MeteredTask
from workers.tasks.bodies import Result
from workers.tasks.errors import BadStatusError
from workers.tasks.ingestion import capture_page

DIGEST: Final = "lab.demo.digest"
PATIENT_CAPTURE: Final = "lab.demo.patient_capture"


@shared_task(name=DIGEST)
def digest(captures: Sequence[Result]) -> Result:
    """What a group of captures found, together. Not metered: the body of the demo's chords."""
    return {
        "pages": len(captures),
        "text_characters": sum(capture["text_characters"] for capture in captures),
    }


@shared_task(
    base=MeteredTask,
    sku="page-capture",
    name=PATIENT_CAPTURE,
    autoretry_for=(BadStatusError,),
    max_retries=3,
    default_retry_delay=1,
)
def patient_capture(url: str) -> Result:
    """Capture a page; come back a second later, under the same hold, if its host is busy."""
    result: Result = capture_page.run(url)
    return result
