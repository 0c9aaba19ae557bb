"""What is known of a VM when it is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from nasbackup.model import BackupStatus


@dataclass(frozen=True, kw_only=True)
class RecentBackup:
    """One of a VM's last backups, in whichever repository.

    ``changed``: bytes that were read of the volumes that are incremental in it; None when one of its volumes is full
    in it, since what changed is then not known. ``volumes``: source -> virtual size, bytes.
    """

    external_id: str
    status: BackupStatus
    created_at: datetime
    changed: int | None = None
    volumes: Mapping[str, int] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class VmFacts:
    """``recent``: the last backups, the newest first; those that are being made are among them.

    ``verified_at``: of the layers of the newest restorable backup, the one that was read back the longest ago.
    ``drilled_at``: the last drill that succeeded; ``drill_failure``: what the last drill said, when it failed.
    ``size``: bytes on the NAS, also of backups that only wait for others.
    """

    vm_id: int
    vm: str
    vm_uuid: str
    host: str
    title: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    first_seen_at: datetime
    newest_at: datetime | None = None
    verified_at: datetime | None = None
    drilled_at: datetime | None = None
    drill_failure: str = ""
    backups: int = 0
    size: int = 0
    recent: tuple[RecentBackup, ...] = ()
