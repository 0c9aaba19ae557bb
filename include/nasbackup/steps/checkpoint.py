"""checkpoint: fix the point in time for all volumes at once, and open them for reading."""

from __future__ import annotations

from nasbackup.catalog import backups, leases
from nasbackup.chain import FORMATS_WITH_BITMAPS
from nasbackup.hypervisor import connect, inventory, job
from nasbackup.model import Backup, BackupVolume, Quiesce, VolumePlan
from nasbackup.nas import publish
from nasbackup.steps.ticket import Site, Ticket


def checkpoint(site: Site, *, ticket: Ticket, quiesce: Quiesce) -> Backup:
    """Begin the one backup job with the new checkpoint in it; the NAS directory is made first.

    A second call finds the job of the first. Raises JobLost (the VM stopped meanwhile), ForeignJob,
    GuestNotFrozen, HostNotReady, NasIo, LeaseLost; after an error there is no job and no new checkpoint.
    """
    backup = site.load(ticket)
    base = None
    if backup.parent_id is not None:
        with site.database.transaction() as cursor:
            base = backups.get(cursor, backup_id=backup.parent_id).checkpoint
    with connect(site.host) as hypervisor:
        publish.prepare(
            site.repository,
            root=site.root(),
            external_id=backup.external_id,
            domain_xml=inventory.domain_definition(hypervisor, name=backup.vm),
        )
        consistency = job.begin(
            hypervisor,
            name=site.job_name(backup),
            volumes=[_plan(volume) for volume in backup.volumes],
            formats_with_bitmaps=FORMATS_WITH_BITMAPS,
            checkpoint=backup.checkpoint,
            base_checkpoint=base,
            quiesce=quiesce,
        )
    with site.database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=ticket.vm_uuid, vm=ticket.vm, token=ticket.lease_token)
        backups.set_consistency(cursor, backup_id=backup.backup_id, consistency=consistency)
        return backups.get(cursor, backup_id=backup.backup_id)


def _plan(volume: BackupVolume) -> VolumePlan:
    return VolumePlan(
        name=volume.name,
        source=volume.source,
        target=volume.target,
        format=volume.format,
        file=volume.file,
        virtual_size=volume.virtual_size,
        type=volume.type,
        reason=volume.reason,
        backing=volume.backing,
    )
