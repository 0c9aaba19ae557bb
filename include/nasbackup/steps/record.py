"""record: publish the directory, then let the backup count."""

from __future__ import annotations

from datetime import UTC, datetime

from nasbackup.catalog import backups, leases
from nasbackup.errors import BackupNotOpen, VerifyFailed
from nasbackup.handling import VerifyLevel
from nasbackup.model import Backup, BackupStatus
from nasbackup.nas import manifest, publish, state
from nasbackup.nas.watchdog import watched
from nasbackup.steps.request import verify_level
from nasbackup.steps.ticket import Site, Ticket, partial_path


def record(site: Site, *, ticket: Ticket) -> Backup:
    """Publish, then in one transaction: BackedUp, size, and the active checkpoint becomes this backup's.

    A second call finishes what the first began, or finds it done. Raises VerifyFailed unless every volume was
    verified (at the level that the run was asked for), LeaseLost, NasIo, RepositoryFull.
    """
    try:
        backup = site.load(ticket)
    except BackupNotOpen as error:
        if error.data["status"] is not BackupStatus.BACKED_UP:
            raise
        with site.database.transaction() as cursor:
            return backups.get(cursor, backup_id=ticket.backup_id)
    attempts = {volume.file: volume.attempt for volume in backup.volumes if volume.attempt is not None}
    level = verify_level(backup)
    for volume in backup.volumes:
        passed = volume.verified_at if level is VerifyLevel.FULL else volume.checked_at
        if passed is None or volume.attempt is None or volume.digest is None:
            raise VerifyFailed(file=volume.file, problem="was not verified; the backup is not recorded")
    root = site.root()
    site.renew(ticket)
    saved, missing = watched(
        site.repository, "reading the VM's state back", state.written, partial_path(root, backup=backup)
    )
    directory = watched(
        site.repository,
        f"publishing {backup.external_id}",
        publish.publish,
        site.repository,
        root=root,
        external_id=backup.external_id,
        attempts=attempts,
        others=state.names(saved),
        manifest=manifest.build(
            backup,
            level=level,
            repository_uuid=site.repository_uuid,
            recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
            state=saved,
            state_missing=missing,
        ),
    )
    size = watched(site.repository, "reading the size", publish.size_on_disk, directory)
    with site.database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=ticket.vm_uuid, vm=ticket.vm, token=ticket.lease_token)
        backups.record(cursor, backup_id=backup.backup_id, size=size)
        return backups.get(cursor, backup_id=backup.backup_id)
