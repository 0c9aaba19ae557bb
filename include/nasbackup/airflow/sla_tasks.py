"""Body of the task ``look`` of ``nas_sla_watch``."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from nasbackup import fleet
from nasbackup.airflow import hooks, variables
from nasbackup.errors import NasBackupError
from nasbackup.fleet import Fleet
from nasbackup.hypervisor import connect
from nasbackup.hypervisor.inventory import seen_vms
from nasbackup.sla.alerts import Scope, identity
from nasbackup.sla.findings import Severity, Subject, SubjectKind
from nasbackup.steps import alerts
from nasbackup.steps.look import Seen, ended, in_short, look

log = logging.getLogger(__name__)

_SHOWN = 100
"""Findings in the result that people read; `nasbackup alerts` and the page have all."""


def look_at_fleet() -> dict[str, Any]:
    """Ask every host, judge every VM, open and close alerts. A host that does not answer is a finding, no failure.

    Raises FleetInvalid, CatalogUnreachable, SettingInvalid.
    """
    known, database, now = fleet.load(), hooks.catalog(), datetime.now(UTC)
    found = look(database, fleet=known, seen=_ask(known), now=now, deadline=variables.deadline())
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


def _ask(known: Fleet) -> Seen:
    seen: dict[str, Any] = {}
    for host in known.hosts:
        try:
            with connect(hooks.LibvirtHook(libvirt_conn_id=host).get_conn()) as hypervisor:
                seen[host] = seen_vms(hypervisor)
        except NasBackupError as error:
            seen[host] = str(error)
    return seen


def _scope(subject: Subject, *, known: Fleet) -> Scope:
    """Of a host: its zone. A repository may be of several zones, and is everybody's. VMs bring their own."""
    return Scope(zone=known.zone_name(subject.key) if subject.kind is SubjectKind.HOST else None)
