"""Was the promise kept? Compliance over 30 days against the objective (SLO), and the error budget. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

DAYS = 30
DEFAULT_SLO = 99.0


@dataclass(frozen=True, kw_only=True)
class Day:
    """``percent``: of this day's looks, how many found the RPO kept; None: nobody looked."""

    day: date
    percent: float | None


@dataclass(frozen=True, kw_only=True)
class Compliance:
    """Of one policy, or of one VM. ``vms`` of them there are now; ``promised`` of these have an RPO; ``kept`` of those
    are within it now."""

    name: str
    slo: float
    looks: int
    compliant: int
    days: tuple[Day, ...]
    vms: int = 0
    promised: int = 0
    kept: int = 0

    @property
    def nothing_promised(self) -> bool:
        """The policy has VMs, and no RPO: there is nothing that could be kept or broken."""
        return bool(self.vms) and not self.promised

    @property
    def percent(self) -> float | None:
        return 100 * self.compliant / self.looks if self.looks else None

    @property
    def percent_now(self) -> float | None:
        return 100 * self.kept / self.promised if self.promised else None

    @property
    def met(self) -> bool:
        return self.percent is None or self.percent >= self.slo

    @property
    def budget_left(self) -> float | None:
        """Percent of the error budget; below zero: the objective is missed. None: nobody has looked yet.

        The budget is the share of looks that may find the RPO broken: 1 % for an objective of 99 %.
        """
        if not self.looks:
            return None
        allowed = self.looks * (100 - self.slo) / 100
        broken = self.looks - self.compliant
        if allowed == 0:
            return 100.0 if broken == 0 else -100.0
        return 100 * (1 - broken / allowed)


def compliance(
    *,
    name: str,
    slo: float,
    counted: Iterable[tuple[date, int, int]],
    today: date,
    vms: int = 0,
    promised: int = 0,
    kept: int = 0,
) -> Compliance:
    """``counted``: day, looks, and how many of them were fine; days without a look are gaps, not failures."""
    by_day: dict[date, tuple[int, int]] = {}
    for day, looks, fine in counted:
        earlier = by_day.get(day, (0, 0))
        by_day[day] = earlier[0] + looks, earlier[1] + fine
    window = [today - timedelta(days=back) for back in reversed(range(DAYS))]
    within = [by_day.get(day, (0, 0)) for day in window]
    return Compliance(
        name=name,
        slo=slo,
        looks=sum(looks for looks, _ in within),
        compliant=sum(fine for _, fine in within),
        days=tuple(
            Day(day=day, percent=100 * fine / looks if looks else None)
            for day, (looks, fine) in zip(window, within, strict=True)
        ),
        vms=vms,
        promised=promised,
        kept=kept,
    )


def of_policies(
    *,
    counted: Sequence[tuple[str, date, int, int]],
    now: Mapping[str, tuple[int, int, int]],
    objectives: Mapping[str, float],
    today: date,
) -> list[Compliance]:
    """Each policy that has VMs or a history. ``objectives``: its SLO.

    ``now``: policy -> (VMs, those of them that have an RPO, those of these that are within it).
    """
    names = dict.fromkeys([*objectives, *now, *(policy for policy, *_ in counted)])
    found = []
    for name in names:
        vms, promised, kept = now.get(name, (0, 0, 0))
        of_it = [(day, looks, fine) for policy, day, looks, fine in counted if policy == name]
        if vms or of_it:
            slo = objectives.get(name, DEFAULT_SLO)
            found.append(
                compliance(name=name, slo=slo, counted=of_it, today=today, vms=vms, promised=promised, kept=kept)
            )
    return found
