"""What a look at the fleet can find, as values: an alert is a finding that somebody was told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is wrong. An open alert is named by its kind and its subject."""

    STALE = "stale"  # the newest restorable backup is older than the RPO allows
    NEVER_BACKED_UP = "never_backed_up"
    UNPROTECTED = "unprotected"  # no policy matches the VM
    NOT_VERIFIED = "not_verified"  # not read back as often as the policy says
    NOT_DRILLED = "not_drilled"
    DRILL_FAILED = "drill_failed"
    FAILING = "failing"  # the last backups failed, one after the other
    OVERDUE = "overdue"  # a backup that is being made takes longer than the policy's deadline
    CHANGE_SPIKE = "change_spike"  # far more changed than it ever does: mass rewriting
    NO_CHANGE = "no_change"  # nothing changed where something always did: the guest no longer writes
    VOLUMES_CHANGED = "volumes_changed"  # came, went, grew
    HOST_SILENT = "host_silent"  # could not be asked
    HOST_DROPPED = "host_dropped"  # it went from fleet.yaml, and nobody looks at its VMs
    REPOSITORY_FILLING = "repository_filling"
    REPOSITORY_SILENT = "repository_silent"  # nobody knows how full it is by now
    FLEET_INVALID = "fleet_invalid"  # fleet.yaml is wrong, and what was valid before is gone by
    SETTING_INVALID = "setting_invalid"  # a Variable is wrong, and its default is gone by


class Severity(StrEnum):
    WARNING = "warning"
    CRITICAL = "critical"


class SubjectKind(StrEnum):
    VM = "vm"
    REPOSITORY = "repository"
    HOST = "host"  # of VMs, or the one that runs Airflow


@dataclass(frozen=True, kw_only=True)
class Subject:
    """``key`` is the identity (a VM's UUID, a host's or repository's name), ``label`` what people call it."""

    kind: SubjectKind
    key: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """``text`` is one sentence that says what is wrong, ``hint`` one that says what to do."""

    kind: Kind
    severity: Severity
    subject: Subject
    text: str
    hint: str
