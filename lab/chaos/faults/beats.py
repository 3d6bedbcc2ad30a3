"""Beat: two at once, and each of its jobs killed."""

from __future__ import annotations

from typing import Final

from lab.chaos.app import BEAT_JOBS, SENDING, SENT, deaths, mark_for_death
from lab.chaos.faults.base import Fault, Heard, Spec
from lab.chaos.ground import BEAT
from lab.chaos.schedule import Kind

_SECOND: Final = "beat-2"
_JOB_SECONDS: Final = 10.0
_BEAT_SECONDS: Final = 45.0
_SENDING: Final = "Sending due task"


class TwoBeats(Fault):
    """A second beat: every job is sent twice."""

    def inject(self) -> None:
        """Start it."""
        self.ground.start_and_await(_SECOND)
        self._first, self._second = Heard(self.ground, BEAT), Heard(self.ground, _SECOND)

    def during(self) -> None:
        """Until both have sent jobs."""
        super().during()
        self.happens(lambda: self.hits() > 0, 20)

    def heal(self) -> None:
        """One is enough."""
        self.ground.supervisor.drop(_SECOND, gently=False)

    def hits(self) -> int:
        """Jobs that both have sent."""
        return min(self._first.count(_SENDING), self._second.count(_SENDING))


class KilledInJobs(Fault):
    """Whoever runs a job of beat's dies in it, at its beginning or some milliseconds into it."""

    def inject(self) -> None:
        """See what died before."""
        self._before = len(deaths(self.ground.folder))

    def during(self) -> None:
        """Each job in turn, in the order that the seed decides."""
        jobs = list(BEAT_JOBS)
        self.random.shuffle(jobs)
        for job in jobs * self.turn.hits:
            marked = mark_for_death(self.ground.folder, job)
            count = len(deaths(self.ground.folder))
            self.ground.app.send_task(job)
            self.happens(lambda: len(deaths(self.ground.folder)) > count, _JOB_SECONDS)  # noqa: B023 - asked at once
            marked.unlink(missing_ok=True)

    def heal(self) -> None:
        """No job is marked any more."""
        for job in BEAT_JOBS:
            (self.ground.folder / f"kill-{job}").unlink(missing_ok=True)

    def hits(self) -> int:
        """Deaths, if there was one in each job."""
        died = deaths(self.ground.folder)[self._before :]
        return len(died) if set(died) >= set(BEAT_JOBS) else 0


class KilledSending(Fault):
    """Beat dies with each of its jobs: right before it sends it, and right after."""

    places: Final = tuple(mark + job for job in BEAT_JOBS for mark in (SENDING, SENT))

    def inject(self) -> None:
        """See what died before."""
        self._before = len(deaths(self.ground.folder))

    def during(self) -> None:
        """Each place in turn, in the order that the seed decides; the supervisor restarts beat."""
        places = list(self.places)
        self.random.shuffle(places)
        for place in places * self.turn.hits:
            count = len(deaths(self.ground.folder))
            marked = mark_for_death(self.ground.folder, place)
            # A beat that starts has every job due that it has not sent for so long.
            self.happens(lambda: len(deaths(self.ground.folder)) > count, _BEAT_SECONDS)  # noqa: B023 - asked at once
            marked.unlink(missing_ok=True)

    def heal(self) -> None:
        """Nothing is marked any more, and beat is at work."""
        for place in self.places:
            (self.ground.folder / f"kill-{place}").unlink(missing_ok=True)
        self.ground.supervisor.await_ready(BEAT)

    def hits(self) -> int:
        """Deaths of beat, if there was one at each place."""
        died = deaths(self.ground.folder)[self._before :]
        return len(died) if set(died) >= set(self.places) else 0


def specs() -> list[Spec]:
    """Every fault of beat."""
    return [
        Spec(Kind(name="two-beats", seconds=(2.0, 15.0)), "two beats at once", TwoBeats),
        Spec(
            Kind(name="jobs-killed", many=True),
            "a worker's child dies in each of beat's jobs",
            KilledInJobs,
        ),
        Spec(
            Kind(name="beat-killed-sending", last=True, quick=False),
            "beat dies right before and right after it sends each of its jobs",
            KilledSending,
        ),
    ]
