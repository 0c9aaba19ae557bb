"""What earlier backups needed: the ground for estimates."""

from __future__ import annotations

from collections.abc import Sequence

from nasbackup.catalog.database import Cursor
from nasbackup.estimate import History, LayerSize, is_enough
from nasbackup.model import BackupType, VolumePlan

_MOSTLY = 12
"""Backups that are looked back at first: a chain of the usual length, and some increments of the one before."""

_AT_MOST = 200
"""More than any chain that makes sense is long."""


def layer_sizes(cursor: Cursor, *, vm_uuid: str, repository: str, plans: Sequence[VolumePlan]) -> History:
    """The volumes' layers in this repository, as far back as an estimate for ``plans`` asks for.

    Also of backups that are being deleted: they tell how much changes just as well.
    """
    recent = _newest(cursor, vm_uuid=vm_uuid, repository=repository, backups=_MOSTLY)
    if all(is_enough(plan, layers=recent.get(plan.source, ())) for plan in plans):
        return recent
    return _newest(cursor, vm_uuid=vm_uuid, repository=repository, backups=_AT_MOST)


def _newest(cursor: Cursor, *, vm_uuid: str, repository: str, backups: int) -> History:
    cursor.execute(
        """
        WITH recent AS (
            SELECT backup_id, begun FROM backup
             WHERE vm_id = (SELECT vm_id FROM vm WHERE uuid = %s)
               AND repository_id = (SELECT repository_id FROM repository WHERE name = %s)
               AND status IN ('BackedUp', 'DeletePending', 'Deleting')
             ORDER BY begun DESC LIMIT %s
        )
        SELECT v.source, v.type, v.bytes_read, v.bytes_written
          FROM recent JOIN backup_volume v USING (backup_id)
         WHERE v.bytes_read IS NOT NULL AND v.bytes_written IS NOT NULL
         ORDER BY begun DESC
        """,
        (vm_uuid, repository, backups),
    )
    found: dict[str, list[LayerSize]] = {}
    for row in cursor.fetchall():
        found.setdefault(row["source"], []).append(
            LayerSize(type=BackupType(row["type"]), bytes_read=row["bytes_read"], bytes_written=row["bytes_written"])
        )
    return found
