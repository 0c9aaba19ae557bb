"""The verdict on each backup of one VM in one repository: a pure function, nothing is deleted here.

Only restorable backups (BackedUp) count for a rule, so a failed one never pushes out a good one. They are looked at
in the order in which they were begun, which no clock can turn round; periods are those of the policy's time zone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pendulum

from nasbackup.model import BackupStatus
from nasbackup.retention.rules import RetentionRules, Span

FAILED_KEPT_DAYS = 30
"""Rows of failed backups, of which nothing is left on host and NAS, are kept for this long: people ask."""


class RestorePoint(NamedTuple):
    """What retention has to know of a backup. A tuple: there may be a million of them."""

    backup_id: int
    created_at: datetime
    status: str
    is_full: bool
    parent_id: int | None
    pinned: bool
    expires_at: datetime | None
    is_clean: bool
    """Failed: nothing of it is left."""
    external_id: str
    size: int


class Verdict(NamedTuple):
    """``rule``: the one that keeps it (keep_daily, pinned, ...), or why it goes."""

    point: RestorePoint
    keep: bool
    rule: str


def judge(
    points: Sequence[RestorePoint], *, rules: RetentionRules, timezone: str = "UTC", now: datetime
) -> list[Verdict]:
    """A verdict per backup, the oldest first. ``points``: all of one VM in one repository, in the order of begin."""
    found: dict[int, tuple[bool, str]] = {}
    newest_first: list[RestorePoint] = []
    for point in reversed(points):
        settled = _settled(point, now=now)
        if settled is not None:
            found[point.backup_id] = settled
        elif point.status == BackupStatus.BACKED_UP:
            newest_first.append(point)
    if rules.keeps_everything:
        found.update((point.backup_id, (True, "keeps_everything")) for point in newest_first)
    else:
        _apply_counts(newest_first, found, rules=rules, timezone=timezone)
        if rules.recovery_window is not None:
            _apply_window(newest_first, found, window=rules.recovery_window, timezone=timezone, now=now)
        for point in newest_first:
            found.setdefault(point.backup_id, (False, "no_rule_keeps_it"))
    if rules.max_backups is not None:
        _apply_maximum(points, found, maximum=rules.max_backups)
    _apply_floor(points, found, minimum=rules.minimum_fulls)
    return [Verdict(point, *found[point.backup_id]) for point in points]


def judge_unprotected(
    points: Sequence[RestorePoint], *, keep_orphaned: Span | None, since: datetime, now: datetime
) -> list[Verdict]:
    """Of a VM that no policy matches, or that is not defined any more: each stays for ``keep_orphaned``, then it goes.

    ``since``: when that was first seen; what was made after it is counted from its own begin. None keeps them until
    somebody decides.
    """
    begin = window_begin(keep_orphaned, timezone="UTC", now=now) if keep_orphaned is not None else None
    verdicts = []
    for point in points:
        over = begin is not None and begin > max(since, point.created_at)
        settled = _settled(point, now=now)
        keep, rule = settled if settled is not None else (not over, "keep_orphaned" if over else "unprotected_vm")
        verdicts.append(Verdict(point, keep, rule))
    return verdicts


def _settled(point: RestorePoint, *, now: datetime) -> tuple[bool, str] | None:
    """What no rule has a say in."""
    if point.status == BackupStatus.BACKED_UP:
        if point.pinned:
            return True, "pinned"
        if point.expires_at is not None:
            return (True, "not_expired_yet") if point.expires_at > now else (False, "expired")
        return None
    if point.status == BackupStatus.FAILED:
        if not point.is_clean:
            return True, "failed_not_cleaned_up"
        return ((now - point.created_at).days < FAILED_KEPT_DAYS, "failed")
    if point.status == BackupStatus.BACKING_UP:
        return True, "being_made"
    return False, "deletion_begun"  # whether it can go on is for the catalog to say


# --- the rules ------------------------------------------------------------------------------------------------

Found = dict[int, tuple[bool, str]]
_UNDECIDED = (False, "")


def _apply_counts(newest_first: list[RestorePoint], found: Found, *, rules: RetentionRules, timezone: str) -> None:
    """Proxmox's way: each rule keeps the newest backup of each period that no rule before has covered."""
    zone = ZoneInfo(timezone)
    for name, count in rules.counts:
        if count:
            _keep_periods(newest_first, found, count=count, rule=f"keep_{name}", period_of=_PERIODS[name], zone=zone)


