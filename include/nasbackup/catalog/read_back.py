"""Layers of recorded backups that were read back once more."""

from __future__ import annotations

from collections.abc import Iterable

from nasbackup.catalog.database import Cursor


def note(cursor: Cursor, *, layers: Iterable[tuple[str, str, str]]) -> int:
    """Note that these layers (external id, name of the volume, digest that was found) hold what was copied.

    Returns how many could be noted: what was deleted, or made anew, meanwhile is not what was read.
    """
    noted = 0
    for external_id, volume, digest in layers:
        cursor.execute(
            """
            UPDATE backup_volume v
               SET verified_at = clock_timestamp(), checked_at = coalesce(v.checked_at, clock_timestamp())
              FROM backup b
             WHERE b.backup_id = v.backup_id AND b.status IN ('BackedUp', 'DeletePending')
               AND b.external_id = %s AND v.name = %s AND v.digest = %s
            """,
            (external_id, volume, digest),
        )
        noted += cursor.rowcount
    return noted
