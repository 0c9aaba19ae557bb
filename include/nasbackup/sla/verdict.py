"""One VM's verdict: all findings, and the word that sums them up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from nasbackup.fleet.policy import Policy
from nasbackup.settings import DEFAULT_DEADLINE
from nasbackup.sla.anomalies import schema, volume
from nasbackup.sla.facts import VmFacts
from nasbackup.sla.findings import Finding, Severity
from nasbackup.sla.freshness import freshness, quality, unprotected, within_rpo


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"
    UNPROTECTED = "unprotected"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """``compliant``: the RPO holds; None for a VM that nothing was promised for."""

    facts: VmFacts
    policy: Policy | None
    status: Status
    compliant: bool | None
    findings: tuple[Finding, ...]


def judge(facts: VmFacts, *, policy: Policy | None, now: datetime, deadline: timedelta = DEFAULT_DEADLINE) -> Verdict:
    """Is the VM protected as its policy promises? ``policy`` None: it has none. ``deadline``: if it names none."""
    if policy is None:
        return Verdict(
            facts=facts, policy=None, status=Status.UNPROTECTED, compliant=None, findings=(unprotected(facts),)
        )
    findings = (
        *freshness(facts, policy=policy, now=now, deadline=policy.deadline or deadline),
        *quality(facts, policy=policy, now=now),
        *volume(facts),
        *schema(facts),
    )
    severities = {finding.severity for finding in findings}
    status = Status.OK
    if severities:
        status = Status.CRITICAL if Severity.CRITICAL in severities else Status.WARNING
    return Verdict(
        facts=facts,
        policy=policy,
        status=status,
        compliant=within_rpo(facts, policy=policy, now=now) if policy.rpo is not None else None,
        findings=findings,
    )
