"""Every fault by its name."""

from __future__ import annotations

from typing import Final

from lab.chaos.faults import (
    beats,
    clocks,
    deliveries,
    disk,
    kills,
    leases,
    network,
    postgres,
    rabbit,
    redis,
)
from lab.chaos.faults.base import Spec

SPECS: Final[dict[str, Spec]] = {
    spec.kind.name: spec
    for family in (
        kills,
        leases,
        rabbit,
        redis,
        postgres,
        network,
        deliveries,
        beats,
        disk,
        clocks,
    )
    for spec in family.specs()
}
