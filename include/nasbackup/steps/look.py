"""One look at the fleet: is every VM protected as promised? Nothing is changed but what the catalog remembers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from nasbackup.catalog import Database, capacity, inventory, looks, sla
from nasbackup.fleet import Fleet
from nasbackup.model import SeenVm
from nasbackup.retention.capacity import Sample, forecast
from nasbackup.settings import DEFAULT_DEADLINE
from nasbackup.sla.findings import Finding, Kind, Severity, Subject, SubjectKind
from nasbackup.sla.freshness import age_of, subject_of
from nasbackup.sla.verdict import Status, Verdict, judge
from nasbackup.words import span

Seen = Mapping[str, Sequence[SeenVm] | str]
"""Host of the fleet -> its VMs, or the sentence that says why it could not be asked."""


MEASURED_WITHIN = timedelta(hours=26)
"""How full a repository was before that says nothing of now. (nas_sla_watch measures hourly, nas_retention daily.)"""

ANSWERS_WITHIN = timedelta(hours=3)
"""A repository that could not be measured is told after so long: one that was just restarted is not."""

LOGGED = 10
"""Findings of each kind that the log has one by one."""


@dataclass(kw_only=True)
class Look:
    """``findings`` of all subjects that were looked at; ``subjects``: those, also the healthy ones.

    What was not looked at (a repository that nobody has measured yet) is in neither; a host that went from fleet.yaml
    is found, and no subject.
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
                inventory.note_seen(cursor, host=host, seen=vms, now=now, hosts=fleet.hosts)
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
    _dropped_hosts(found, database, fleet=fleet)
    _repositories(found, database, fleet=fleet)
    return found


def in_short(findings: Sequence[Finding]) -> Iterator[str]:
    """Lines for a log: the worst first, the first few of each kind, and how many more of it there are."""
    kinds: dict[Kind, list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: finding.severity is not Severity.CRITICAL):
        kinds.setdefault(finding.kind, []).append(finding)
    for kind, same in kinds.items():
        for finding in same[:LOGGED]:
            yield f"{finding.severity}, {kind}: {finding.text} {finding.hint}"
        if len(same) > LOGGED:
            yield f"{kind}: {len(same) - LOGGED} more of {len(same)}; `nasbackup alerts` lists what is open"


def ended(database: Database, *, fleet: Fleet, now: datetime) -> None:
    """All hosts were looked at, and what was found is settled: only now does the look count as one."""
    with database.transaction() as cursor:
        looks.note(cursor, hosts=fleet.hosts, now=now)


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


def _dropped_hosts(found: Look, database: Database, *, fleet: Fleet) -> None:
    """They are no subjects of this look: whether one is silent, say, is not known. (But see ``ANYWHERE``.)"""
    with database.reading() as cursor:
        dropped = inventory.hosts_that_nobody_looks_at(cursor, besides=fleet.hosts, now=found.now)
    for host in dropped:
        found.findings.append(
            Finding(
                kind=Kind.HOST_DROPPED,
                severity=Severity.WARNING,
                subject=Subject(kind=SubjectKind.HOST, key=host.name, label=host.name),
                text=f"Host {host.name} is in no fleet.yaml, or its nas_sla_watch does not run: VMs were last seen on "
                f"it (their number: {host.vms}), {span(found.now - host.seen_at)} ago, and nobody looks at them.",
                hint="Put it back under its zone, or start its Airflow: no policy may back them up. If it went on "
                "purpose, do nothing: this is said for a week.",
            )
        )


def _repositories(found: Look, database: Database, *, fleet: Fleet) -> None:
    """By what was measured last; that this was long ago is a finding of its own, and ends no other."""
    with database.reading() as cursor:
        measured = {
            name: (capacity.samples(cursor, repository=name, now=found.now), capacity.failure(cursor, repository=name))
            for name in fleet.repositories
        }
    for repository, (samples, failure) in measured.items():
        if not samples and failure is None:
            continue
        subject = Subject(kind=SubjectKind.REPOSITORY, key=repository, label=repository)
        found.subjects.add(subject)
        warning = forecast(samples).warning(fleet.capacity) if samples else None
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
        found.findings += _silence(subject, samples=samples, failure=failure, now=found.now)


def _silence(subject: Subject, *, samples: Sequence[Sample], failure: str | None, now: datetime) -> Iterator[Finding]:
    measured_at = max((sample.measured_at for sample in samples), default=None)
    age = age_of(measured_at, now=now)
    if age is not None and age <= (MEASURED_WITHIN if failure is None else ANSWERS_WITHIN):
        return
    when = "never measured"
    if measured_at is not None:
        when = f"last measured on {measured_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    yield Finding(
        kind=Kind.REPOSITORY_SILENT,
        severity=Severity.WARNING,
        subject=subject,
        text=f"How full repository {subject.label} is, nobody knows: it was {when}. {failure or ''}".rstrip(),
        hint="See whether the NAS answers and is mounted where nas_sla_watch runs (its task emit measures every hour).",
    )
