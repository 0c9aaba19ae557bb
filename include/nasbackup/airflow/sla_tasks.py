"""Body of the task ``look`` of ``nas_sla_watch``."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import timedelta
from typing import Any

from nasbackup import fleet
from nasbackup.airflow import hooks, variables
from nasbackup.airflow.asking import ask_hosts
from nasbackup.errors import NasBackupError, SettingInvalid
from nasbackup.fleet import Fleet
from nasbackup.fleet.last_valid import standing
from nasbackup.hypervisor.inventory import seen_vms
from nasbackup.settings import DEFAULT_DEADLINE
from nasbackup.sla.alerts import ANYWHERE, Scope, identity
from nasbackup.sla.findings import Finding, Severity, Subject, SubjectKind
from nasbackup.sla.settings import airflow_of, fleet_invalid, setting_invalid, this_airflow
from nasbackup.steps import alerts
from nasbackup.steps.look import Seen, ended, in_short, look
from nasbackup.words import span

log = logging.getLogger(__name__)

_SHOWN = 100
"""Findings in the result that people read; `nasbackup alerts` and the page have all."""


def look_at_fleet() -> dict[str, Any]:
    """Ask every host, judge every VM, open and close alerts. A host that does not answer is a finding, no failure, and
    so are a wrong fleet.yaml and a wrong Variable.

    Raises CatalogUnreachable; FleetInvalid when no valid fleet.yaml was ever read here.
    """
    known, wrong = _fleet()
    database = hooks.catalog()
    deadline, also_wrong = _deadline(known)
    seen = _ask(known)
    # Not by a worker's clock: one that is ahead would forget alerts and the history of compliance. And not before the
    # hosts were asked: what was backed up meanwhile would be dated in the future.
    now = database.now()
    found = look(database, fleet=known, seen=seen, now=now, deadline=deadline)
    found.findings += [*wrong, *also_wrong]
    found.subjects |= {airflow_of(host) for host in known.hosts}
    changed = alerts.settle(
        database,
        findings=found.findings,
        looked_at=found.subjects,
        channels=known.channels,
        now=now,
        scopes={
            identity(subject): _scope(subject, known=known)
            for subject in found.subjects
            if subject.kind is not SubjectKind.VM
        },
        anywhere=ANYWHERE,
    )
    ended(database, fleet=known, now=now)
    for line in in_short(found.findings):
        log.warning("%s", line)
    worst_first = sorted(found.findings, key=lambda finding: finding.severity is not Severity.CRITICAL)
    return {
        "vms": {status.value: count for status, count in found.statuses.items()},
        "findings": dict(Counter(finding.kind.value for finding in found.findings)),
        "alerts_opened": len(changed.opened),
        "alerts_closed": len(changed.closed),
        "worst": [finding.text for finding in worst_first[:_SHOWN]],
    }


def _fleet() -> tuple[Fleet, list[Finding]]:
    current = standing(fleet.path())
    if current.written_at is None:
        return current.fleet, []
    return current.fleet, [
        fleet_invalid(problem=current.problem, written_at=current.written_at, airflow=this_airflow(current.fleet.hosts))
    ]


def _deadline(known: Fleet) -> tuple[timedelta, list[Finding]]:
    """Of backups of VMs whose policy names none: as ``deadline.backup_deadline`` has it."""
    try:
        return variables.deadline(), []
    except SettingInvalid as error:
        return DEFAULT_DEADLINE, [
            setting_invalid(error, counts=span(DEFAULT_DEADLINE), airflow=this_airflow(known.hosts))
        ]


def _ask(known: Fleet) -> Seen:
    answers = ask_hosts(known.hosts, seen_vms)
    return {host: str(answer) if isinstance(answer, NasBackupError) else answer for host, answer in answers.items()}


def _scope(subject: Subject, *, known: Fleet) -> Scope:
    """Of a host: its zone. A repository may be of several zones, and is everybody's. VMs bring their own."""
    return Scope(zone=known.zone_name(subject.key) if subject.kind is SubjectKind.HOST else None)
