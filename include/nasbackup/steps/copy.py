"""copy: one volume's extents from the point in time to the NAS."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from nasbackup import layout
from nasbackup.catalog import backups, leases
from nasbackup.catalog import progress as reports
from nasbackup.errors import HostNotReady, ReadFailed, RepositoryFull, TargetFull, TransferError
from nasbackup.hypervisor import connect, job, scratch
from nasbackup.model import Backup, BackupVolume
from nasbackup.nas import publish
from nasbackup.nas.watchdog import Follower, watched
from nasbackup.steps.request import request_of
from nasbackup.steps.source import source_of
from nasbackup.steps.ticket import Site, Ticket, partial_path
from nasbackup.transfer.copy import copy_layer
from nasbackup.transfer.pump import Progress

PROGRESS_SECONDS = 5.0
"""How often a copy reports, and shows its token: an orphan writes for this long at most after its lease was taken."""


def copy(
    site: Site, *, ticket: Ticket, volume: str, on_progress: Callable[[Progress], None] | None = None
) -> BackupVolume:
    """Copy the volume into a file of this attempt's own; the catalog names the attempt that counts.

    A second call reads the same point in time again, into another file. Raises JobLost (the guest shut down),
    ReadFailed, WriteFailed, TargetFull, LeaseLost, AttemptSuperseded.
    """
    backup = site.load(ticket)
    plan = volume_of(backup, name=volume)
    request = request_of(backup)
    source = source_of(site, backup=backup, volume=plan)
    source.require()
    attempt = uuid.uuid4().hex[:12]
    with site.database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=ticket.vm_uuid, vm=ticket.vm, token=ticket.lease_token)
        backups.claim_attempt(cursor, backup_id=backup.backup_id, volume=volume, attempt=attempt)
    partial = partial_path(site.root(), backup=backup)
    watched(
        site.repository,
        "removing earlier attempts",
        publish.remove_attempts,
        site.repository,
        partial=partial,
        file=plan.file,
    )
    follower = Follower(site.repository, f"copying {volume}")

    def follow(progress: Progress) -> None:
        if backup.vm_state.has_qemu:
            scratch.require_reserve(site.host)  # first: the guest does not wait for a catalog that does not answer
        with site.database.transaction() as cursor:
            leases.renew(cursor, vm_uuid=ticket.vm_uuid, vm=ticket.vm, token=ticket.lease_token)
            reports.report(
                cursor,
                backup_id=backup.backup_id,
                volume=volume,
                phase=progress.phase,
                done=progress.done,
                total=progress.total,
                seconds=progress.seconds,
            )
        source.require()
        follower.look((progress.phase, progress.done))
        if on_progress:
            on_progress(progress)

    try:
        with source.serve() as (uri, bitmap):
            done = copy_layer(
                source_uri=uri,
                target=partial / layout.attempt_file(file=plan.file, attempt=attempt),
                backing=plan.backing,
                virtual_size=plan.virtual_size,
                dirty_bitmap=bitmap,
                compression=request.compression,
                bandwidth=request.bandwidth,
                on_progress=follow,
                progress_every=PROGRESS_SECONDS,
            )
    except TargetFull as error:
        raise RepositoryFull(repository=site.repository.name, needs=error.needs, has=error.has) from error
    except HostNotReady:
        with connect(site.host) as hypervisor:
            job.end(hypervisor, name=site.job_name(backup))  # not left to end_job: the guest's writes would fail
        raise
    except ReadFailed:
        source.explain()
        raise
    except TransferError:
        source.require()  # a VM that stopped or started says more than a file that can't be written
        raise
    source.require()
    with site.database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=ticket.vm_uuid, vm=ticket.vm, token=ticket.lease_token)
        backups.set_copied(
            cursor,
            backup_id=backup.backup_id,
            volume=volume,
            attempt=attempt,
            bytes_read=done.bytes_read,
            bytes_written=done.bytes_written,
            digest=done.digest,
            seconds=done.seconds,
            compression=request.compression,
        )
        reports.finished(cursor, backup_id=backup.backup_id, volume=volume)
        return volume_of(backups.get(cursor, backup_id=backup.backup_id), name=volume)


def volume_of(backup: Backup, *, name: str) -> BackupVolume:
    return next(volume for volume in backup.volumes if volume.name == name)