def _keep_periods(
    newest_first: list[RestorePoint],
    found: Found,
    *,
    count: int,
    rule: str,
    period_of: Callable[[RestorePoint, ZoneInfo], Hashable],
    zone: ZoneInfo,
) -> None:
    covered = {period_of(point, zone) for point in newest_first if found.get(point.backup_id, _UNDECIDED)[0]}
    included: set[Hashable] = set()
    for point in newest_first:
        if point.backup_id in found:
            continue
        period = period_of(point, zone)
        if period in covered:
            continue
        if period in included:
            found[point.backup_id] = (False, f"not_the_newest_of_{rule}")
            continue
        if len(included) == count:
            break
        included.add(period)
        found[point.backup_id] = (True, rule)


def _hour(point: RestorePoint, zone: ZoneInfo) -> Hashable:
    local = point.created_at.astimezone(zone)
    return local.date(), local.hour, local.utcoffset()  # the hour that comes twice when summer time ends is two hours


def _day(point: RestorePoint, zone: ZoneInfo) -> Hashable:
    return point.created_at.astimezone(zone).date()


def _week(point: RestorePoint, zone: ZoneInfo) -> Hashable:
    return point.created_at.astimezone(zone).isocalendar()[:2]


def _month(point: RestorePoint, zone: ZoneInfo) -> Hashable:
    local = point.created_at.astimezone(zone)
    return local.year, local.month


def _year(point: RestorePoint, zone: ZoneInfo) -> Hashable:
    return point.created_at.astimezone(zone).year


def _itself(point: RestorePoint, zone: ZoneInfo) -> Hashable:
    return point.backup_id


_PERIODS: dict[str, Callable[[RestorePoint, ZoneInfo], Hashable]] = {
    "last": _itself,
    "hourly": _hour,
    "daily": _day,
    "weekly": _week,
    "monthly": _month,
    "yearly": _year,
}


def _apply_window(
    newest_first: list[RestorePoint], found: Found, *, window: Span, timezone: str, now: datetime
) -> None:
    """Barman's way: all of the window, and the first backup before it, without which its first day is not covered.

    Where a clock was wrong that may be two: the last that was begun before it, and the last by its stamp.
    """
    begin = window_begin(window, timezone=timezone, now=now)
    reached = False
    last = max((point.created_at for point in newest_first if point.created_at < begin), default=None)
    for point in newest_first:
        before = point.created_at < begin  # not only the last ones: a clock may have been wrong in between
        if not (before and reached and point.created_at != last) and not found.get(point.backup_id, _UNDECIDED)[0]:
            found[point.backup_id] = (True, "recovery_window_reaches_back_to_it" if before else "recovery_window")
        reached = reached or before


def window_begin(window: Span, *, timezone: str, now: datetime) -> datetime:
    """The moment that lies the window before now, on the calendar of the time zone: not before the calendar begins."""
    try:
        begin = pendulum.instance(now.astimezone(UTC)).in_timezone(timezone).subtract(**{window.unit: window.count})
        return begin.astimezone(UTC)
    except (ValueError, OverflowError):
        return datetime.min.replace(tzinfo=UTC)


def _apply_maximum(points: Sequence[RestorePoint], found: Found, *, maximum: int) -> None:
    """The newest so many restorable ones; pins and expiry dates are somebody's word and stay, but do count.

    The newest of all stays too: where pins fill the maximum, each new backup would go as soon as it is made.
    """
    kept = [point for point in points if point.status == BackupStatus.BACKED_UP and found[point.backup_id][0]]
    surplus = len(kept) - maximum
    for point in kept[:-1]:
        if surplus <= 0:
            break
        if not point.pinned and point.expires_at is None:
            found[point.backup_id] = (False, "max_backups")
            surplus -= 1


def _apply_floor(points: Sequence[RestorePoint], found: Found, *, minimum: int) -> None:
    """Whatever the other rules say: the newest so many restorable fulls stay."""
    fulls = [point for point in points if point.is_full and point.status == BackupStatus.BACKED_UP]
    for point in fulls[-minimum:] if minimum else ():
        if not found[point.backup_id][0]:
            found[point.backup_id] = (True, "minimum_fulls")
