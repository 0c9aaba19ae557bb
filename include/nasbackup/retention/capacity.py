"""When will a repository be full? Pure: samples in, a forecast out. Light: fleet.yaml's thresholds are here too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import linear_regression

LOOK_BACK = timedelta(days=30)
"""Samples before that say little about the growth of today."""

SHORTEST = timedelta(days=1)
"""Samples closer together than this say nothing about growth: one big backup is no trend."""

_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Somebody is told when either is passed."""

    warn_percent: int = 85
    warn_days: int = 30


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Bytes of the repository's file system, as this user sees it; ``backups``: of those that the catalog knows."""

    measured_at: datetime
    total: int
    free: int
    backups: int

    @property
    def used(self) -> int:
        return self.total - self.free


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """``growth_per_day``: bytes, None while there are too few samples. ``full_in_days``: None when it does not grow."""

    now: Sample
    growth_per_day: float | None = None
    full_in_days: float | None = None

    @property
    def used_percent(self) -> float:
        return 100 * self.now.used / self.now.total if self.now.total else 100.0

    def facts(self) -> dict[str, float | None]:
        """As results and JSON show it; bytes, bytes a day, days."""
        return {
            "total": self.now.total,
            "used": self.now.used,
            "free": self.now.free,
            "backups": self.now.backups,
            "growth_per_day": self.growth_per_day,
            "full_in_days": self.full_in_days,
        }

    def warning(self, thresholds: Thresholds) -> str | None:
        """Why somebody should make room, as a part of a sentence."""
        reasons = []
        if self.used_percent >= thresholds.warn_percent:
            reasons.append(f"{self.used_percent:.0f} % is used (warn_percent: {thresholds.warn_percent})")
        if self.full_in_days is not None and self.full_in_days <= thresholds.warn_days:
            reasons.append(f"full in {self.full_in_days:.0f} days at its growth (warn_days: {thresholds.warn_days})")
        return " and ".join(reasons) or None


def forecast(samples: Sequence[Sample]) -> Forecast:
    """From the last sample and the straight line through those of the last 30 days. At least one sample."""
    latest = max(samples, key=lambda sample: sample.measured_at)
    recent = [sample for sample in samples if latest.measured_at - sample.measured_at <= LOOK_BACK]
    span = latest.measured_at - min(sample.measured_at for sample in recent)
    if span < SHORTEST:
        return Forecast(now=latest)
    days = [(sample.measured_at - latest.measured_at).total_seconds() / _DAY for sample in recent]
    growth = linear_regression(days, [sample.used for sample in recent]).slope
    return Forecast(now=latest, growth_per_day=growth, full_in_days=latest.free / growth if growth > 0 else None)
