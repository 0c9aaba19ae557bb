"""One look at the fleet: is every VM protected as promised? Nothing is changed but what the catalog remembers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from nasbackup.catalog import Database, capacity, inventory, sla
from nasbackup.fleet import Fleet
from nasbackup.model import SeenVm
from nasbackup.retention.capacity import forecast
from nasbackup.settings import DEFAULT_DEADLINE
from nasbackup.sla.findings import Finding, Kind, Severity, Subject, SubjectKind
from nasbackup.sla.freshness import subject_of
from nasbackup.sla.verdict import Status, Verdict, judge

Seen = Mapping[str, Sequence[SeenVm] | str]
"""Host of the fleet -> its VMs, or the sentence that says why it could not be asked."""


@dataclass(kw_only=True)
class Look:
    """``findings`` of all subjects that were looked at; ``subjects``: those, also the healthy ones.

    What was not looked at (a repository that nobody has measured yet) is in neither.
    """

    now: datetime
    statuses: Counter[Status] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    subjects: set[Subject] = field(default_factory=set)


def look(
    database: Database, *, fleet: Fleet, seen: Seen, now: datetime, deadline: timedelta = DEFAULT_DEADLINE
) -> Look:
    """Note what the hosts define, judge every VM by its policy, remember the verdicts. Raises CatalogUnreachable.

    VMs of a host that could not be asked are judged by what was last seen of them: their backups grow old all the same.
    ``deadline``: of backups of VMs whose policy names none.
    """
    found = Look(now=now)
    with database.transaction() as cursor:
        for host, vms in seen.items():
            if not isinstance(vms, str):
                inventory.note_seen(cursor, host=host, seen=vms, now=now)
    verdicts = []
    with database.transaction() as cursor:
        for facts in sla.facts(cursor, hosts=fleet.hosts):
            policy = fleet.policy_of(vm=facts.vm, host=facts.host, title=facts.title, metadata=facts.metadata)
            verdict = judge(facts, policy=policy, now=now, deadline=deadline)
            verdicts.append(verdict)
            _count(found, verdict)
    zoned = [(verdict, fleet.zone_name(verdict.facts.host)) for verdict in verdicts]
    with database.transaction() as cursor:
        sla.replace_verdicts(cursor, verdicts=zoned, hosts=fleet.hosts, now=now)
        sla.count_compliance(cursor, verdicts=verdicts, now=now)
    _hosts(found, seen)
    _repositories(found, database, fleet=fleet)
    return found


def _count(found: Look, verdict: Verdict) -> None:
    found.statuses[verdict.status] += 1
    found.findings += verdict.findings
    found.subjects.add(subject_of(verdict.facts))


def _hosts(found: Look, seen: Seen) -> None:
    for host, vms in seen.items():
        subject = Subject(kind=SubjectKind.HOST, key=host, label=host)
        found.subjects.add(subject)
        if isinstance(vms, str):
            found.findings.append(
                Finding(
                    kind=Kind.HOST_SILENT,
                    severity=Severity.CRITICAL,
                    subject=subject,
                    text=vms,
                    hint="While it does not answer, none of its VMs is backed up, and new ones are not seen.",
                )
            )


def _repositories(found: Look, database: Database, *, fleet: Fleet) -> None:
    """By what nas_retention has measured."""
    with database.reading() as cursor:
        measured = {name: capacity.samples(cursor, repository=name, now=found.now) for name in fleet.repositories}
    for repository, samples in measured.items():
        if not samples:
            continue
        subject = Subject(kind=SubjectKind.REPOSITORY, key=repository, label=repository)
        found.subjects.add(subject)
        warning = forecast(samples).warning(fleet.capacity)
        if warning is not None:
            found.findings.append(
                Finding(
                    kind=Kind.REPOSITORY_FILLING,
                    severity=Severity.WARNING,
                    subject=subject,
                    text=f"Repository {repository} is filling up: {warning}.",
                    hint="Make room, or lower the retention, before it is full.",
                )
            )
