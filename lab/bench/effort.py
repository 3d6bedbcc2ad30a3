"""How much is measured. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from lab.bench.report import MIN_REPETITIONS, Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long each suite goes on.

    Attributes:
        repetitions: Of every figure.
        quota_calls: Reserves, settles and PINGs in one repetition.
        crowd_seconds: The length of one round of many clients.
        rivals: Whether the quota store is also measured beside others.
        transport_batches: Batches of 500 in one repetition.
        transport_singles: Events confirmed one by one in one repetition.
        ingest_batches: Batches in one repetition, by their size.
        consume_events: Messages in one round of suite consume.
        consume_consumers: How many consumers share them; one of the rounds has one.
        half_load_seconds: How long half load goes on in one repetition.
        concurrency: Processes of suite overhead's workers, one worker after another.
        latency_tasks: Tasks of each kind that run alone, in one repetition.
        round_seconds: The least length of a measured round of tasks.
        calibration_tasks: Tasks run before, to see how many fill a round.
        year_events: Events of the large database; the other has a tenth.
        soak_seconds: How long suite soak goes on.
        soak_rate: Tasks a second meanwhile.
        questions: Of each kind in one repetition.
        reported_events: Events of the smaller log that is reported.
        reported_times: How many times as many the other one has.
        reported_batch: Reports sent in one repetition.
    """

    repetitions: int
    quota_calls: int
    crowd_seconds: float
    rivals: bool
    transport_batches: int
    transport_singles: int
    ingest_batches: dict[int, int]
    consume_events: int
    consume_consumers: tuple[int, ...]
    half_load_seconds: float
    concurrency: tuple[int, ...]
    latency_tasks: int
    round_seconds: float
    calibration_tasks: int
    year_events: int
    soak_seconds: float
    soak_rate: float
    questions: int
    reported_events: int
    reported_times: int
    reported_batch: int

    def __post_init__(self) -> None:
        if self.repetitions < MIN_REPETITIONS:
            raise ValueError(f"{self.repetitions} repetitions; {MIN_REPETITIONS} are needed")


FULL: Final = Effort(
    repetitions=5,
    quota_calls=1500,
    crowd_seconds=2.0,
    rivals=True,
    transport_batches=4,
    transport_singles=200,
    ingest_batches={1000: 4, 5000: 1},
    consume_events=60_000,
    consume_consumers=(1, 2, 4),
    half_load_seconds=2.0,
    concurrency=(2, 8),
    latency_tasks=300,
    round_seconds=3.0,
    calibration_tasks=600,
    year_events=20_000_000,
    soak_seconds=1_200,
    soak_rate=50,
    questions=300,
    reported_events=1_000_000,
    reported_times=20,
    reported_batch=3_000,
)
QUICK: Final = Effort(
    repetitions=5,
    quota_calls=200,
    crowd_seconds=0.3,
    rivals=True,
    transport_batches=1,
    transport_singles=40,
    ingest_batches={1000: 1, 5000: 1},
    consume_events=24_000,
    consume_consumers=(1, 2),
    half_load_seconds=0.5,
    concurrency=(2, 8),
    latency_tasks=30,
    round_seconds=0.4,
    calibration_tasks=80,
    year_events=100_000,
    soak_seconds=40,
    soak_rate=20,
    questions=60,
    reported_events=20_000,
    reported_times=5,
    reported_batch=500,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a suite found, and what a reader has to know about how."""

    figures: list[Figure]
    notes: list[str] = field(default_factory=list)


CHECK: Final = replace(
    QUICK,
    quota_calls=400,
    crowd_seconds=0.4,
    rivals=False,
    ingest_batches={1000: 2, 5000: 1},
    consume_events=40_000,
    consume_consumers=(1,),
    concurrency=(2,),
    latency_tasks=20,
    round_seconds=0.8,
)
"""For a build: under two minutes on two cores."""
