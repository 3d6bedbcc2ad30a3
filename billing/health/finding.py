"""The result of one health check: a level, what was found, its meaning for money, the remedy."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """Severity. ``fail``: money or work is at risk, and ``doctor`` exits with 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthFinding:
    """One check. ``meaning`` (for money) and ``remedy`` are empty where all is well."""

    check: str
    level: Level
    found: str
    meaning: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """Makes the findings of one check, by level."""

    name: str

    def ok(self, found: str) -> HealthFinding:
        """Nothing to do."""
        return HealthFinding(check=self.name, level=Level.OK, found=found)

    def warn(
        self, found: str, meaning: str, remedy: str, *, level: Level = Level.WARN
    ) -> HealthFinding:
        """Something to do soon; ``level`` where the rule decides how soon."""
        return HealthFinding(
            check=self.name, level=level, found=found, meaning=meaning, remedy=remedy
        )

    def fail(self, found: str, meaning: str, remedy: str) -> HealthFinding:
        """Money or work is at risk."""
        return self.warn(found, meaning, remedy, level=Level.FAIL)


def fail_if(condition: bool) -> Level:
    """``fail`` or ``warn``."""
    return Level.FAIL if condition else Level.WARN


def worst(findings: Collection[HealthFinding]) -> Level:
    """The worst level among them."""
    levels = {finding.level for finding in findings}
    return next((level for level in (Level.FAIL, Level.WARN) if level in levels), Level.OK)
