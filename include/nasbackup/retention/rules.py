"""Retention rules as an operator writes them (``fleet.yaml``, or the params of one run).

The names and meanings of ``keep_*`` are Proxmox's ("Retention settings"), that of ``recovery_window`` is Barman's
("RECOVERY WINDOW OF"). Light: read while Airflow parses DAG files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

PERIODS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
"""In the order in which the rules are applied: a backup that one keeps is not counted by the next."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A length of time on the calendar: a month is as long as it is."""

    PATTERN: ClassVar[str] = r"([1-9][0-9]{0,4}) (day|week|month|year)s?"

    count: int
    unit: str
    """As pendulum calls it: days, weeks, months, years."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``14 days``, ``1 week``, ``3 months``, ``2 years``. Raises ValueError."""
        match = re.fullmatch(cls.PATTERN, text, re.ASCII)
        if match is None:
            raise ValueError(f"{text!r} is no length of time such as '14 days', '6 weeks' or '3 months'")
        return cls(count=int(match[1]), unit=f"{match[2]}s")

    def __str__(self) -> str:
        return f"{self.count} {self.unit if self.count != 1 else self.unit[:-1]}"


@dataclass(frozen=True, kw_only=True)
class RetentionRules:
    """Without any ``keep_*`` and without ``recovery_window`` everything is kept, up to ``max_backups``.

    ``minimum_fulls``: this many of the newest fulls stay, whatever the other rules say.
    """

    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    recovery_window: Span | None = None
    minimum_fulls: int = 1
    max_backups: int | None = None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """From a mapping that fits ``fleet.schema.json#/$defs/retention``."""
        values: dict[str, Any] = {}
        for name, value in document.items():
            # To JSON Schema 7.0 is an integer as well.
            values[name] = Span.parse(value) if isinstance(value, str) else None if value is None else int(value)
        return cls(**values)

    @property
    def counts(self) -> tuple[tuple[str, int], ...]:
        """(period, how many of it are kept), in order."""
        return tuple((period, getattr(self, f"keep_{period}")) for period in PERIODS)

    @property
    def keeps_everything(self) -> bool:
        return self.recovery_window is None and not any(count for _, count in self.counts)

    def __str__(self) -> str:
        words = [f"{field.name}={value}" for field in fields(self) if (value := getattr(self, field.name))]
        return " ".join(words)


@dataclass(frozen=True, kw_only=True)
class Unprotected:
    """Backups of VMs that no policy matches, or that no host of the fleet defines any more."""

    keep_orphaned: Span | None = None
    """How long after nas_retention first saw it so; None: until somebody decides, and said in every report."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """More than this in one run is asked about first."""

    backups: int = 200
    percent: int = 20
    """Of all restorable backups; asked about only from ``PERCENT_FROM`` deletions on."""

    PERCENT_FROM: ClassVar[int] = 10

    def objection(self, *, removals: int, restorable: int) -> str | None:
        """Why somebody has to be asked, as a sentence; None when nobody has to."""
        if removals > self.backups:
            return f"it would delete {removals} backups, more than {self.backups}"
        if removals >= self.PERCENT_FROM and removals * 100 > self.percent * restorable:
            return f"it would delete {removals} of {restorable} restorable backups, more than {self.percent} %"
        return None
