"""From verdicts to deletions, checked against delete(B) itself: played on a handful of rows, as it is documented."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nasbackup.model import BackupStatus
from nasbackup.retention.plan import ChainPlan, chain_plans
from nasbackup.retention.verdicts import RestorePoint, Verdict

BACKED_UP, FAILED = BackupStatus.BACKED_UP, BackupStatus.FAILED
PENDING, DELETING = BackupStatus.DELETE_PENDING, BackupStatus.DELETING


def point(number: int, parent: int | None = None, **changes: Any) -> RestorePoint:
    default = RestorePoint(
        backup_id=number,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        status=BACKED_UP,
        is_full=parent is None,
        parent_id=parent,
        pinned=False,
        expires_at=None,
        is_clean=False,
        external_id=f"b{number}",
        size=10**number,
    )
    return default._replace(**changes)


def judged(points: Iterable[RestorePoint], *, goes: str) -> list[Verdict]:
    """``goes``: the numbers of those that go, as in "1 3"."""
    unwanted = {int(word) for word in goes.split()}
    return [Verdict(each, each.backup_id not in unwanted, "a rule") for each in points]


def chain(length: int, **statuses: BackupStatus) -> list[RestorePoint]:
    """b1 is the full and each is the parent of the next; ``b2=...`` sets a status."""
    return [
        point(number, number - 1 or None, status=statuses.get(f"b{number}", BACKED_UP))
        for number in range(1, length + 1)
    ]


def only(plans: Iterable[ChainPlan]) -> ChainPlan:
    (plan,) = plans
    return plan


def names(plan: ChainPlan) -> list[str]:
    return [external_id for external_id, _ in plan.delete]


def test_a_whole_chain_goes_leaf_first() -> None:
    plan = only(chain_plans(judged(chain(3), goes="1 2 3")))
    assert plan == ChainPlan(
        chain="b1",
        delete=(("b3", "a rule"), ("b2", "a rule"), ("b1", "a rule")),
        pending=(),
        restorable=3,
        falls=3,
        size=1110,
    )


def test_parents_of_a_kept_child_are_pending() -> None:
    plan = only(chain_plans(judged(chain(4), goes="1 2 4")))
    assert names(plan) == ["b4", "b2", "b1"]
    assert plan.pending == ("b2", "b1")
    assert (plan.restorable, plan.falls, plan.size) == (3, 1, 10_000)


def test_nothing_to_delete_is_no_plan() -> None:
    assert list(chain_plans([])) == []
    assert list(chain_plans(judged(chain(3), goes=""))) == []
    assert list(chain_plans(judged(chain(3, b1=PENDING, b2=PENDING), goes="1 2"))) == [], "they wait for b3"


def test_each_chain_is_a_plan_of_its_own() -> None:
    points = [point(1), point(2, 1), point(3), point(4, 3), point(5)]
    plans = list(chain_plans(judged(points, goes="1 2 3 5")))
    assert [(plan.chain, names(plan), plan.pending) for plan in plans] == [
        ("b1", ["b2", "b1"], ()),
        ("b3", ["b3"], ("b3",)),
        ("b5", ["b5"], ()),
    ]


def test_one_that_waited_falls_with_its_last_child_without_being_asked_for_again() -> None:
    plan = only(chain_plans(judged(chain(3, b1=PENDING, b2=PENDING), goes="1 2 3")))
    assert names(plan) == ["b3"]
    assert (plan.restorable, plan.falls, plan.size) == (1, 3, 1110)


@pytest.mark.parametrize("status", [PENDING, DELETING])
def test_one_that_nothing_else_pushes_is_asked_for_again(status: BackupStatus) -> None:
    """A crash left it, or a NAS that was away."""
    plan = only(chain_plans(judged(chain(2, b1=PENDING, b2=status), goes="1 2")))
    assert names(plan) == ["b2"]
    assert (plan.pending, plan.restorable, plan.falls, plan.size) == ((), 0, 2, 110)


def test_a_failed_child_keeps_its_parent_until_nothing_of_it_is_left() -> None:
    remains = [point(1), point(2, 1, status=FAILED)]
    assert only(chain_plans(judged(remains, goes="1"))).pending == ("b1",)
    clean = [point(1), point(2, 1, status=FAILED, is_clean=True)]
    assert only(chain_plans(judged(clean, goes="1"))).falls == 1
    waiting = [point(1, status=PENDING), point(2, 1, status=FAILED, is_clean=True)]
    assert names(only(chain_plans(judged(waiting, goes="1")))) == ["b1"], "no child is left to push it"


def test_old_failed_rows_go_and_cost_nobody_a_restore_point() -> None:
    points = [point(1), point(2, 1, status=FAILED, is_clean=True, size=0), point(3, 1)]
    plan = only(chain_plans(judged(points, goes="2")))
    assert (names(plan), plan.pending, plan.restorable, plan.falls, plan.size) == (["b2"], (), 0, 1, 0)


def test_a_branch_that_goes_leaves_the_trunk_to_the_other_branch() -> None:
    """b2 is the parent of b3 and, after a backup that was thrown away, of b4 as well."""
    points = [point(1), point(2, 1), point(3, 2), point(4, 2), point(5, 4)]
    plan = only(chain_plans(judged(points, goes="1 2 3")))
    assert names(plan) == ["b3", "b2", "b1"]
    assert plan.pending == ("b2", "b1")
    assert plan.falls == 1


def test_a_backup_whose_parent_is_not_in_the_list_begins_a_chain() -> None:
    assert [plan.chain for plan in chain_plans(judged([point(4, 3), point(5, 4)], goes="4 5"))] == ["b4"]


# --- against delete(B) ------------------------------------------------------------------------------------------------


def delete(rows: dict[str, RestorePoint], external_id: str) -> None:
    """delete(B): with a child it is only marked; without, it goes and takes along each parent that waited for it."""
    current = rows.get(external_id)
    while current is not None:
        if has_child(rows, current):
            rows[current.external_id] = current._replace(status=PENDING)
            return
        del rows[current.external_id]
        parent = next((row for row in rows.values() if current and row.backup_id == current.parent_id), None)
        current = parent if parent and parent.status == PENDING and not has_child(rows, parent) else None


def has_child(rows: dict[str, RestorePoint], parent: RestorePoint) -> bool:
    return any(row.parent_id == parent.backup_id and not row.is_clean for row in rows.values())


def after(points: Sequence[RestorePoint], external_ids: Iterable[str]) -> dict[str, RestorePoint]:
    rows = {each.external_id: each for each in points}
    for external_id in external_ids:
        delete(rows, external_id)
    return rows


@st.composite
def forests(draw: st.DrawFn) -> list[Verdict]:
    """Chains with branches, some of it failed, being made, or on its way out, as a catalog may hold it."""
    points: list[RestorePoint] = []
    for number in range(1, draw(st.integers(1, 14)) + 1):
        parents = [None, *(each.backup_id for each in points if each.status != FAILED), *[number - 1] * 9]
        parent = draw(st.sampled_from(parents)) or None
        if parent is not None and points[parent - 1].status == FAILED:
            parent = None
        status = draw(st.sampled_from([BACKED_UP] * 6 + [FAILED, FAILED, PENDING, PENDING]))
        points.append(point(number, parent, status=status, is_clean=status == FAILED and draw(st.booleans())))
    for index, each in enumerate(points):
        childless = all(other.parent_id != each.backup_id or other.is_clean for other in points)
        if childless and each.status != FAILED:
            last = draw(st.sampled_from([each.status, BACKED_UP, DELETING, BackupStatus.BACKING_UP]))
            points[index] = each._replace(status=last)
    found = []
    for each in points:
        stays = each.status == BackupStatus.BACKING_UP or (each.status == FAILED and not each.is_clean)
        gone = each.status in (PENDING, DELETING)
        found.append(Verdict(each, not gone and (stays or draw(st.sampled_from([True, False, False]))), "a rule"))
    return found


@settings(max_examples=300, deadline=None)
@given(verdicts=forests())
def test_plans_say_what_delete_then_does(verdicts: list[Verdict]) -> None:
    points = [each.point for each in verdicts]
    plans = list(chain_plans(verdicts))
    left = after(points, [name for plan in plans for name in names(plan)])
    gone = {each.external_id for each in points} - left.keys()
    assert sum(plan.falls for plan in plans) == len(gone)
    assert sum(plan.size for plan in plans) == sum(each.size for each in points if each.external_id in gone)
    for plan in plans:
        assert set(plan.pending) == set(names(plan)) - gone
        assert plan.restorable == sum(each.external_id in names(plan) for each in points if each.status == BACKED_UP)
    for each in verdicts:
        row = left.get(each.point.external_id)
        if each.keep:
            assert row == each.point, "what is kept is as it was"
        elif row is not None:
            assert row.status == PENDING
            assert has_child(left, row)


@settings(deadline=None)
@given(verdicts=forests())
def test_nobody_is_asked_for_in_vain(verdicts: list[Verdict]) -> None:
    """Leave out any one request, and something stays that should go. Rows of failed ones, that push too, aside."""
    verdicts = [each._replace(keep=each.keep or each.point.is_clean) for each in verdicts]
    points = [each.point for each in verdicts]
    asked = [name for plan in chain_plans(verdicts) for name in names(plan)]
    assert len(asked) == len(set(asked))
    everything = after(points, asked)
    for name in asked:
        assert after(points, [other for other in asked if other != name]) != everything
