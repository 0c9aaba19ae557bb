"""Verdicts of the SLA: what is found, how bad it is, and what is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nasbackup.fleet import Policy, Rpo, Selector
from nasbackup.model import BackupStatus
from nasbackup.sla.facts import RecentBackup, VmFacts
from nasbackup.sla.findings import Kind, Severity
from nasbackup.sla.verdict import Status, judge

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MIB = 1 << 20

POLICY = Policy(
    name="gold", selector=Selector(vms=("*",)), rpo=Rpo(warn_after=14 * HOUR, error_after=26 * HOUR), deadline=4 * HOUR
)


def facts(**changed: Any) -> VmFacts:
    healthy = VmFacts(
        vm_id=1,
        vm="i-2-1-VM",
        vm_uuid="00000000-0000-0000-0000-000000000001",
        host="kvm_one",
        first_seen_at=NOW - 90 * DAY,
        newest_at=NOW - HOUR,
        backups=3,
        size=100,
    )
    return replace(healthy, **changed)


def recent(
    number: int, *, changed: int | None = None, status: BackupStatus = BackupStatus.BACKED_UP, **more: Any
) -> RecentBackup:
    """The newest has number 0."""
    more.setdefault("volumes", {"/a": 10 << 30})
    return RecentBackup(
        external_id=f"i-2-1-VM/{number}", status=status, created_at=NOW - (number + 1) * HOUR, changed=changed, **more
    )


def history(changed: Sequence[int | None]) -> tuple[RecentBackup, ...]:
    return tuple(recent(number, changed=count) for number, count in enumerate(changed))


def kinds(found: VmFacts, policy: Policy | None = POLICY) -> dict[Kind, Severity]:
    verdict = judge(found, policy=policy, now=NOW)
    named = {finding.kind: finding.severity for finding in verdict.findings}
    assert len(named) == len(verdict.findings)
    for finding in verdict.findings:
        assert finding.text.endswith(".")
        assert finding.hint.endswith(".")
        assert finding.subject.key == found.vm_uuid
    return named


# --- freshness ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "severity", "status", "compliant"),
    [
        (timedelta(0), None, Status.OK, True),
        (14 * HOUR, None, Status.OK, True),
        (14 * HOUR + timedelta(seconds=1), Severity.WARNING, Status.WARNING, True),
        (26 * HOUR, Severity.WARNING, Status.WARNING, True),
        (26 * HOUR + timedelta(seconds=1), Severity.CRITICAL, Status.CRITICAL, False),
        (timedelta(minutes=-5), None, Status.OK, True),  # clocks differ a little
        (-HOUR, Severity.CRITICAL, Status.CRITICAL, False),  # a clock was wrong: it may be of any age
    ],
)
def test_the_age_of_the_newest_backup_is_held_against_the_rpo(
    age: timedelta, severity: Severity | None, status: Status, compliant: bool
) -> None:
    found = facts(newest_at=NOW - age)
    assert kinds(found) == ({} if severity is None else {Kind.STALE: severity})
    verdict = judge(found, policy=POLICY, now=NOW)
    assert (verdict.status, verdict.compliant) == (status, compliant)


@pytest.mark.parametrize(
    ("seen", "severity", "compliant"),
    [
        (HOUR, None, True),
        (15 * HOUR, Severity.WARNING, True),
        (27 * HOUR, Severity.CRITICAL, False),
        (-HOUR, Severity.CRITICAL, False),
    ],
)
def test_a_vm_without_a_backup_has_as_long_as_its_rpo(
    seen: timedelta, severity: Severity | None, compliant: bool
) -> None:
    found = facts(first_seen_at=NOW - seen, newest_at=None, backups=0)
    assert kinds(found) == ({} if severity is None else {Kind.NEVER_BACKED_UP: severity})
    assert judge(found, policy=POLICY, now=NOW).compliant is compliant


def test_a_date_in_the_future_is_said() -> None:
    """As when a worker's clock was ten years ahead for one night: nothing is fresh, read back or drilled by that."""
    future = NOW + 3652 * DAY
    policy = replace(POLICY, verify_every=30 * DAY, drill_every=30 * DAY)
    found = facts(newest_at=future, verified_at=future, drilled_at=future)
    texts = {finding.kind: finding for finding in judge(found, policy=policy, now=NOW).findings}
    assert set(texts) == {Kind.STALE, Kind.NOT_VERIFIED, Kind.NOT_DRILLED}
    assert "is dated 2036-11-24 12:00 UTC, in the future: nobody knows how old it is;" in texts[Kind.STALE].text
    assert "clock" in texts[Kind.STALE].hint
    assert "was last read back on 2036-11-24, in the future;" in texts[Kind.NOT_VERIFIED].text
    assert "was last drilled on 2036-11-24, in the future;" in texts[Kind.NOT_DRILLED].text


