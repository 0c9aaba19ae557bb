"""What a policy would keep over time: backups at a steady pace, retention after each. Pure; no catalog, no NAS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from nasbackup.model import BackupStatus
from nasbackup.retention.rules import RetentionRules
from nasbackup.retention.verdicts import RestorePoint, Verdict, judge


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """After one backup and the retention that followed it. ``verdicts``: of those that are left, the oldest first."""

    now: datetime
    verdicts: tuple[Verdict, ...]

    @property
    def restorable(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.point.status == BackupStatus.BACKED_UP]

    @property
    def pending(self) -> int:
        """Delete-pending: they take space, and only because a kept backup is built on them."""
        return len(self.verdicts) - len(self.restorable)


def simulate(
    *,
    rules: RetentionRules,
    timezone: str,
    days: int,
    full_every: int,
    start: datetime,
    every: timedelta = timedelta(days=1),
) -> Iterator[Snapshot]:
    """One snapshot per backup. ``full_every``: backups of a chain, the full included (1 or less: all are full)."""
    points: list[RestorePoint] = []
    position = 0
    for number in range(int(timedelta(days=days) / every)):
        now = start + number * every
        parent = points[-1] if points and points[-1].status == BackupStatus.BACKED_UP else None
        position = position + 1 if parent is not None and position + 1 < full_every else 0
        points.append(_point(number + 1, now=now, parent=parent if position else None))
        verdicts = judge(points, rules=rules, timezone=timezone, now=now)
        points = delete_all(points, unwanted={verdict.point.backup_id for verdict in verdicts if not verdict.keep})
        left = {point.backup_id: point for point in points}
        yield Snapshot(
            now=now,
            verdicts=tuple(
                verdict._replace(point=left[verdict.point.backup_id])
                for verdict in verdicts
                if verdict.point.backup_id in left
            ),
        )


def delete_all(points: Sequence[RestorePoint], *, unwanted: set[int]) -> list[RestorePoint]:
    """What is left after delete(B) of each of these, leaf first: parents of kept children are delete-pending."""
    left = {point.backup_id: point for point in points}
    for point in reversed(points):
        if point.backup_id not in unwanted:
            continue
        if any(child.parent_id == point.backup_id for child in left.values()):
            left[point.backup_id] = point._replace(status=BackupStatus.DELETE_PENDING)
        else:
            del left[point.backup_id]
    return list(left.values())


def _point(number: int, *, now: datetime, parent: RestorePoint | None) -> RestorePoint:
    return RestorePoint(
        backup_id=number,
        created_at=now.astimezone(UTC),
        status=BackupStatus.BACKED_UP,
        is_full=parent is None,
        parent_id=parent.backup_id if parent is not None else None,
        pinned=False,
        expires_at=None,
        is_clean=False,
        external_id=f"simulated/{now:%Y.%m.%d.%H.%M.%S}",
        size=0,
    )
