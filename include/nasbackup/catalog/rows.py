"""Between the catalog's rows and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from psycopg2.extras import Json

from nasbackup.catalog.database import Cursor
from nasbackup.catalog.leases import RENEW
from nasbackup.handling import Compression
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

# --- reading --------------------------------------------------------------------------------------------------


# Columns of later migrations are named as well: an older catalog then says that it is one (CatalogOutdated).
# The parent is no join: a table joined with itself, with all its indexes, takes longer to plan than to read.
SELECT = """
    SELECT b.*, b.begun, b.pinned_at, vm.name AS vm, vm.uuid AS vm_uuid, r.name AS repository,
           (SELECT p.external_id FROM backup p WHERE p.backup_id = b.parent_id) AS parent,
           (SELECT json_agg(v ORDER BY v.ordinal) FROM backup_volume v WHERE v.backup_id = b.backup_id) AS volumes
      FROM backup b JOIN vm USING (vm_id) JOIN repository r USING (repository_id)
"""
"""What ``fetch`` understands; conditions are on ``b``, ``vm`` and ``r``. One round trip brings backups and volumes."""


def fetch(cursor: Cursor) -> list[Backup]:
    return [_as_backup(row) for row in cursor.fetchall()]


def _volume(row: Mapping[str, Any]) -> BackupVolume:
    """Of an object of JSON, which knows no times."""
    return BackupVolume(
        **{
            **{key: value for key, value in row.items() if key not in ("backup_id", "ordinal")},
            "type": BackupType(row["type"]),
            "reason": VolumeReason(row["reason"]),
            "verified_at": _time(row["verified_at"]),
            "checked_at": _time(row.get("checked_at")),
            "compression": Compression(row.get("compression") or Compression.NONE),
        }
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _as_backup(row: Mapping[str, Any]) -> Backup:
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
        volumes=tuple(_volume(volume) for volume in row["volumes"] or ()),
    )


# --- writing --------------------------------------------------------------------------------------------------


def _insert_volumes(*, of: str) -> str:
    return f"""
    INSERT INTO backup_volume (backup_id, ordinal, name, source, target, format, file, virtual_size, type, reason,
                               backing)
    SELECT b.backup_id, v.ordinal, v.name, v.source, v.target, v.format, v.file, v.virtual_size, v.type, v.reason,
           v.backing
      FROM {of} b, json_populate_recordset(NULL::backup_volume, %(volumes)s) v
    """  # noqa: S608 - a table that is in this file


INSERT_VOLUMES = _insert_volumes(of="(SELECT %(backup_id)s AS backup_id)")

INSERT_IF_HELD = f"""
    WITH held AS ({RENEW} RETURNING vm_id, token), opened AS (
        INSERT INTO backup (vm_id, repository_id, external_id, type, status, reason, explanation, chain_id,
                            chain_position, parent_id, checkpoint, vm_state, host, request, run_id, lease_token,
                            created_at)
        SELECT held.vm_id, (SELECT repository_id FROM repository WHERE name = %(repository)s),
               %(external_id)s, %(type)s, 'BackingUp', %(reason)s, %(explanation)s, %(chain_id)s,
               %(chain_position)s, %(parent_id)s, %(checkpoint)s, %(vm_state)s, %(host)s, %(request)s, %(run_id)s,
               held.token, %(created_at)s
          FROM held
        RETURNING backup_id
    ), planned AS ({_insert_volumes(of="opened")})
    TABLE opened
"""  # noqa: S608 - what is above
"""A backup with its volumes; nothing, and no row, unless the lease is held."""


def decided(decision: ChainDecision) -> dict[str, Any]:
    """What was decided, by names of columns of ``backup``; and its ``volumes``."""
    return {
        "type": decision.type,
        "reason": decision.reason,
        "explanation": decision.explanation,
        "chain_id": decision.chain_id,
        "chain_position": decision.chain_position,
        "parent_id": decision.parent_id,
        "checkpoint": decision.checkpoint,
        "vm_state": decision.vm_state,
        "volumes": Json([{**asdict(plan), "ordinal": ordinal} for ordinal, plan in enumerate(decision.volumes)]),
    }
