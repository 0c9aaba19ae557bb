"""What the catalog knows of a VM when its next backup is decided: in one answer, as of one moment.

With a million backups in the catalog, round trips and what is planned for each are the time that a decision takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nasbackup.catalog.database import Cursor
from nasbackup.model import BackupStatus, BackupType
from nasbackup.past import PastBackup, PastVolume

MOSTLY = 12
"""Backups that are looked back at first: a chain of the usual length, and some increments of the one before."""

FAR_BACK = 200
"""More than any chain that makes sense is long."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Of one VM in one repository, but for ``unfinished`` and ``is_taken``, which are of the VM in all of them."""

    active_checkpoint: str | None
    recent: tuple[PastBackup, ...]
    """The newest first: by order of begin, which no clock can turn round. Also those that are being deleted."""
    has_older: bool
    unfinished: tuple[int, ...]
    """Backups that are being made or were left by a run that died, and failed ones not cleaned up yet."""
    is_taken: bool
    """Whether a backup of any VM has the external id that was asked about, or this VM has had the checkpoint."""

    @property
    def latest(self) -> PastBackup | None:
        """The newest BackedUp backup of the recent ones."""
        return next((backup for backup in self.recent if backup.status is BackupStatus.BACKED_UP), None)


# Numbers, not conditions on what is joined: then the index ends at the first so many, however many there are.
_VM, _REPOSITORY = "(SELECT vm_id FROM this)", "(SELECT repository_id FROM this)"

_RECENT = f"""
    SELECT b.backup_id, b.external_id, b.status, b.checkpoint, b.chain_id, b.chain_position,
           (SELECT json_agg(volume)
              FROM (SELECT source, file, virtual_size, type, bytes_read, bytes_written
                      FROM backup_volume v WHERE v.backup_id = b.backup_id) volume) AS volumes
      FROM backup b
     WHERE b.vm_id = {_VM} AND b.repository_id = {_REPOSITORY} AND b.status IN ('BackedUp', 'DeletePending', 'Deleting')
     ORDER BY b.begun DESC LIMIT %(limit)s
"""  # noqa: S608 - of this file's own making

_STANDING = f"""
    WITH this AS (SELECT vm_id, repository_id FROM vm LEFT JOIN repository r ON r.name = %(repository)s
                   WHERE vm.uuid = %(vm_uuid)s)
    SELECT (SELECT checkpoint FROM active_checkpoint WHERE vm_id = {_VM} AND repository_id = {_REPOSITORY}) AS active,
           (SELECT json_agg(past) FROM ({_RECENT}) past) AS recent,
           ARRAY(SELECT backup_id FROM backup WHERE vm_id = {_VM}
                    AND (status = 'BackingUp' OR (status = 'Failed' AND cleaned_at IS NULL))) AS unfinished,
           EXISTS (SELECT 1 FROM backup WHERE external_id = %(external_id)s)
           OR EXISTS (SELECT 1 FROM backup WHERE vm_id = {_VM} AND checkpoint = %(checkpoint)s)
           OR EXISTS (SELECT 1 FROM retired_checkpoint WHERE vm_id = {_VM} AND checkpoint = %(checkpoint)s)
           AS is_taken
"""  # noqa: S608 - of this file's own making


def standing(
    cursor: Cursor, *, vm_uuid: str, repository: str, external_id: str, checkpoint: str, backups: int = MOSTLY
) -> Standing:
    """How the VM stands, and whether these names are free for its next backup; at most so many recent ``backups``."""
    asked = {"vm_uuid": vm_uuid, "repository": repository, "external_id": external_id, "checkpoint": checkpoint}
    stands = _ask(cursor, asked, backups=backups)
    if stands.latest is None and stands.has_older:  # a dozen that all wait to be deleted
        stands = _ask(cursor, asked, backups=FAR_BACK)
    return stands


def _ask(cursor: Cursor, asked: Mapping[str, str], *, backups: int) -> Standing:
    cursor.execute(_STANDING, {**asked, "limit": backups + 1})
    (row,) = cursor.fetchall()
    recent = [_past(backup) for backup in row["recent"] or ()]
    return Standing(
        active_checkpoint=row["active"],
        recent=tuple(recent[:backups]),
        has_older=len(recent) > backups,
        unfinished=tuple(row["unfinished"]),
        is_taken=row["is_taken"],
    )


def _past(row: Mapping[str, Any]) -> PastBackup:
    volumes = tuple(PastVolume(**{**volume, "type": BackupType(volume["type"])}) for volume in row["volumes"] or ())
    return PastBackup(**{**row, "status": BackupStatus(row["status"]), "volumes": volumes})
