"""Backups and their volumes: from the row that announces one to the transaction that records it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from psycopg2.extras import Json

from nasbackup.catalog.database import Cursor
from nasbackup.catalog.leases import LEASE_SECONDS
from nasbackup.catalog.rows import INSERT_IF_HELD, INSERT_VOLUMES, SELECT, decided, fetch
from nasbackup.errors import AttemptSuperseded, BackupNotFound, BackupNotOpen, LeaseLost
from nasbackup.handling import Compression
from nasbackup.model import Backup, BackupStatus, BackupVolume, ChainDecision, Consistency

_LINE = """
    WITH RECURSIVE line AS (
        SELECT backup_id, parent_id FROM backup WHERE backup_id = %s
         UNION ALL
        SELECT p.backup_id, p.parent_id FROM backup p JOIN line ON p.backup_id = line.parent_id
    )
"""


# --- reading --------------------------------------------------------------------------------------------------


def get(cursor: Cursor, *, backup_id: int) -> Backup:
    cursor.execute(SELECT + " WHERE b.backup_id = %s", (backup_id,))
    found = fetch(cursor)
    if not found:
        raise BackupNotFound(backup=backup_id)
    return found[0]


def find(cursor: Cursor, *, external_id: str) -> Backup:
    """The backup with this external id. Raises BackupNotFound."""
    backup = find_or_none(cursor, external_id=external_id)
    if backup is None:
        raise BackupNotFound(backup=external_id)
    return backup


def find_or_none(cursor: Cursor, *, external_id: str) -> Backup | None:
    cursor.execute(SELECT + " WHERE b.external_id = %s", (external_id,))
    found = fetch(cursor)
    return found[0] if found else None


def list_backups(
    cursor: Cursor, *, vm: str | None = None, statuses: Sequence[BackupStatus] = tuple(BackupStatus)
) -> list[Backup]:
    """Backups in the order they were begun; of the VM with this name, or of all."""
    wanted = [status.value for status in statuses]
    if vm is None:
        return select_where(cursor, "b.status = ANY(%s)", (wanted,))
    return select_where(cursor, "vm.name = %s AND b.status = ANY(%s)", (vm, wanted))


def get_many(cursor: Cursor, *, backup_ids: Sequence[int]) -> list[Backup]:
    """Those that exist of these, in the order they were begun."""
    return select_where(cursor, "b.backup_id = ANY(%s)", (list(backup_ids),))


def select_where(cursor: Cursor, condition: str, values: Sequence[Any]) -> list[Backup]:
    """Backups that meet a condition of this package's own making, in the order they were begun."""
    cursor.execute(f"{SELECT} WHERE {condition} ORDER BY b.begun", values)
    return fetch(cursor)


def lineage(cursor: Cursor, *, backup_id: int) -> list[Backup]:
    """The backup and its ancestors, the full first."""
    cursor.execute(
        _LINE + SELECT + " JOIN line ON line.backup_id = b.backup_id ORDER BY b.chain_position", (backup_id,)
    )
    return fetch(cursor)


# --- making ---------------------------------------------------------------------------------------------------


def open_backup(
    cursor: Cursor,
    *,
    decision: ChainDecision,
    external_id: str,
    vm_uuid: str,
    vm: str,
    host: str,
    repository: str,
    run_id: str,
    lease_token: int,
    created_at: datetime,
    request: Mapping[str, Any] | None = None,
) -> Backup:
    """Announce a backup: from this moment on nobody can delete its parent.

    The lease is renewed by it, in the same statement. Raises LeaseLost, with nothing written, when the token is not
    the lease's any more.
    """
    document = json.loads(json.dumps(request or {}))
    cursor.execute(
        INSERT_IF_HELD,
        {
            **decided(decision),
            "vm_uuid": vm_uuid,
            "repository": repository,
            "external_id": external_id,
            "host": host,
            "request": Json(document),
            "run_id": run_id,
            "lease_token": lease_token,
            "seconds": LEASE_SECONDS,
            "created_at": created_at,
        },
    )
    row = cursor.fetchone()
    if row is None:
        raise LeaseLost(vm=vm, holder=f"The holder of token {lease_token}")
    # What reading it back would bring, but for the time that this takes: a test compares the two.
    return Backup(
        backup_id=row["backup_id"],
        external_id=external_id,
        vm=vm,
        vm_uuid=vm_uuid,
        host=host,
        repository=repository,
        type=decision.type,
        status=BackupStatus.BACKING_UP,
        reason=decision.reason,
        explanation=decision.explanation,
        vm_state=decision.vm_state,
        chain_id=decision.chain_id,
        chain_position=decision.chain_position,
        parent_id=decision.parent_id,
        parent=decision.parent,
        checkpoint=decision.checkpoint,
        created_at=created_at,
        request=document,
        run_id=run_id,
        volumes=tuple(BackupVolume(**asdict(plan)) for plan in decision.volumes),
    )


def replan(cursor: Cursor, *, backup_id: int, decision: ChainDecision) -> None:
    """Replace what was decided before anything was begun: the VM started or stopped meanwhile."""
    columns = {**decided(decision), "backup_id": backup_id}
    cursor.execute(
        """
        UPDATE backup SET type = %(type)s, reason = %(reason)s, explanation = %(explanation)s,
               chain_id = %(chain_id)s, chain_position = %(chain_position)s, parent_id = %(parent_id)s,
               checkpoint = %(checkpoint)s, vm_state = %(vm_state)s
         WHERE backup_id = %(backup_id)s AND status = 'BackingUp'
        """,
        columns,
    )
    _require_change(cursor, backup_id=backup_id)
    cursor.execute("DELETE FROM backup_volume WHERE backup_id = %s", (backup_id,))
    cursor.execute(INSERT_VOLUMES, columns)


