"""Who reads a backup for long: a mark that deletion respects as it respects a child, and that backups don't feel."""

from __future__ import annotations

from datetime import datetime

from nasbackup.catalog.database import Cursor
from nasbackup.errors import BackupNotFound, BackupNotRestorable, ReadingLost
from nasbackup.model import BackupStatus


def begin(cursor: Cursor, *, backup_id: int, reader: str, seconds: float, held: bool = False) -> int:
    """Keep the backup, and with it all its ancestors, for so long. Raises BackupNotRestorable unless it is BackedUp.

    ``held``: the caller has a mark on it already, so one that is delete-pending is as good. The row is locked: a
    deletion that is just deciding is waited for, and one that comes later sees the mark.
    """
    cursor.execute("SELECT external_id, status FROM backup WHERE backup_id = %s FOR SHARE", (backup_id,))
    row = cursor.fetchone()
    if row is None:
        raise BackupNotFound(backup=backup_id)
    if row["status"] != BackupStatus.BACKED_UP and not (held and row["status"] == BackupStatus.DELETE_PENDING):
        raise BackupNotRestorable(backup=row["external_id"], why=f"it is {row['status']}")
    cursor.execute(
        "INSERT INTO reading (backup_id, reader, expires_at)"
        " VALUES (%s, %s, clock_timestamp() + make_interval(secs => %s)) RETURNING reading_id",
        (backup_id, reader, seconds),
    )
    inserted = cursor.fetchone()
    assert inserted is not None, "RETURNING gives a row"
    return int(inserted["reading_id"])


def renew(cursor: Cursor, *, reading_id: int, backup: str, seconds: float) -> datetime:
    """Until when it holds now. Raises ReadingLost once it has expired: the backup may be gone since."""
    cursor.execute(
        "UPDATE reading SET expires_at = clock_timestamp() + make_interval(secs => %s)"
        " WHERE reading_id = %s AND expires_at > clock_timestamp() RETURNING expires_at",
        (seconds, reading_id),
    )
    row = cursor.fetchone()
    if row is None:
        raise ReadingLost(backup=backup, why="it was not renewed in time")
    expires_at: datetime = row["expires_at"]
    return expires_at


def keep(cursor: Cursor, *, backup_id: int, reader: str, backup: str, seconds: float) -> tuple[int, datetime]:
    """This reader's mark, made or renewed, and until when it holds. Raises BackupNotRestorable, ReadingLost."""
    reading_id = find(cursor, backup_id=backup_id, reader=reader)
    if reading_id is None:
        reading_id = begin(cursor, backup_id=backup_id, reader=reader, seconds=seconds)
    return reading_id, renew(cursor, reading_id=reading_id, backup=backup, seconds=seconds)


def end_of(cursor: Cursor, *, reader: str) -> None:
    """Give free whatever this reader has a mark on."""
    cursor.execute("DELETE FROM reading WHERE reader = %s", (reader,))


def end(cursor: Cursor, *, reading_id: int) -> None:
    """Give the backup free; and forget the marks of readers that died long ago."""
    cursor.execute(
        "DELETE FROM reading WHERE reading_id = %s OR expires_at < clock_timestamp() - interval '1 day'", (reading_id,)
    )


def find(cursor: Cursor, *, backup_id: int, reader: str) -> int | None:
    """The mark that this reader has on the backup and that still holds."""
    cursor.execute(
        "SELECT reading_id FROM reading WHERE backup_id = %s AND reader = %s AND expires_at > clock_timestamp()",
        (backup_id, reader),
    )
    row = cursor.fetchone()
    return int(row["reading_id"]) if row else None
