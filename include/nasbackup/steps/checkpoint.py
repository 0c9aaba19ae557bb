"""checkpoint: fix the point in time for all volumes at once, and open them for reading."""

from __future__ import annotations

import logging
from pathlib import Path

from nasbackup.catalog import backups, leases
from nasbackup.chain import can_have_bitmap
from nasbackup.hypervisor import Hypervisor, checkpoints, connect, inventory, job, machine_state, offline
from nasbackup.hypervisor.xml import BackupDisk
from nasbackup.model import Backup, BackupType, BackupVolume, Consistency, Quiesce, VmState
from nasbackup.nas import publish
from nasbackup.nas.watchdog import watched
from nasbackup.steps.decide import decide_again
from nasbackup.steps.ticket import Site, Ticket, base_checkpoint

log = logging.getLogger(__name__)


def checkpoint(site: Site, *, ticket: Ticket, quiesce: Quiesce) -> Backup:
    """Begin the one backup job with the new checkpoint in it; of a stopped VM, begin to record in its images.

    A VM that was started or stopped since the decision is decided on anew. A second call finds what the first
    began. Raises JobLost, ForeignJob, GuestNotFrozen, VmStarted, HostNotReady, NasIo, LeaseLost; after an error
    there is no job and no new checkpoint.
    """
    backup = site.load(ticket)
    with connect(site.host) as hypervisor:
        state = inventory.state_of(hypervisor.domain(name=backup.vm))
        if state.has_qemu != backup.vm_state.has_qemu:
            backup = decide_again(site, hypervisor, ticket=ticket, backup=backup)
        definition = inventory.domain_definition(hypervisor, name=backup.vm)
        machine = machine_state.read(definition, uuid=backup.vm_uuid)
        for problem in machine.missing:
            log.warning("%s: %s", backup.vm, problem)
        watched(
            site.repository,
            "creating the directory",
            publish.prepare,
            site.repository,
            root=site.root(),
            external_id=backup.external_id,
            domain_xml=definition,
            machine=machine,
        )
        if backup.vm_state is VmState.STOPPED:
            consistency = _begin_stopped(site, hypervisor, backup=backup)
        else:
            consistency = _begin_running(site, hypervisor, backup=backup, quiesce=quiesce)
    with site.database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=ticket.vm_uuid, vm=ticket.vm, token=ticket.lease_token)
        backups.set_consistency(cursor, backup_id=backup.backup_id, consistency=consistency)
        return backups.get(cursor, backup_id=backup.backup_id)


def _begin_running(site: Site, hypervisor: Hypervisor, *, backup: Backup, quiesce: Quiesce) -> Consistency:
    name, base = site.job_name(backup), base_checkpoint(site, backup)
    if not job.is_begun(hypervisor, name=name, checkpoint=backup.checkpoint):
        _forget_earlier_point_in_time(site, backup=backup)
    disks = [
        BackupDisk(
            target=volume.target,
            scratch=name.scratch(volume.target),
            incremental=base if volume.type is BackupType.INCREMENTAL else None,
            has_bitmap=backup.checkpoint is not None and _can_have_bitmap(volume),
        )
        for volume in backup.volumes
    ]
    return job.begin(hypervisor, name=name, disks=disks, checkpoint=backup.checkpoint, quiesce=quiesce)


def _begin_stopped(site: Site, hypervisor: Hypervisor, *, backup: Backup) -> Consistency:
    """Nothing writes to the images of a stopped VM: the point in time is now, for as long as it stays stopped."""
    domain = hypervisor.domain(name=backup.vm)
    _forget_earlier_point_in_time(site, backup=backup)
    recorded = [volume for volume in backup.volumes if _can_have_bitmap(volume)]
    if backup.checkpoint is not None and recorded:
        for volume in recorded:
            offline.add_bitmap(Path(volume.source), name=backup.checkpoint, vm=backup.vm)
        checkpoints.define(
            hypervisor, domain=domain, name=backup.checkpoint, targets=[volume.target for volume in recorded]
        )
    with site.database.transaction() as cursor:
        for volume in backup.volumes:
            stamp = offline.stamp(Path(volume.source))
            backups.set_source_stamp(cursor, backup_id=backup.backup_id, volume=volume.name, stamp=stamp)
    # Had it been started in between, the stamps would be those of its images in use.
    offline.require_stopped(hypervisor, domain=domain)
    return inventory.consistency_of_stopped(domain)


def _forget_earlier_point_in_time(site: Site, *, backup: Backup) -> None:
    """Volumes copied under an earlier attempt of this step must not be recorded beside those of the new one."""
    with site.database.transaction() as cursor:
        backups.void_attempts(cursor, backup_id=backup.backup_id)


def _can_have_bitmap(volume: BackupVolume) -> bool:
    return can_have_bitmap(image_format=volume.format, source=volume.source)