def test_a_vm_without_a_policy_is_unprotected_however_fresh_its_backups_are() -> None:
    verdict = judge(facts(), policy=None, now=NOW)
    assert (verdict.status, verdict.compliant) == (Status.UNPROTECTED, None)
    assert kinds(facts(), policy=None) == {Kind.UNPROTECTED: Severity.WARNING}


def test_a_policy_without_an_rpo_promises_nothing_about_age() -> None:
    verdict = judge(facts(newest_at=None), policy=replace(POLICY, rpo=None), now=NOW)
    assert (verdict.status, verdict.compliant, verdict.findings) == (Status.OK, None, ())


FAILED = BackupStatus.FAILED


@pytest.mark.parametrize(
    ("statuses", "told"),
    [
        ([FAILED], False),
        ([FAILED, BackupStatus.BACKED_UP, FAILED, FAILED], False),
        ([FAILED, FAILED, BackupStatus.BACKED_UP], True),
        ([BackupStatus.BACKING_UP, FAILED, FAILED], True),
        ([BackupStatus.BACKED_UP, FAILED, FAILED], False),
    ],
)
def test_failures_in_a_row_are_told(statuses: list[BackupStatus], told: bool) -> None:
    backups = tuple(recent(number, status=status, error="NAS full") for number, status in enumerate(statuses))
    assert (Kind.FAILING in kinds(facts(recent=backups))) is told


@pytest.mark.parametrize(("hours", "told"), [(3, False), (5, True)])
def test_a_backup_that_takes_longer_than_the_deadline_is_overdue(hours: int, told: bool) -> None:
    running = replace(recent(0, status=BackupStatus.BACKING_UP), created_at=NOW - hours * HOUR)
    assert (Kind.OVERDUE in kinds(facts(recent=(running,)))) is told
    verdict = judge(facts(recent=(running,)), policy=replace(POLICY, deadline=None), now=NOW, deadline=4 * HOUR)
    assert (Kind.OVERDUE in {finding.kind for finding in verdict.findings}) is told


# --- quality --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verified", "told"), [(None, True), (NOW - 29 * DAY, False), (NOW - 31 * DAY, True)], ids=["never", "yes", "old"]
)
def test_layers_are_read_back_as_often_as_was_promised(verified: datetime | None, told: bool) -> None:
    policy = replace(POLICY, verify_every=30 * DAY)
    assert (Kind.NOT_VERIFIED in kinds(facts(verified_at=verified), policy)) is told
    assert Kind.NOT_VERIFIED not in kinds(facts(verified_at=verified))


@pytest.mark.parametrize(
    ("drilled", "told"), [(None, True), (NOW - 29 * DAY, False), (NOW - 31 * DAY, True)], ids=["never", "yes", "old"]
)
def test_drills_come_as_often_as_was_promised(drilled: datetime | None, told: bool) -> None:
    policy = replace(POLICY, drill_every=30 * DAY)
    assert (Kind.NOT_DRILLED in kinds(facts(drilled_at=drilled), policy)) is told


def test_a_failed_drill_is_critical_even_where_none_was_promised() -> None:
    found = facts(drill_failure="kernel panic")
    assert kinds(found) == {Kind.DRILL_FAILED: Severity.CRITICAL}
    assert "kernel panic" in judge(found, policy=POLICY, now=NOW).findings[0].text


def test_what_does_not_exist_is_neither_verified_nor_drilled() -> None:
    policy = replace(POLICY, rpo=None, verify_every=DAY, drill_every=DAY)
    assert kinds(facts(newest_at=None), policy) == {}


