"""Is the newest restorable backup young enough, and is it known to be good?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from nasbackup.fleet.policy import Policy
from nasbackup.model import BackupStatus
from nasbackup.sla.facts import VmFacts
from nasbackup.sla.findings import Finding, Kind, Severity, Subject, SubjectKind
from nasbackup.words import span

FAILURES = 2
"""So many failed backups in a row are told: one alone is what retries and the next run are for."""


def subject_of(facts: VmFacts) -> Subject:
    return Subject(kind=SubjectKind.VM, key=facts.vm_uuid, label=facts.vm)


def within_rpo(facts: VmFacts, *, policy: Policy, now: datetime) -> bool:
    """Whether the promise holds at this moment: what compliance over time is counted from.

    A VM that is younger than its RPO cannot have broken it.
    """
    if policy.rpo is None:
        return True
    return now - (facts.newest_at or facts.first_seen_at) <= policy.rpo.error_after


def freshness(facts: VmFacts, *, policy: Policy, now: datetime, deadline: timedelta) -> Iterator[Finding]:
    """Age of the newest restorable backup against the RPO; failures; backups that take longer than ``deadline``."""
    if policy.rpo is not None:
        since = facts.newest_at or facts.first_seen_at
        age = now - since
        if age > policy.rpo.warn_after:
            broken = age > policy.rpo.error_after
            severity = Severity.CRITICAL if broken else Severity.WARNING
            promised = span(policy.rpo.error_after)
            if facts.newest_at is None:
                yield _finding(
                    facts,
                    Kind.NEVER_BACKED_UP,
                    severity,
                    f"{facts.vm} has no restorable backup, {span(age)} after it was first seen; "
                    f"policy {policy.name} promises one every {promised}",
                    "Back it up now (DAG nas_backup); then see why its schedule did not.",
                )
            else:
                yield _finding(
                    facts,
                    Kind.STALE,
                    severity,
                    f"The newest restorable backup of {facts.vm} is {span(age)} old; "
                    f"policy {policy.name} promises {promised} at most",
                    "Look at its last runs of nas_backup; back it up now if none is on its way.",
                )
    yield from _failing(facts)
    yield from _overdue(facts, now=now, deadline=deadline)


def quality(facts: VmFacts, *, policy: Policy, now: datetime) -> Iterator[Finding]:
    """Is the backup known to be good: read back, and booted, as often as was promised?"""
    if facts.newest_at is None:
        return
    if policy.verify_every is not None:
        age = None if facts.verified_at is None else now - facts.verified_at
        if age is None or age > policy.verify_every:
            yield _finding(
                facts,
                Kind.NOT_VERIFIED,
                Severity.WARNING,
                f"A layer of the newest backup of {facts.vm} was "
                + ("never read back" if age is None else f"last read back {span(age)} ago")
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
        since = facts.drilled_at or facts.first_seen_at
        if now - since > policy.drill_every:
            yield _finding(
                facts,
                Kind.NOT_DRILLED,
                Severity.WARNING,
                (
                    f"{facts.vm} was never drilled"
                    if facts.drilled_at is None
                    else f"{facts.vm} was last drilled {span(now - since)} ago"
                )
                + f"; policy {policy.name} promises every {span(policy.drill_every)}",
                "Run nas_restore_drill for it.",
            )


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
