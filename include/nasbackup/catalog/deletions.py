"""How a backup leaves the catalog: marked, then closed, and then perhaps the parent that it kept.

delete(B): while B has a child, it is only marked (``DeletePending``); otherwise ``Deleting`` is committed, its files
go, and its row is closed (CloudStack PR #13074, "delete-pending"). All of it under the VM's lease.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from nasbackup.catalog.backups import get, select_where
from nasbackup.catalog.database import Cursor
from nasbackup.errors import BackupNotDeletable, BackupNotFound, BackupNotKept
from nasbackup.model import Backup, BackupStatus

_STATE = "SELECT external_id, status, pinned_at, cleaned_at FROM backup WHERE backup_id = %s"


def mark(cursor: Cursor, *, backup_id: int) -> BackupStatus:
    """Decide what becomes of the backup, and write it down: DeletePending or Deleting.

    When it owns the active checkpoint, that becomes null: the VM's next backup is a full. Raises BackupNotDeletable
    for one that is being made, is not cleaned up yet, or is pinned.
    """
    row = _locked(cursor, backup_id=backup_id)
    if row["status"] == BackupStatus.DELETING:
        return BackupStatus.DELETING  # an earlier try got that far, and there is no way back
    _require_deletable(row)
    status = BackupStatus.DELETE_PENDING if kept_by(cursor, backup_id=backup_id) else BackupStatus.DELETING
    _write(cursor, backup_id=backup_id, status=status)
    return status


def mark_kept(cursor: Cursor, *, backup_id: int) -> bool:
    """``mark``, where that makes it DeletePending; else False, and nothing is written. Raises BackupNotDeletable."""
    row = _locked(cursor, backup_id=backup_id)
    if row["status"] == BackupStatus.DELETING:
        return False
    _require_deletable(row)
    if not kept_by(cursor, backup_id=backup_id):
        return False  # who read it has just ended
    _write(cursor, backup_id=backup_id, status=BackupStatus.DELETE_PENDING)
    return True


def _locked(cursor: Cursor, *, backup_id: int) -> Mapping[str, Any]:
    cursor.execute(_STATE + " FOR UPDATE", (backup_id,))
    row = cursor.fetchone()
    if row is None:
        raise BackupNotFound(backup=backup_id)
    return row


def _require_deletable(row: Mapping[str, Any]) -> None:
    refused = _refusal(row)
    if refused is not None:
        raise BackupNotDeletable(backup=row["external_id"], why=refused)


def _write(cursor: Cursor, *, backup_id: int, status: BackupStatus) -> None:
    cursor.execute("UPDATE backup SET status = %s WHERE backup_id = %s", (status, backup_id))
    cursor.execute(
        "UPDATE active_checkpoint SET checkpoint = NULL, backup_id = NULL, changed_at = clock_timestamp()"
        " WHERE backup_id = %s",
        (backup_id,),
    )


def refusal(cursor: Cursor, *, backup_id: int) -> str | None:
    """Why it cannot be deleted now, and what to do; None when it can."""
    cursor.execute(_STATE, (backup_id,))
    row = cursor.fetchone()
    return None if row is None else _refusal(row)


def _refusal(row: Mapping[str, Any]) -> str | None:
    if row["status"] == BackupStatus.BACKING_UP:
        return "it is being made. End its run first; nas_reconcile ends those that died"
    if row["status"] == BackupStatus.FAILED and row["cleaned_at"] is None:
        return "its remains are not cleaned up yet: nas_reconcile, or the VM's next run, does that"
    if row["pinned_at"] is not None:
        return f"it is pinned since {row['pinned_at']:%Y-%m-%d}; `nasbackup unpin` first"
    return None


def close(cursor: Cursor, *, backup_id: int) -> int | None:
    """Its files are gone: remove its row. Returns its parent, if that waited for it and nothing else keeps it."""
    cursor.execute(
        """
        WITH gone AS (
            DELETE FROM backup WHERE backup_id = %s AND status = 'Deleting' RETURNING vm_id, parent_id, checkpoint
        ), retired AS (
            INSERT INTO retired_checkpoint (vm_id, checkpoint)
            SELECT vm_id, checkpoint FROM gone WHERE checkpoint IS NOT NULL ON CONFLICT DO NOTHING
        )
        SELECT parent_id FROM gone
        """,
        (backup_id,),
    )
    row = cursor.fetchone()
    return None if row is None or row["parent_id"] is None else falling(cursor, backup_id=row["parent_id"])


def falling(cursor: Cursor, *, backup_id: int) -> int | None:
    """The backup, if it is delete-pending and no child keeps it any more."""
    cursor.execute(
        """
        SELECT backup_id FROM backup b
         WHERE backup_id = %s AND status = 'DeletePending'
           AND NOT EXISTS (SELECT 1 FROM live_child c WHERE c.parent_id = b.backup_id)
        """,
        (backup_id,),
    )
    row = cursor.fetchone()
    return row["backup_id"] if row else None


def unfinished(cursor: Cursor, *, vm_uuid: str | None = None) -> list[Backup]:
    """Backups whose deletion was begun and can go on now: a crash left them, or a NAS that was away."""
    return select_where(
        cursor,
        "b.status IN ('DeletePending', 'Deleting') AND (b.status = 'Deleting'"
        " OR NOT EXISTS (SELECT 1 FROM live_child c WHERE c.parent_id = b.backup_id))"
        " AND (%s::uuid IS NULL OR vm.uuid = %s::uuid)",
        (vm_uuid, vm_uuid),
    )


def kept_by(cursor: Cursor, *, backup_id: int) -> list[str]:
    """External ids of the children for which the backup has to exist."""
    return keepers(cursor, backup_ids=[backup_id]).get(backup_id, [])


def keepers(cursor: Cursor, *, backup_ids: Sequence[int]) -> dict[int, list[str]]:
    """The same for many backups; those that nothing needs are not in the answer."""
    cursor.execute(
        "SELECT parent_id, external_id FROM live_child WHERE parent_id = ANY(%s) ORDER BY begun",
        (list(backup_ids),),
    )
    found: dict[int, list[str]] = {}
    for row in cursor.fetchall():
        found.setdefault(row["parent_id"], []).append(row["external_id"])
    return found


def known_of(cursor: Cursor, *, external_ids: Sequence[str], repository: str) -> frozenset[str]:
    """Which of these the catalog has in the repository, in whatever state."""
    cursor.execute(
        "SELECT external_id FROM backup WHERE external_id = ANY(%s)"
        " AND repository_id = (SELECT repository_id FROM repository WHERE name = %s)",
        (list(external_ids), repository),
    )
    return frozenset(row["external_id"] for row in cursor.fetchall())


# --- what people say of one backup ----------------------------------------------------------------------------


def set_pinned(cursor: Cursor, *, backup: Backup, pinned: bool) -> None:
    """Keep it until it is unpinned. Raises BackupNotKept for one that is on its way out, or was never recorded."""
    cursor.execute(
        "UPDATE backup SET pinned_at = CASE WHEN %s THEN coalesce(pinned_at, now()) END"
        " WHERE backup_id = %s AND status = 'BackedUp'",
        (pinned, backup.backup_id),
    )
    _require_recorded(cursor, backup=backup)


def set_expiry(cursor: Cursor, *, backup: Backup, at: datetime | None) -> None:
    """Keep it until then and no longer; None: the policy decides again. Raises BackupNotKept."""
    cursor.execute(
        "UPDATE backup SET expires_at = %s WHERE backup_id = %s AND status = 'BackedUp'", (at, backup.backup_id)
    )
    _require_recorded(cursor, backup=backup)


def _require_recorded(cursor: Cursor, *, backup: Backup) -> None:
    if cursor.rowcount == 0:
        current = get(cursor, backup_id=backup.backup_id)
        raise BackupNotKept(backup=current.external_id, status=current.status)