# --- volume and schema ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ([4096 * MIB, *[300 * MIB] * 5], Kind.CHANGE_SPIKE),
        ([2900 * MIB, *[300 * MIB] * 5], None),  # not ten times as much
        ([4096 * MIB, *[300 * MIB] * 4], None),  # too little is known
        ([200 * MIB, *[1 * MIB] * 9], None),  # many times as much, of next to nothing
        ([4096 * MIB, 5000 * MIB, *[300 * MIB] * 8], Kind.CHANGE_SPIKE),  # one of yesterday is no habit
        ([None, *[300 * MIB] * 9], None),  # a full does not know
        ([None, 4096 * MIB, *[300 * MIB] * 5], Kind.CHANGE_SPIKE),  # and so does not end it
        ([300 * MIB, 4096 * MIB, *[300 * MIB] * 5], None),
        ([4096 * MIB, None, *[300 * MIB] * 5], Kind.CHANGE_SPIKE),
        ([0, 0, *[5 * MIB] * 5], Kind.NO_CHANGE),
        ([0, 0, 0, *[5 * MIB] * 5], Kind.NO_CHANGE),  # the third silent night
        ([*[0] * 19, *[5 * MIB] * 5], Kind.NO_CHANGE),
        ([None, 0, 0, *[5 * MIB] * 5], Kind.NO_CHANGE),  # a full does not know that it writes again
        ([5 * MIB, 0, 0, *[5 * MIB] * 5], None),  # it writes again
        ([0, 0, *[5 * MIB] * 5, 0], Kind.NO_CHANGE),  # what was long before is no matter
        ([0, 5 * MIB, *[5 * MIB] * 5], None),
        ([0, 0, *[5 * MIB] * 4], None),
        ([0, 0, 5 * MIB, 0, *[5 * MIB] * 4], None),  # it has been still before
        ([0] * 9, None),
        ([], None),
    ],
)
def test_what_changed_is_held_against_the_vms_own_history(changed: list[int | None], kind: Kind | None) -> None:
    assert set(kinds(facts(recent=history(changed)))) == ({kind} if kind else set())


def test_volumes_that_came_went_or_grew_are_named() -> None:
    newer = recent(0, volumes={"/a": 20 << 30, "/new": 1 << 30, "/same": 5})
    older = recent(1, volumes={"/a": 10 << 30, "/old": 1 << 30, "/same": 5})
    failed = recent(0, status=BackupStatus.FAILED, volumes={})
    (finding,) = judge(facts(recent=(failed, newer, older)), policy=POLICY, now=NOW).findings
    assert finding.kind is Kind.VOLUMES_CHANGED
    assert "/new came; /old went; /a grew from 10 GiB to 20 GiB." in finding.text


def test_the_same_volumes_are_no_news() -> None:
    assert kinds(facts(recent=(recent(0), recent(1)))) == {}


# --- all of it ------------------------------------------------------------------------------------------------

spans = st.integers(0, 400 * 24).map(lambda hours: NOW - hours * HOUR)
backups_ = st.builds(
    RecentBackup,
    external_id=st.just("v/1"),
    status=st.sampled_from(BackupStatus),
    created_at=spans,
    changed=st.none() | st.integers(0, 1 << 42),
    volumes=st.dictionaries(st.sampled_from("abc"), st.integers(1, 1 << 42)),
    error=st.text(max_size=5),
)


@given(
    found=st.builds(
        facts,
        first_seen_at=spans,
        newest_at=st.none() | spans,
        verified_at=st.none() | spans,
        drilled_at=st.none() | spans,
        drill_failure=st.sampled_from(["", "no answer"]),
        recent=st.lists(backups_, max_size=12).map(tuple),
    ),
    policy=st.builds(
        replace,
        st.just(POLICY),
        rpo=st.none() | st.just(POLICY.rpo),
        deadline=st.none() | st.just(HOUR),
        verify_every=st.none() | st.just(DAY),
        drill_every=st.none() | st.just(DAY),
    ),
)
def test_the_status_is_that_of_the_worst_finding(found: VmFacts, policy: Policy) -> None:
    severities = set(kinds(found, policy).values())
    verdict = judge(found, policy=policy, now=NOW)
    expected = Status.OK if not severities else Status.WARNING
    assert verdict.status is (Status.CRITICAL if Severity.CRITICAL in severities else expected)
    if verdict.compliant is False:
        assert verdict.status is Status.CRITICAL
