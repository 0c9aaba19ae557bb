"""What there is to measure of the fleet, at one moment: values between the catalog and the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from nasbackup.retention.capacity import Forecast


@dataclass(frozen=True, kw_only=True, slots=True)
class Name:
    """What the series of one VM are labelled with. ``policy`` and ``zone``: as the last look judged it, or empty."""

    vm: str
    uuid: str
    policy: str
    zone: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedVm:
    """The verdict of the last look. ``warn_seconds`` and ``error_seconds`` are the RPO."""

    name: Name
    status: str
    newest_at: datetime | None
    verified_at: datetime | None
    drilled_at: datetime | None
    warn_seconds: int | None
    error_seconds: int | None
    backups: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LastVolume:
    name: str
    virtual_size: int
    bytes_read: int | None
    copy_seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LastBackup:
    """The newest restorable backup of a VM in a repository. ``changed``: bytes that an incremental read, else None."""

    name: Name
    repository: str
    size: int
    seconds: float | None
    incremental: bool
    verified: bool
    changed: int | None
    volumes: tuple[LastVolume, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LastDrill:
    """``rto_seconds``: of the last one that succeeded."""

    name: Name
    ok: bool
    finished_at: datetime
    rto_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """``backups``: by repository, type and status. ``compliance``: by policy and days back, from 0 to 1.
    ``alerts``: open ones by severity. ``undelivered``: notices that wait, by channel."""

    looked_at: datetime | None = None
    vms: Sequence[JudgedVm] = ()
    last: Sequence[LastBackup] = ()
    drills: Sequence[LastDrill] = ()
    repositories: Mapping[str, Forecast] = field(default_factory=dict)
    backups: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    compliance: Mapping[tuple[str, int], float] = field(default_factory=dict)
    alerts: Mapping[str, int] = field(default_factory=dict)
    undelivered: Mapping[str, int] = field(default_factory=dict)
