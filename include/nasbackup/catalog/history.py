"""What earlier backups needed: the ground for estimates."""

from __future__ import annotations

from nasbackup.catalog.database import Cursor
from nasbackup.estimate import LayerSize
from nasbackup.model import BackupType

_ENOUGH = 200
"""Backups that are looked back at: more than any chain that makes sense is long."""


def layer_sizes(cursor: Cursor, *, vm_uuid: str, repository: str) -> dict[str, list[LayerSize]]:
    """Source of a volume -> its layers in this repository, the newest first (``estimate.History``).

    Also of backups that are being deleted: they tell how much changes just as well.
    """
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
        (vm_uuid, repository, _ENOUGH),
    )
    found: dict[str, list[LayerSize]] = {}
    for row in cursor.fetchall():
        found.setdefault(row["source"], []).append(
            LayerSize(type=BackupType(row["type"]), bytes_read=row["bytes_read"], bytes_written=row["bytes_written"])
        )
    return found
