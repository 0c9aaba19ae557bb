"""One VM's backups and drills, the newest first; and from a run of Airflow to the VM it was about."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from nasbackup.catalog.database import Cursor
from nasbackup.catalog.pages import GENERATED
from nasbackup.model import BackupStatus, BackupType


@dataclass(frozen=True, kw_only=True)
class BackupRow:
    """One backup with what its volumes add up to. ``copy_seconds`` is the longest: volumes are copied side by side.

    ``changed``: bytes that the guest had changed (read from it), None for one that is full in any volume.
    """

    backup_id: int
    external_id: str
    repository: str
    type: BackupType
    status: BackupStatus
    reason: str
    explanation: str
    consistency: str | None
    chain_id: str | None
    chain_position: int
    parent_id: int | None
    created_at: datetime
    recorded_at: datetime | None
    size: int | None
    error: str | None
    gone: bool
    """A failed one of which nothing is left."""
    pinned_at: datetime | None
    expires_at: datetime | None
    run_id: str
    volumes: int
    bytes_read: int | None
    changed: int | None
    copy_seconds: float | None
    verified_at: datetime | None
    drill: str | None
    rto_seconds: float | None

    @property
    def generated(self) -> bool:
        return self.run_id == GENERATED

    @property
    def duration(self) -> float | None:
        """Seconds from the decision to the record."""
        return (self.recorded_at - self.created_at).total_seconds() if self.recorded_at else None

    @property
    def throughput(self) -> float | None:
        """Bytes a second, while data was copied."""
        if not self.copy_seconds or self.bytes_read is None:
            return None
        return self.bytes_read / self.copy_seconds


@dataclass(frozen=True, kw_only=True)
class Drill:
    external_id: str
    started_at: datetime
    finished_at: datetime
    result: str
    rto_seconds: float | None
    how: str
    detail: str


def backups_of(cursor: Cursor, *, vm_id: int, limit: int, offset: int = 0) -> list[BackupRow]:
    """The newest first."""
    cursor.execute(
        """
        SELECT b.backup_id, b.external_id, r.name AS repository, b.type, b.status, b.reason, b.explanation,
               b.consistency, b.chain_id::text AS chain_id, b.chain_position, b.parent_id, b.created_at, b.recorded_at,
               b.size, b.error, b.status = 'Failed' AND b.cleaned_at IS NOT NULL AS gone, b.pinned_at, b.expires_at,
               b.run_id, v.volumes, v.bytes_read, v.changed, v.copy_seconds, v.verified_at, d.result AS drill,
               d.rto_seconds
          FROM (SELECT * FROM backup WHERE vm_id = %(vm_id)s ORDER BY begun DESC LIMIT %(limit)s OFFSET %(offset)s) b
          JOIN repository r USING (repository_id)
         CROSS JOIN LATERAL (
               SELECT count(*)::int AS volumes, sum(bytes_read)::bigint AS bytes_read,
                      max(copy_seconds) AS copy_seconds,
                      CASE WHEN bool_and(type = 'INCREMENTAL') THEN sum(bytes_read)::bigint END AS changed,
                      CASE WHEN bool_and(verified_at IS NOT NULL) THEN min(verified_at) END AS verified_at
                 FROM backup_volume WHERE backup_id = b.backup_id
               ) v
          LEFT JOIN LATERAL (
               SELECT result, rto_seconds FROM drill WHERE backup_id = b.backup_id ORDER BY started_at DESC LIMIT 1
               ) d ON true
         ORDER BY b.begun DESC
        """,
        {"vm_id": vm_id, "limit": limit, "offset": offset},
    )
    return [
        BackupRow(**{**row, "type": BackupType(row["type"]), "status": BackupStatus(row["status"])})
        for row in cursor.fetchall()
    ]


def count_of(cursor: Cursor, *, vm_id: int) -> int:
    cursor.execute("SELECT count(*) AS count FROM backup WHERE vm_id = %s", (vm_id,))
    row = cursor.fetchone()
    assert row is not None
    return int(row["count"])


def newer_than(cursor: Cursor, *, vm_id: int, backup_id: int) -> int | None:
    """How many of the VM's backups come before this one in its table; None: it is none of them (any more)."""
    cursor.execute(
        """
        SELECT (SELECT count(*) FROM backup WHERE vm_id = %(vm_id)s AND begun > b.begun) AS count
          FROM backup b WHERE vm_id = %(vm_id)s AND backup_id = %(backup_id)s
        """,
        {"vm_id": vm_id, "backup_id": backup_id},
    )
    row = cursor.fetchone()
    return int(row["count"]) if row else None


def drills_of(cursor: Cursor, *, vm_id: int, limit: int = 20) -> list[Drill]:
    cursor.execute(
        "SELECT external_id, started_at, finished_at, result, rto_seconds, how, detail FROM drill"
        " WHERE vm_id = %s ORDER BY started_at DESC LIMIT %s",
        (vm_id, limit),
    )
    return [Drill(**row) for row in cursor.fetchall()]


@dataclass(frozen=True, kw_only=True)
class OfRun:
    """What a run of ``nas_backup`` made: a backup of a VM."""

    backup_id: int
    external_id: str
    status: BackupStatus
    vm_uuid: str


def backup_of_run(cursor: Cursor, *, run_id: str) -> OfRun | None:
    """The newest backup that this run (``nas_backup/<Airflow's run id>``) has begun."""
    cursor.execute(
        """
        SELECT backup_id, external_id, status, vm.uuid::text AS vm_uuid FROM backup JOIN vm USING (vm_id)
         WHERE run_id = %s ORDER BY begun DESC LIMIT 1
        """,
        (run_id,),
    )
    row = cursor.fetchone()
    return OfRun(**{**row, "status": BackupStatus(row["status"])}) if row else None


def vm_of_backup(cursor: Cursor, *, external_id: str) -> str | None:
    """UUID of the VM whose backup this is."""
    cursor.execute("SELECT uuid::text AS uuid FROM vm JOIN backup USING (vm_id) WHERE external_id = %s", (external_id,))
    row = cursor.fetchone()
    return row["uuid"] if row else None
