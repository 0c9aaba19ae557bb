"""Restore drills: which backups can be picked, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nasbackup.catalog.database import Cursor


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A restorable backup. ``begun``: its place in the order of backups. Times of drills are those of their begin."""

    external_id: str
    vm: str
    begun: float
    drilled_at: datetime | None
    vm_drilled_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class DrillRecord:
    """What one drill found. ``rto_seconds``: from its begin until the guest answered; None when it never did."""

    external_id: str
    vm: str
    started_at: datetime
    finished_at: datetime
    ok: bool
    rto_seconds: float | None
    how: str
    detail: str


def candidates(cursor: Cursor) -> list[Candidate]:
    cursor.execute(
        """
        SELECT b.external_id, vm.name AS vm, b.begun, d.at AS drilled_at, v.at AS vm_drilled_at
          FROM backup b JOIN vm USING (vm_id)
          LEFT JOIN (SELECT backup_id, max(started_at) AS at FROM drill GROUP BY backup_id) d USING (backup_id)
          LEFT JOIN (SELECT vm_id, max(started_at) AS at FROM drill GROUP BY vm_id) v ON v.vm_id = b.vm_id
         WHERE b.status = 'BackedUp' ORDER BY b.begun
        """
    )
    return [Candidate(**{**row, "begun": float(row["begun"])}) for row in cursor.fetchall()]


def record(cursor: Cursor, *, backup_id: int, vm_uuid: str, found: DrillRecord) -> None:
    """Write it down, also when the backup has been deleted meanwhile."""
    cursor.execute(
        """
        INSERT INTO drill (vm_id, backup_id, external_id, started_at, finished_at, result, rto_seconds, how, detail)
        VALUES ((SELECT vm_id FROM vm WHERE uuid = %s), (SELECT backup_id FROM backup WHERE backup_id = %s),
                %s, %s, %s, %s, %s, %s, %s)
        """,
        (
            vm_uuid,
            backup_id,
            found.external_id,
            found.started_at,
            found.finished_at,
            "ok" if found.ok else "failed",
            found.rto_seconds,
            found.how,
            found.detail.replace("\0", "�"),
        ),
    )


def history(cursor: Cursor, *, vm: str | None = None, limit: int = 1000) -> Sequence[DrillRecord]:
    """The newest first; of the VM with this name, or of all."""
    cursor.execute(
        """
        SELECT d.*, vm.name AS vm FROM drill d JOIN vm USING (vm_id)
         WHERE %(vm)s::text IS NULL OR vm.name = %(vm)s ORDER BY d.drill_id DESC LIMIT %(limit)s
        """,
        {"vm": vm, "limit": limit},
    )
    return [_record(row) for row in cursor.fetchall()]


def _record(row: Any) -> DrillRecord:
    return DrillRecord(
        external_id=row["external_id"],
        vm=row["vm"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        ok=row["result"] == "ok",
        rto_seconds=row["rto_seconds"],
        how=row["how"],
        detail=row["detail"],
    )


def as_document(record: DrillRecord) -> dict[str, Any]:
    """A drill in JSON: on the command line, and as the result of the DAG's task."""
    return {
        "external_id": record.external_id,
        "vm": record.vm,
        "result": "ok" if record.ok else "failed",
        "rto_seconds": round(record.rto_seconds, 1) if record.rto_seconds is not None else None,
        "how": record.how,
        "started": record.started_at.isoformat(),
        "finished": record.finished_at.isoformat(),
        "detail": record.detail,
    }
