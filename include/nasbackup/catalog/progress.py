"""How far the copies are that are running."""

from __future__ import annotations

from nasbackup.catalog.database import Cursor


def report(cursor: Cursor, *, backup_id: int, volume: str, phase: str, done: int, total: int, seconds: float) -> None:
    """``done`` of ``total`` bytes were read, ``seconds`` after the copy of this attempt began."""
    cursor.execute(
        """
        INSERT INTO copy_progress (backup_id, name, phase, done, total, seconds) VALUES (%s, %s, %s, %s, %s, %s)
        ON CONFLICT (backup_id, name) DO UPDATE
           SET phase = EXCLUDED.phase, done = EXCLUDED.done, total = EXCLUDED.total, seconds = EXCLUDED.seconds,
               reported_at = clock_timestamp()
        """,
        (backup_id, volume, phase, done, total, seconds),
    )


def finished(cursor: Cursor, *, backup_id: int, volume: str) -> None:
    """What the volume has come to is in its own row by then."""
    cursor.execute("DELETE FROM copy_progress WHERE backup_id = %s AND name = %s", (backup_id, volume))
