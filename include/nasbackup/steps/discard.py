"""Undo a backup that will not be finished. The old base still stands: the next run is incremental."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from nasbackup.catalog import backups, leases, repositories
from nasbackup.errors import NasBackupError
from nasbackup.hypervisor import Hypervisor, checkpoints, job, quiescing
from nasbackup.model import Backup, BackupStatus
from nasbackup.nas import publish
from nasbackup.nas.watchdog import watched
from nasbackup.steps.delete import let_parent_fall
from nasbackup.steps.removable import Objections
from nasbackup.steps.ticket import Site

log = logging.getLogger(__name__)


def discard(site: Site, hypervisor: Hypervisor, *, backup: Backup, lease_token: int, why: str) -> bool:
    """Mark the backup Failed, then take away its job, its checkpoint and its files; thaw its guest.

    The mark comes first, in a transaction of its own: an orphan of the dead run cannot record it any more. Each
    is tried even when another fails; only when all went well is the backup noted as clean, so what
    remains is cleaned up by the next run. A parent that was delete-pending because of this child alone goes with it.
    Returns False, and has done nothing, when the backup is recorded by now: by an orphan of the same run, which has the
    same token. Raises the first error.
    """
    with site.database.transaction() as cursor:
        # The remains may lie in another repository than the one that the caller is at work on.
        site = replace(site, repository=repositories.get(cursor, name=backup.repository).repository)
        leases.renew(cursor, vm_uuid=backup.vm_uuid, vm=backup.vm, token=lease_token)
        backups.fail(cursor, backup_id=backup.backup_id, error=why)
        if backups.get(cursor, backup_id=backup.backup_id).status is not BackupStatus.FAILED:
            return False
    try_all(
        lambda: quiescing.thaw_left_frozen(hypervisor, vm_uuid=backup.vm_uuid),
        lambda: job.end(hypervisor, name=site.job_name(backup)),
        lambda: checkpoints.drop(
            hypervisor,
            vm_uuid=backup.vm_uuid,
            unneeded=[backup.checkpoint] if backup.checkpoint else [],
            perhaps_unknown=True,
        ),
        lambda: _remove_files(site, backup=backup),
    )
    with site.database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=backup.vm_uuid, vm=backup.vm, token=lease_token)
        backups.set_cleaned(cursor, backup_id=backup.backup_id)
    let_parent_fall(site, backup=backup, lease_token=lease_token)
    return True


def _remove_files(site: Site, *, backup: Backup) -> None:
    """Raises BackupNotDeletable where a backup is built on it: to a catalog of yesterday what was recorded since is
    unfinished.
    """
    root = site.root()
    Objections(store=site).require_none(backup=backup)
    watched(
        site.repository,
        f"removing the remains of {backup.external_id}",
        publish.discard,
        site.repository,
        root=root,
        external_id=backup.external_id,
    )


def try_all(*actions: Callable[[], object]) -> None:
    """Run every action; raise the first error after the last."""
    first: NasBackupError | None = None
    for action in actions:
        try:
            action()
        except NasBackupError as error:
            log.error("%s", error)
            first = first or error
    if first is not None:
        raise first
