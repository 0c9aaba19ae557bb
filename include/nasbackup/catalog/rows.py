"""Between the catalog's rows and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nasbackup.catalog.database import Cursor
from nasbackup.model import (
    Backup,
    BackupStatus,
    BackupType,
    BackupVolume,
    ChainDecision,
    Consistency,
    Reason,
    VmState,
    VolumeReason,
)


def with_volumes(cursor: Cursor, rows: Sequence[Mapping[str, Any]]) -> list[Backup]:
    """Rows of backups, joined with the names of their VM, repository and parent, as values with their volumes."""
    if not rows:
        return []
    cursor.execute(
        "SELECT * FROM backup_volume WHERE backup_id = ANY(%s) ORDER BY backup_id, ordinal",
        ([row["backup_id"] for row in rows],),
    )
    volumes: dict[int, list[BackupVolume]] = {}
    for row in cursor.fetchall():
        volumes.setdefault(row["backup_id"], []).append(_volume(row))
    return [_backup(row, volumes=tuple(volumes.get(row["backup_id"], ()))) for row in rows]


def _volume(row: Mapping[str, Any]) -> BackupVolume:
    return BackupVolume(
        **{
            **{key: value for key, value in row.items() if key not in ("backup_id", "ordinal")},
            "type": BackupType(row["type"]),
            "reason": VolumeReason(row["reason"]),
        }
    )


def _backup(row: Mapping[str, Any], *, volumes: tuple[BackupVolume, ...]) -> Backup:
    return Backup(
        backup_id=row["backup_id"],
        external_id=row["external_id"],
        vm=row["vm"],
        vm_uuid=str(row["vm_uuid"]),
        host=row["host"],
        repository=row["repository"],
        type=BackupType(row["type"]),
        status=BackupStatus(row["status"]),
        reason=Reason(row["reason"]),
        explanation=row["explanation"],
        vm_state=VmState(row["vm_state"]),
        request=row["request"],
        consistency=Consistency(row["consistency"]) if row["consistency"] else None,
        chain_id=str(row["chain_id"]) if row["chain_id"] else None,
        chain_position=row["chain_position"],
        parent_id=row["parent_id"],
        parent=row["parent"],
        checkpoint=row["checkpoint"],
        created_at=row["created_at"],
        recorded_at=row["recorded_at"],
        size=row["size"],
        pinned_at=row["pinned_at"],
        expires_at=row["expires_at"],
        error=row["error"],
        run_id=row["run_id"],
        volumes=volumes,
    )


def decision_columns(decision: ChainDecision) -> dict[str, Any]:
    """What was decided, by names of columns of ``backup``."""
    return {
        "type": decision.type,
        "reason": decision.reason,
        "explanation": decision.explanation,
        "chain_id": decision.chain_id,
        "chain_position": decision.chain_position,
        "parent_id": decision.parent_id,
        "checkpoint": decision.checkpoint,
        "vm_state": decision.vm_state,
    }


def insert_volumes(cursor: Cursor, *, backup_id: int, decision: ChainDecision) -> None:
    for ordinal, plan in enumerate(decision.volumes):
        cursor.execute(
            """
            INSERT INTO backup_volume (backup_id, ordinal, name, source, target, format, file, virtual_size, type,
                                       reason, backing)
            VALUES (%(backup_id)s, %(ordinal)s, %(name)s, %(source)s, %(target)s, %(format)s, %(file)s,
                    %(virtual_size)s, %(type)s, %(reason)s, %(backing)s)
            """,
            {**asdict(plan), "backup_id": backup_id, "ordinal": ordinal},
        )