def set_source_stamp(cursor: Cursor, *, backup_id: int, volume: str, stamp: str) -> None:
    """How the image of a stopped VM looked at the point in time."""
    cursor.execute(
        "UPDATE backup_volume SET source_stamp = %s WHERE backup_id = %s AND name = %s", (stamp, backup_id, volume)
    )


def adopt(cursor: Cursor, *, backup_id: int, lease_token: int) -> None:
    """A retry of the same run goes on with the row that an earlier attempt left, under its own token."""
    cursor.execute(
        "UPDATE backup SET lease_token = %s WHERE backup_id = %s AND status = 'BackingUp'", (lease_token, backup_id)
    )
    _require_change(cursor, backup_id=backup_id)


def set_consistency(cursor: Cursor, *, backup_id: int, consistency: Consistency) -> None:
    cursor.execute(
        "UPDATE backup SET consistency = %s WHERE backup_id = %s AND status = 'BackingUp'", (consistency, backup_id)
    )
    _require_change(cursor, backup_id=backup_id)


def void_attempts(cursor: Cursor, *, backup_id: int) -> None:
    """What was copied belongs to an earlier point in time: forget it, and whatever its orphans still bring."""
    cursor.execute(
        """
        UPDATE backup_volume SET attempt = NULL, digest = NULL, bytes_read = NULL, bytes_written = NULL,
               copy_seconds = NULL, verified_at = NULL, checked_at = NULL
         WHERE backup_id = %s
        """,
        (backup_id,),
    )


def claim_attempt(cursor: Cursor, *, backup_id: int, volume: str, attempt: str) -> None:
    """From now on only this attempt of the volume can be published; what an earlier one found is void."""
    cursor.execute(
        """
        UPDATE backup_volume v
           SET attempt = %s, digest = NULL, bytes_read = NULL, bytes_written = NULL, copy_seconds = NULL,
               verified_at = NULL, checked_at = NULL
          FROM backup b
         WHERE b.backup_id = v.backup_id AND b.status = 'BackingUp' AND v.backup_id = %s AND v.name = %s
        """,
        (attempt, backup_id, volume),
    )
    _require_change(cursor, backup_id=backup_id)


def set_copied(
    cursor: Cursor,
    *,
    backup_id: int,
    volume: str,
    attempt: str,
    bytes_read: int,
    bytes_written: int,
    digest: str,
    seconds: float,
    compression: Compression = Compression.NONE,
) -> None:
    """Note what the attempt read and wrote. Raises AttemptSuperseded when a newer attempt has claimed the volume."""
    cursor.execute(
        """
        UPDATE backup_volume SET bytes_read = %s, bytes_written = %s, digest = %s, copy_seconds = %s,
               compression = %s
         WHERE backup_id = %s AND name = %s AND attempt = %s
        """,
        (bytes_read, bytes_written, digest, seconds, compression, backup_id, volume, attempt),
    )
    if cursor.rowcount == 0:
        raise AttemptSuperseded(attempt=attempt, volume=volume)


def set_verified(cursor: Cursor, *, backup_id: int, volume: str, attempt: str, read_back: bool = True) -> None:
    """Note that this attempt is sound; ``read_back``: that every byte of it was read, and is what was copied."""
    cursor.execute(
        """
        UPDATE backup_volume
           SET checked_at = clock_timestamp(), verified_at = CASE WHEN %s THEN clock_timestamp() END
         WHERE backup_id = %s AND name = %s AND attempt = %s
        """,
        (read_back, backup_id, volume, attempt),
    )
    if cursor.rowcount == 0:
        raise AttemptSuperseded(attempt=attempt, volume=volume)


def record(cursor: Cursor, *, backup_id: int, size: int) -> None:
    """The moment a backup counts: BackedUp, and the active checkpoint becomes its checkpoint (or null), at once."""
    cursor.execute(
        "UPDATE backup SET status = 'BackedUp', recorded_at = clock_timestamp(), size = %s, error = NULL"
        " WHERE backup_id = %s AND status = 'BackingUp'",
        (size, backup_id),
    )
    _require_change(cursor, backup_id=backup_id)
    cursor.execute(
        """
        INSERT INTO active_checkpoint (vm_id, repository_id, checkpoint, backup_id)
        SELECT vm_id, repository_id, checkpoint, CASE WHEN checkpoint IS NOT NULL THEN backup_id END
          FROM backup WHERE backup_id = %s
        ON CONFLICT (vm_id, repository_id) DO UPDATE
           SET checkpoint = EXCLUDED.checkpoint, backup_id = EXCLUDED.backup_id, changed_at = clock_timestamp()
        """,
        (backup_id,),
    )


def fail(cursor: Cursor, *, backup_id: int, error: str) -> None:
    """Mark a backup that will not be finished. The active checkpoint stays as it was: the next run is incremental."""
    cursor.execute(
        "UPDATE backup SET status = 'Failed', error = %s WHERE backup_id = %s AND status = 'BackingUp'",
        (error, backup_id),
    )
    cursor.execute("DELETE FROM copy_progress WHERE backup_id = %s", (backup_id,))


def set_cleaned(cursor: Cursor, *, backup_id: int) -> None:
    """Note that nothing of a failed backup is left on host and NAS."""
    cursor.execute(
        "UPDATE backup SET cleaned_at = clock_timestamp() WHERE backup_id = %s AND status = 'Failed'", (backup_id,)
    )


# --- helpers --------------------------------------------------------------------------------------------------


def _require_change(cursor: Cursor, *, backup_id: int) -> None:
    if cursor.rowcount == 0:
        backup = get(cursor, backup_id=backup_id)
        raise BackupNotOpen(backup=backup.external_id, status=backup.status)
