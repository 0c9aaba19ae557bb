"""Everything at once: what nas_reconcile compares hosts and repositories with."""

from __future__ import annotations

from nasbackup.catalog.backups import select_where
from nasbackup.catalog.database import Cursor
from nasbackup.model import Backup


def vms_on_host(cursor: Cursor, *, host: str) -> dict[str, str]:
    """UUID -> name of the VMs that were last backed up on this host."""
    cursor.execute("SELECT uuid, name FROM vm WHERE host = %s ORDER BY name", (host,))
    return {str(row["uuid"]): row["name"] for row in cursor.fetchall()}


def leased_vms(cursor: Cursor, *, besides: str) -> frozenset[str]:
    """UUIDs of the VMs that somebody is at work on, other than the holder ``besides``."""
    cursor.execute(
        "SELECT uuid FROM lease JOIN vm USING (vm_id) WHERE expires_at >= clock_timestamp() AND holder <> %s",
        (besides,),
    )
    return frozenset(str(row["uuid"]) for row in cursor.fetchall())


def backups_in(cursor: Cursor, *, repository: str) -> list[Backup]:
    """All backups of a repository, in any state."""
    return select_where(cursor, "r.name = %s", (repository,))


def cleaned(cursor: Cursor) -> frozenset[int]:
    """Numbers of the failed backups of which nothing is left."""
    cursor.execute("SELECT backup_id FROM backup WHERE status = 'Failed' AND cleaned_at IS NOT NULL")
    return frozenset(row["backup_id"] for row in cursor.fetchall())
