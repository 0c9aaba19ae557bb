"""What a policy keeps over time: chains stay whole at every step, and the steady state is what one counts by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nasbackup.model import BackupStatus
from nasbackup.retention.rules import PERIODS, RetentionRules
from nasbackup.retention.simulate import Snapshot, delete_all, simulate
from nasbackup.retention.verdicts import RestorePoint

START = datetime(2026, 1, 1, 22, 0, tzinfo=UTC)


def run(*, days: int, full_every: int, timezone: str = "UTC", hours: int = 24, **rules: Any) -> list[Snapshot]:
    return list(
        simulate(
            rules=RetentionRules.from_document(rules),
            timezone=timezone,
            days=days,
            full_every=full_every,
            start=START,
            every=timedelta(hours=hours),
        )
    )


def amounts(snapshots: list[Snapshot]) -> list[tuple[int, int]]:
    """(restorable, pending) after each backup."""
    return [(len(snapshot.restorable), snapshot.pending) for snapshot in snapshots]


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full_every", [0, 1])
def test_fulls_alone_need_nobody(full_every: int) -> None:
    found = amounts(run(days=20, full_every=full_every, keep_daily=7))
    assert found == [(day, 0) for day in range(1, 7)] + [(7, 0)] * 14


def test_a_week_of_days_with_a_full_a_week() -> None:
    """The chain before the newest full is held by its last days; it goes as a whole when those are a week old."""
    found = amounts(run(days=35, full_every=7, keep_daily=7))
    assert found[:7] == [(day, 0) for day in range(1, 8)]
    assert found[7:] == [(7, 1), (7, 2), (7, 3), (7, 4), (7, 5), (7, 6), (7, 0)] * 4


def test_a_week_of_days_with_a_full_every_ten_days() -> None:
    """Between the 8th and the 10th backup of a chain its full is none of the seven: minimum_fulls keeps it."""
    cycle = [(7, 4), (7, 5), (7, 6), (7, 7), (7, 8), (7, 9), (7, 0), (8, 0), (8, 1), (8, 2)]
    assert amounts(run(days=40, full_every=10, keep_daily=7))[10:] == cycle * 3


def test_several_a_day_are_one_a_day_and_those_of_today() -> None:
    """Every six hours, the last four and seven days: six of the seven days before, as today's is among the four."""
    for snapshot in run(days=30, full_every=1, hours=6, keep_last=4, keep_daily=7)[7 * 4 + 4 :]:
        today = {point.created_at.date() for point, _, rule in snapshot.verdicts if rule == "keep_last"}
        days = [point.created_at.date() for point, _, rule in snapshot.verdicts if rule == "keep_daily"]
        assert len(days) == len(set(days)) == 7
        assert not today & set(days)
        assert len(snapshot.restorable) == 11


def test_days_weeks_and_months_of_two_years() -> None:
    """A month's last day has made way for its week's Sunday long before months are counted: the last Sunday stays."""
    last = run(days=730, full_every=1, keep_daily=7, keep_weekly=4, keep_monthly=12)[-1]
    assert f"{last.now:%a %Y-%m-%d}" == "Fri 2027-12-31"
    days = {name: [point.created_at for point, _, rule in last.verdicts if rule == f"keep_{name}"] for name in PERIODS}
    assert [f"{day:%m-%d}" for day in days["daily"]] == ["12-25", "12-26", "12-27", "12-28", "12-29", "12-30", "12-31"]
    assert [f"{day:%m-%d}" for day in days["weekly"]] == ["11-28", "12-05", "12-12", "12-19"], (
        "the week to 12-26 is covered"
    )
    months = [f"{day:%Y-%m}" for day in days["monthly"]]
    assert months == ["2026-11", "2026-12", *(f"2027-{month:02}" for month in range(1, 11))], "so is November"
    for day in days["monthly"]:
        assert f"{day:%a}" == "Sun"
        assert (day + timedelta(days=7)).month != day.month


@pytest.mark.parametrize(("timezone", "newest"), [("UTC", 22), ("Europe/Berlin", 22), ("Pacific/Auckland", 10)])
def test_days_are_those_of_the_policys_zone(timezone: str, newest: int) -> None:
    """Of 10:00 and 22:00 UTC it is the earlier one that ends a day in Auckland, where 22:00 is tomorrow."""
    last = run(days=9, full_every=1, hours=12, timezone=timezone, keep_daily=5)[-1]
    assert [point.created_at.hour for point, _, _ in last.verdicts[:-1]] == [newest] * 4


