"""Is the newest restorable backup young enough, and is it known to be good?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from nasbackup.fleet.policy import Policy, Rpo
from nasbackup.model import BackupStatus
from nasbackup.sla.facts import VmFacts
from nasbackup.sla.findings import Finding, Kind, Severity, Subject, SubjectKind
from nasbackup.words import span

FAILURES = 2
"""So many failed backups in a row are told: one alone is what retries and the next run are for."""


SKEW = timedelta(minutes=5)
"""Clocks differ by so much. What is dated further in the future was dated by a clock that was wrong."""


def age_of(moment: datetime | None, *, now: datetime) -> timedelta | None:
    """None: not known, for it never happened, or its date lies in the future."""
    return now - moment if moment is not None and moment - now <= SKEW else None


def subject_of(facts: VmFacts) -> Subject:
    return Subject(kind=SubjectKind.VM, key=facts.vm_uuid, label=facts.vm)


def within_rpo(facts: VmFacts, *, policy: Policy, now: datetime) -> bool:
    """Whether the promise holds at this moment: what compliance over time is counted from.

    A VM that is younger than its RPO cannot have broken it. What is dated in the future may be of any age.
    """
    if policy.rpo is None:
        return True
    age = age_of(facts.newest_at or facts.first_seen_at, now=now)
    return age is not None and age <= policy.rpo.error_after


def freshness(facts: VmFacts, *, policy: Policy, now: datetime, deadline: timedelta) -> Iterator[Finding]:
    """Age of the newest restorable backup against the RPO; failures; backups that take longer than ``deadline``."""
    if policy.rpo is not None:
        yield from _too_old(facts, policy=policy, rpo=policy.rpo, now=now)
    yield from _failing(facts)
    yield from _overdue(facts, now=now, deadline=deadline)


def _too_old(facts: VmFacts, *, policy: Policy, rpo: Rpo, now: datetime) -> Iterator[Finding]:
    since = facts.newest_at or facts.first_seen_at
    age = age_of(since, now=now)
    if age is not None and age <= rpo.warn_after:
        return
    severity = Severity.WARNING if age is not None and age <= rpo.error_after else Severity.CRITICAL
    hint = "Back it up now (DAG nas_backup); then see why its schedule did not."
    if age is None:
        how = f"{since.astimezone(UTC):%Y-%m-%d %H:%M} UTC, in the future"
        hint = "The clock of a worker was wrong, or is: set it, and back the VM up now (DAG nas_backup)."
    if facts.newest_at is None:
        kind, promise = Kind.NEVER_BACKED_UP, f"promises one every {span(rpo.error_after)}"
        seen = f"{span(age)} after it was first seen" if age is not None else f"and was first seen on {how}"
        what = f"{facts.vm} has no restorable backup, {seen}"
    else:
        kind, promise = Kind.STALE, f"promises {span(rpo.error_after)} at most"
        old = f"{span(age)} old" if age is not None else f"dated {how}: nobody knows how old it is"
        what = f"The newest restorable backup of {facts.vm} is {old}"
        if age is not None:
            hint = "Look at its last runs of nas_backup; back it up now if none is on its way."
    yield _finding(facts, kind, severity, f"{what}; policy {policy.name} {promise}", hint)


def quality(facts: VmFacts, *, policy: Policy, now: datetime) -> Iterator[Finding]:
    """Is the backup known to be good: read back, and booted, as often as was promised?"""
    if facts.newest_at is None:
        return
    if policy.verify_every is not None:
        age = age_of(facts.verified_at, now=now)
        if age is None or age > policy.verify_every:
            yield _finding(
                facts,
                Kind.NOT_VERIFIED,
                Severity.WARNING,
                f"A layer of the newest backup of {facts.vm} was "
                + (f"last read back {span(age)} ago" if age is not None else _never(facts.verified_at, "read back"))
                + f"; policy {policy.name} promises every {span(policy.verify_every)}",
                "Run `nasbackup verify` on its newest backup.",
            )
    if facts.drill_failure:
        yield _finding(
            facts,
            Kind.DRILL_FAILED,
            Severity.CRITICAL,
            f"The last restore drill of {facts.vm} failed: {facts.drill_failure}",
            "Restore an older backup of it to see whether that one works (nas_restore_drill with its id).",
        )
    if policy.drill_every is not None:
        age = age_of(facts.drilled_at or facts.first_seen_at, now=now)
        if age is None or age > policy.drill_every:
            yield _finding(
                facts,
                Kind.NOT_DRILLED,
                Severity.WARNING,
                f"{facts.vm} was "
                + (
                    f"last drilled {span(age)} ago"
                    if age is not None and facts.drilled_at is not None
                    else _never(facts.drilled_at, "drilled")
                )
                + f"; policy {policy.name} promises every {span(policy.drill_every)}",
                "Run nas_restore_drill for it.",
            )


def _never(moment: datetime | None, done: str) -> str:
    """Of what has no age: it was not done, or on a day that has not come yet."""
    return f"never {done}" if moment is None else f"last {done} on {moment.astimezone(UTC):%Y-%m-%d}, in the future"


def unprotected(facts: VmFacts) -> Finding:
    return _finding(
        facts,
        Kind.UNPROTECTED,
        Severity.WARNING,
        f"No policy of fleet.yaml matches {facts.vm} on {facts.host}: nothing is promised for it",
        "Give it a policy; a VM that needs none gets one without schedule and rpo.",
    )


def _failing(facts: VmFacts) -> Iterator[Finding]:
    failed = []
    for backup in facts.recent:
        if backup.status is BackupStatus.FAILED:
            failed.append(backup)
        elif backup.status is not BackupStatus.BACKING_UP:
            break
    if len(failed) >= FAILURES:
        why = f", the last one because {failed[0].error}" if failed[0].error else ""
        yield _finding(
            facts,
            Kind.FAILING,
            Severity.WARNING,
            f"The last {len(failed)} backups of {facts.vm} failed{why}",
            "The failed runs of nas_backup say which step failed, and why.",
        )


def overdue(*, subject: Subject, what: str, took: timedelta, deadline: timedelta) -> Finding:
    return Finding(
        kind=Kind.OVERDUE,
        severity=Severity.WARNING,
        subject=subject,
        text=f"{what} has been running for {span(took)}; its deadline was {span(deadline)}.",
        hint="The page shows its progress, its run's logs say what it waits for; `nas_reconcile` clears up a dead one.",
    )


def _overdue(facts: VmFacts, *, now: datetime, deadline: timedelta) -> Iterator[Finding]:
    running = next((backup for backup in facts.recent if backup.status is BackupStatus.BACKING_UP), None)
    if running is not None and (took := now - running.created_at) > deadline:
        yield overdue(subject=subject_of(facts), what=f"Backup {running.external_id}", took=took, deadline=deadline)


def _finding(facts: VmFacts, kind: Kind, severity: Severity, text: str, hint: str) -> Finding:
    return Finding(kind=kind, severity=severity, subject=subject_of(facts), text=text + ".", hint=hint)
