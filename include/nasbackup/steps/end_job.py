"""end_job: the teardown. Whatever happened, afterwards the guest has no job and the VM no lease."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nasbackup.catalog import backups, leases
from nasbackup.errors import LeaseLost, NasError
from nasbackup.hypervisor import Hypervisor, connect, inventory, job, quiescing
from nasbackup.model import Backup, BackupStatus, VmState
from nasbackup.steps.bitmaps import drop_unneeded
from nasbackup.steps.discard import discard, try_all
from nasbackup.steps.ticket import Site, Ticket


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What end_job found and did."""

    external_id: str
    status: BackupStatus
    dropped_checkpoints: Sequence[str] = ()
    note: str = ""
    try_again: bool = False
    """The backup failed because the VM was started or stopped meanwhile: a new run has every chance."""


def end_job(site: Site, *, ticket: Ticket, why_failed: str = "the run failed") -> Ending:
    """End the libvirt job; drop checkpoints that nothing needs any more, or undo a backup that was not recorded.

    When the host could not be cleaned up the lease stays: a second call does the rest, or, once the lease has
    expired, the next run. Without the lease (another run took over and cleaned up) nothing is touched. Raises the
    first error met.
    """
    with site.database.transaction() as cursor:
        backup = backups.get(cursor, backup_id=ticket.backup_id)
        try:
            leases.renew(cursor, vm_uuid=ticket.vm_uuid, vm=ticket.vm, token=ticket.lease_token)
        except LeaseLost:
            return Ending(
                external_id=backup.external_id,
                status=backup.status,
                note="the lease was given back or taken over before: nothing to do",
            )
    dropped: list[str] = []
    vm_changed = False
    try:
        with connect(site.host) as hypervisor:
            recorded = backup.status is BackupStatus.BACKED_UP
            if not recorded:
                vm_changed = _vm_changed(site, hypervisor, backup=backup)
                recorded = not discard(site, hypervisor, backup=backup, lease_token=ticket.lease_token, why=why_failed)
            if recorded:
                try_all(
                    lambda: quiescing.thaw_left_frozen(hypervisor, vm_uuid=backup.vm_uuid),
                    lambda: job.end(hypervisor, name=site.job_name(backup)),
                    lambda: dropped.extend(drop_unneeded(site.database, hypervisor, vm_uuid=backup.vm_uuid)),
                )
    except BaseException as error:
        with site.database.transaction() as cursor:
            # The mark at least must be set. Who has lost the lease meanwhile writes nothing.
            leases.renew(cursor, vm_uuid=ticket.vm_uuid, vm=ticket.vm, token=ticket.lease_token)
            backups.fail(cursor, backup_id=ticket.backup_id, error=why_failed)
            if isinstance(error, NasError):
                # The guest is free; files on a NAS that is away wait for the next run, which must not wait for us.
                leases.release(cursor, vm_uuid=ticket.vm_uuid, token=ticket.lease_token)
        raise
    with site.database.transaction() as cursor:
        leases.release(cursor, vm_uuid=ticket.vm_uuid, token=ticket.lease_token)
    with site.database.transaction() as cursor:
        status = backups.get(cursor, backup_id=ticket.backup_id).status
    return Ending(
        external_id=backup.external_id,
        status=status,
        dropped_checkpoints=tuple(dropped),
        try_again=status is BackupStatus.FAILED and vm_changed,
    )


def _vm_changed(site: Site, hypervisor: Hypervisor, *, backup: Backup) -> bool:
    """Whether the point in time was lost because the VM started, stopped or restarted."""
    domain = hypervisor.domain_by_uuid(backup.vm_uuid)
    if domain is None or backup.consistency is None:  # the point in time was never fixed
        return False
    if inventory.state_of(domain).has_qemu != backup.vm_state.has_qemu:
        return True
    running = backup.vm_state is not VmState.STOPPED
    return running and job.running_job(hypervisor, vm_uuid=backup.vm_uuid) is None
