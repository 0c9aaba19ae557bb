"""The restore of a VM that is under way, or was left by one that died: at most one, and only with the VM's lease."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from psycopg2.extras import Json

from nasbackup.catalog import backups
from nasbackup.catalog.database import Cursor
from nasbackup.errors import RestoreSuperseded
from nasbackup.model import Backup


class RestoreState(StrEnum):
    STAGING = "staging"  # images are written under names of this restore's own
    MOVING = "moving"  # files get their names, the VM is defined or changed: to be finished or undone as a whole
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class RestoreRow:
    vm_uuid: str
    vm: str
    key: str
    state: RestoreState
    begun_at: datetime
    host: str
    """The KVM host on which it writes, by libvirt's name for it."""
    plan: Mapping[str, Any]


# --- which one is restored ------------------------------------------------------------------------------------


def recorded_before(cursor: Cursor, *, backup_id: int) -> list[Backup]:
    """BackedUp ones of the same VM in the same repository that were begun before this one, the newest first."""
    return backups.select_where(
        cursor,
        "b.status = 'BackedUp' AND (b.vm_id, b.repository_id) ="
        " (SELECT vm_id, repository_id FROM backup WHERE backup_id = %s)"
        " AND b.begun < (SELECT begun FROM backup WHERE backup_id = %s)",
        (backup_id, backup_id),
    )[::-1]


def latest_of(cursor: Cursor, *, vm: str, before: datetime | None = None) -> Backup | None:
    """The newest BackedUp backup of the VM of this name, in any repository, whose point in time is before this one."""
    found = backups.select_where(
        cursor,
        "vm.name = %s AND b.status = 'BackedUp' AND (%s::timestamptz IS NULL OR b.created_at < %s::timestamptz)",
        (vm, before, before),
    )
    return found[-1] if found else None


# --- how far it is --------------------------------------------------------------------------------------------

_SELECT = "SELECT vm.uuid, vm.name, r.key, r.state, r.begun_at, r.plan FROM restore r JOIN vm USING (vm_id)"


def begin(cursor: Cursor, *, vm_uuid: str, key: str, host: str, plan: Mapping[str, Any]) -> None:
    """There must be none: what an earlier one left has been undone."""
    cursor.execute(
        "INSERT INTO restore (vm_id, key, state, plan) SELECT vm_id, %s, 'staging', %s FROM vm WHERE uuid = %s",
        (key, Json({"host": host, "plan": plan}), vm_uuid),
    )


def find(cursor: Cursor, *, vm_uuid: str) -> RestoreRow | None:
    cursor.execute(_SELECT + " WHERE vm.uuid = %s", (vm_uuid,))
    row = cursor.fetchone()
    return _row(row) if row else None


def require(cursor: Cursor, *, vm_uuid: str, vm: str, key: str) -> RestoreRow:
    """Raises RestoreSuperseded when it is not this restore's (any more)."""
    found = find(cursor, vm_uuid=vm_uuid)
    if found is None or found.key != key:
        raise RestoreSuperseded(vm=vm)
    return found


def list_all(cursor: Cursor) -> list[RestoreRow]:
    cursor.execute(_SELECT + " ORDER BY r.begun_at")
    return [_row(row) for row in cursor.fetchall()]


def set_state(cursor: Cursor, *, vm_uuid: str, vm: str, key: str, state: RestoreState) -> None:
    """Raises RestoreSuperseded."""
    require(cursor, vm_uuid=vm_uuid, vm=vm, key=key)
    cursor.execute(
        "UPDATE restore SET state = %s WHERE vm_id = (SELECT vm_id FROM vm WHERE uuid = %s) AND key = %s",
        (state, vm_uuid, key),
    )


def end(cursor: Cursor, *, vm_uuid: str, key: str) -> None:
    cursor.execute(
        "DELETE FROM restore WHERE vm_id = (SELECT vm_id FROM vm WHERE uuid = %s) AND key = %s", (vm_uuid, key)
    )


def _row(row: Mapping[str, Any]) -> RestoreRow:
    return RestoreRow(
        vm_uuid=str(row["uuid"]),
        vm=row["name"],
        key=row["key"],
        state=RestoreState(row["state"]),
        begun_at=row["begun_at"],
        host=row["plan"]["host"],
        plan=row["plan"]["plan"],
    )
