"""Backups that are being made, with the progress of each volume."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter

from nasbackup.catalog.database import Cursor
from nasbackup.model import BackupType

MOST = 200
"""Volumes that one view shows: more than run at once."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """One volume. ``done`` and ``total`` are bytes read; None before the copy's first report."""

    name: str
    type: BackupType
    virtual_size: int
    copied: bool
    checked: bool
    verified: bool
    bytes_read: int | None
    copy_seconds: float | None
    phase: str | None
    done: int | None
    total: int | None
    seconds: float | None
    reported_at: datetime | None

    @property
    def speed(self) -> float | None:
        """Bytes a second, since the copy began."""
        if self.copied and self.bytes_read is not None and self.copy_seconds:
            return self.bytes_read / self.copy_seconds
        return self.done / self.seconds if self.done and self.seconds else None

    @property
    def share(self) -> float | None:
        """Of 1; None while nobody knows."""
        if self.copied:
            return 1.0
        return min(1.0, (self.done or 0) / self.total) if self.total else None

    @property
    def remaining(self) -> float | None:
        """Seconds, at the speed so far."""
        if self.copied or not self.total or not self.speed:
            return None
        return max(0.0, self.total - (self.done or 0)) / self.speed


@dataclass(frozen=True, kw_only=True)
class RunningBackup:
    backup_id: int
    external_id: str
    vm: str
    vm_uuid: str
    host: str
    repository: str
    type: BackupType
    explanation: str
    created_at: datetime
    run_id: str
    held: bool
    """Somebody holds the VM's lease: without it the run has died, and its retry or nas_reconcile cleans up."""
    copies: tuple[Copy, ...]

    @property
    def total(self) -> int:
        return sum(copy.total or 0 for copy in self.copies)


def running(cursor: Cursor) -> list[RunningBackup]:
    """The longest running first."""
    cursor.execute(
        """
        SELECT b.backup_id, b.external_id, vm.name AS vm, vm.uuid::text AS vm_uuid, b.host, r.name AS repository,
               b.type AS backup_type, b.explanation, b.created_at, b.run_id,
               EXISTS (SELECT 1 FROM lease WHERE vm_id = b.vm_id AND expires_at > clock_timestamp()) AS held,
               v.name, v.type, v.virtual_size, v.digest IS NOT NULL AS copied,
               v.checked_at IS NOT NULL AS checked, v.verified_at IS NOT NULL AS verified,
               v.bytes_read, v.copy_seconds, p.phase, p.done, p.total, p.seconds, p.reported_at
          FROM backup b JOIN vm USING (vm_id) JOIN repository r USING (repository_id)
          JOIN backup_volume v USING (backup_id)
          LEFT JOIN copy_progress p ON p.backup_id = v.backup_id AND p.name = v.name
         WHERE b.status = 'BackingUp'
         ORDER BY b.created_at, b.backup_id, v.ordinal LIMIT %s
        """,
        (MOST,),
    )
    found = []
    for _, group in groupby(cursor.fetchall(), key=itemgetter("backup_id")):
        volumes = list(group)
        first = volumes[0]
        shared = {
            key: first[key]
            for key in (
                *("backup_id", "external_id", "vm", "vm_uuid", "host", "repository", "explanation", "created_at"),
                *("run_id", "held"),
            )
        }
        copies = tuple(
            Copy(**{**{key: row[key] for key in Copy.__dataclass_fields__}, "type": BackupType(row["type"])})
            for row in volumes
        )
        found.append(RunningBackup(**shared, type=BackupType(first["backup_type"]), copies=copies))
    return found