def test_a_window_holds_its_days_and_the_one_before() -> None:
    """22:00 of seven days ago is just in a window of seven days; the day before that is what it reaches back to."""
    found = amounts(run(days=30, full_every=1, recovery_window="7 days"))
    assert found[9:] == [(9, 0)] * 21


def test_without_rules_nothing_goes() -> None:
    assert amounts(run(days=30, full_every=10)) == [(day, 0) for day in range(1, 31)]


def test_there_is_a_snapshot_per_backup_and_none_without() -> None:
    assert len(run(days=2, full_every=1, hours=6)) == 8
    assert [snapshot.now - START for snapshot in run(days=2, full_every=1, hours=6)][-1] == timedelta(hours=42)
    assert run(days=1, full_every=1, hours=25) == []


# --- for any rules ----------------------------------------------------------------------------------------------------


rules_of_any_kind = st.fixed_dictionaries(
    {"minimum_fulls": st.integers(1, 3)},
    optional={
        **{f"keep_{period}": st.integers(0, 6) for period in PERIODS},
        "recovery_window": st.sampled_from(["2 days", "9 days", "1 month"]),
        "max_backups": st.integers(1, 12),
    },
)


@settings(max_examples=60, deadline=None)
@given(
    rules=rules_of_any_kind,
    full_every=st.integers(0, 12),
    hours=st.sampled_from([5, 24, 60]),
    timezone=st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Apia"]),
)
def test_every_restorable_point_has_all_it_is_built_on(
    rules: dict[str, Any], full_every: int, hours: int, timezone: str
) -> None:
    for snapshot in run(days=30, full_every=full_every, hours=hours, timezone=timezone, **rules):
        points = {verdict.point.backup_id: verdict.point for verdict in snapshot.verdicts}
        parents = {point.parent_id for point in points.values()}
        for point in points.values():
            assert point.is_full == (point.parent_id is None)
            assert point.parent_id is None or point.parent_id in points
            assert point.status == BackupStatus.BACKED_UP or point.backup_id in parents, "it waits for nobody"
        assert all(verdict.keep for verdict in snapshot.restorable)
        assert sum(verdict.keep for verdict in snapshot.verdicts) == len(snapshot.restorable)
        assert snapshot.verdicts[-1].point.created_at == snapshot.now, "the newest stays"
        assert snapshot.verdicts[-1].keep
        assert sum(verdict.point.is_full for verdict in snapshot.restorable) >= 1


@pytest.mark.parametrize("full_every", [1, 2, 5, 9])
def test_chains_are_as_long_as_they_are_said_to_be(full_every: int) -> None:
    last = run(days=30, full_every=full_every)[-1]
    fulls = [number for number, verdict in enumerate(last.verdicts) if verdict.point.is_full]
    assert fulls == list(range(0, 30, full_every))


# --- delete_all -------------------------------------------------------------------------------------------------------


def point(number: int, parent: int | None = None, status: BackupStatus = BackupStatus.BACKED_UP) -> RestorePoint:
    return RestorePoint(
        backup_id=number,
        created_at=START + number * timedelta(days=1),
        status=status,
        is_full=parent is None,
        parent_id=parent,
        pinned=False,
        expires_at=None,
        is_clean=False,
        external_id=f"b{number}",
        size=0,
    )


def test_parents_of_kept_children_are_pending_and_the_rest_is_gone() -> None:
    points = [point(1), point(2, 1), point(3, 2), point(4, 2), point(5)]
    left = delete_all(points, unwanted={1, 2, 3, 5})
    assert [(each.external_id, each.status) for each in left] == [
        ("b1", BackupStatus.DELETE_PENDING),
        ("b2", BackupStatus.DELETE_PENDING),
        ("b4", BackupStatus.BACKED_UP),
    ]
    assert delete_all(left, unwanted={1, 2, 4}) == []


def test_nothing_unwanted_changes_nothing() -> None:
    points = [point(1, status=BackupStatus.DELETE_PENDING), point(2, 1)]
    assert delete_all(points, unwanted=set()) == points
    assert delete_all([], unwanted={1}) == []
