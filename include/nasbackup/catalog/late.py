"""Runs that are late, whatever a look makes of their backups: what Airflow's deadline has said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from nasbackup.catalog.database import Cursor

UNSEEN = timedelta(days=1)
"""A run that is late and of which the catalog never hears (it was deleted, or failed before it began) is over then."""


@dataclass(frozen=True, kw_only=True)
class LateVm:
    """``began``: the run has begun a backup. ``ended``: that is recorded, or has failed."""

    uuid: str
    title: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    began: bool
    ended: bool


def vm_of_run(cursor: Cursor, *, run_id: str, vm: str, host: str) -> LateVm | None:
    """The VM that a run of ``nas_backup`` is about, as it was last seen on this host."""
    cursor.execute(
        """
        SELECT uuid, title, metadata, count(backup_id) > 0 AS began,
               count(backup_id) > 0 AND NOT bool_or(status = 'BackingUp') AS ended
          FROM vm LEFT JOIN backup ON backup.vm_id = vm.vm_id AND run_id = %s
         WHERE name = %s AND vm.host = %s AND defined
         GROUP BY vm.vm_id
        """,
        (f"nas_backup/{run_id}", vm, host),
    )
    row = cursor.fetchone()
    if row is None:
        return None
    return LateVm(**{**row, "uuid": str(row["uuid"])})


def still(cursor: Cursor, *, now: datetime) -> frozenset[int]:
    """Numbers of the open alerts ``overdue`` that are true, also where no look finds a backup that is late.

    Airflow counts from when the run was queued, a look from when the backup was begun. So it is true as long as the
    backup is being made that was then; and when none was, until one is begun.
    """
    cursor.execute(
        """
        SELECT alert_id
          FROM alert JOIN vm ON vm.uuid::text = alert.subject AND vm.defined
         WHERE alert.closed_at IS NULL AND alert.kind = 'overdue' AND alert.subject_kind = 'vm'
           AND (EXISTS (SELECT 1 FROM backup WHERE vm_id = vm.vm_id AND status = 'BackingUp'
                                               AND created_at <= opened_at)
                OR opened_at > %s AND NOT EXISTS (
                   SELECT 1 FROM backup
                    WHERE vm_id = vm.vm_id
                      AND (created_at > opened_at OR recorded_at > opened_at
                           OR status = 'Failed' AND coalesce(cleaned_at, 'infinity') > opened_at)))
        """,
        (now - UNSEEN,),
    )
    return frozenset(row["alert_id"] for row in cursor.fetchall())
