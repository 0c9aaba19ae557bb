"""VMs that were backed up at least once, and the active checkpoint of each (VM, repository)."""

from __future__ import annotations

from nasbackup.catalog.database import Cursor


def register(cursor: Cursor, *, uuid: str, name: str, host: str) -> None:
    """Note the VM, or its new name or host. A VM is its UUID; the name is how people find it."""
    cursor.execute(
        "INSERT INTO vm (uuid, name, host) VALUES (%s, %s, %s)"
        " ON CONFLICT (uuid) DO UPDATE SET name = EXCLUDED.name, host = EXCLUDED.host",
        (uuid, name, host),
    )


def register_if_unknown(cursor: Cursor, *, uuid: str, name: str, host: str) -> None:
    """For a description from the past, which says nothing about the VM's name and host today."""
    cursor.execute(
        "INSERT INTO vm (uuid, name, host) VALUES (%s, %s, %s) ON CONFLICT (uuid) DO NOTHING", (uuid, name, host)
    )


def active_checkpoint(cursor: Cursor, *, vm_uuid: str, repository: str) -> str | None:
    """The checkpoint of the last recorded backup; None means that the next one is full."""
    cursor.execute(
        """
        SELECT checkpoint FROM active_checkpoint
         WHERE vm_id = (SELECT vm_id FROM vm WHERE uuid = %s)
           AND repository_id = (SELECT repository_id FROM repository WHERE name = %s)
        """,
        (vm_uuid, repository),
    )
    row = cursor.fetchone()
    return row["checkpoint"] if row else None


def clear_active_checkpoint(cursor: Cursor, *, vm_uuid: str, repository: str | None = None) -> None:
    """Make the next backup a full: into one repository, or (None) into every repository."""
    cursor.execute(
        """
        UPDATE active_checkpoint a SET checkpoint = NULL, backup_id = NULL, changed_at = now()
          FROM vm, repository r
         WHERE vm.vm_id = a.vm_id AND r.repository_id = a.repository_id
           AND vm.uuid = %s AND (%s::text IS NULL OR r.name = %s)
        """,
        (vm_uuid, repository, repository),
    )


def checkpoints_ever_made(cursor: Cursor, *, vm_uuid: str) -> frozenset[str]:
    """Every checkpoint name that this catalog gave to the VM: all others are foreign and never touched."""
    cursor.execute(
        """
        SELECT checkpoint FROM backup JOIN vm USING (vm_id) WHERE uuid = %(uuid)s AND checkpoint IS NOT NULL
         UNION
        SELECT checkpoint FROM retired_checkpoint JOIN vm USING (vm_id) WHERE uuid = %(uuid)s
        """,
        {"uuid": vm_uuid},
    )
    return frozenset(row["checkpoint"] for row in cursor.fetchall())


def forget_old_checkpoints(cursor: Cursor, *, vm_uuid: str) -> None:
    """Names of backups that went more than a year ago: an image that comes back after that keeps its bitmaps.

    Not as soon as they are dropped: a disk that is detached then still has them.
    """
    cursor.execute(
        "DELETE FROM retired_checkpoint WHERE vm_id = (SELECT vm_id FROM vm WHERE uuid = %s)"
        " AND retired_at < now() - interval '400 days'",
        (vm_uuid,),
    )


def checkpoints_in_use(cursor: Cursor, *, vm_uuid: str) -> frozenset[str]:
    """The active checkpoints (of all repositories) and those of backups that are being made."""
    cursor.execute(
        """
        SELECT a.checkpoint FROM active_checkpoint a JOIN vm USING (vm_id)
         WHERE uuid = %(uuid)s AND a.checkpoint IS NOT NULL
         UNION
        SELECT b.checkpoint FROM backup b JOIN vm USING (vm_id)
         WHERE uuid = %(uuid)s AND b.status = 'BackingUp' AND b.checkpoint IS NOT NULL
        """,
        {"uuid": vm_uuid},
    )
    return frozenset(row["checkpoint"] for row in cursor.fetchall())
