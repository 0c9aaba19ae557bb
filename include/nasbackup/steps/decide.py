"""decide_chain: validate, take the VM's lease, decide, announce the backup."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from nasbackup import chain, layout
from nasbackup.catalog import backups, leases, vms
from nasbackup.errors import NothingToBackUp, UnknownVolume
from nasbackup.hypervisor import Hypervisor, checkpoints, connect, inventory
from nasbackup.model import Backup, BackupStatus, Lease, Vm
from nasbackup.settings import Settings
from nasbackup.steps.discard import discard
from nasbackup.steps.ticket import BackupRequest, Site, Ticket

log = logging.getLogger(__name__)


def decide_chain(
    site: Site, *, request: BackupRequest, settings: Settings, run_id: str, now: datetime | None = None
) -> tuple[Ticket, Backup]:
    """Decide what the next backup is and write its row; from then on its parent cannot be deleted.

    A second call of the same run goes on with the row of the first. Raises RequestError (nothing was touched),
    VmBusy (another run holds the lease), NotARepository, HostUnreachable.
    """
    with connect(site.host) as hypervisor:
        vm = without_excluded(inventory.inspect(hypervisor, name=request.vm), excluded=request.exclude_volumes)
        site.root()
        with site.database.transaction() as cursor:
            vms.register(cursor, uuid=vm.uuid, name=vm.name, host=site.host.name)
            lease = leases.acquire(cursor, vm_uuid=vm.uuid, vm=vm.name, holder=run_id)
        try:
            backup = _resume(site, hypervisor, lease=lease, run_id=run_id) or _announce(
                site,
                hypervisor,
                vm=vm,
                request=request,
                settings=settings,
                lease=lease,
                run_id=run_id,
                now=now or datetime.now(UTC),
            )
        except BaseException:
            with site.database.transaction() as cursor:
                leases.release(cursor, vm_uuid=vm.uuid, token=lease.token)
            raise
    log.info("%s: %s", backup.external_id, backup.explanation)
    return _ticket(backup, lease=lease), backup


def without_excluded(vm: Vm, *, excluded: Sequence[str]) -> Vm:
    """The VM without the volumes that the operator excludes by name, target or source path.

    Raises UnknownVolume for a name that fits nothing, NothingToBackUp when no volume is left, or when a disk
    that cannot be backed up is not excluded: a backup that silently lacks a disk is none.
    """
    names = layout.volume_names(vm.volumes)
    known = {
        word: volume.source for volume in vm.volumes for word in (names[volume.source], volume.target, volume.source)
    }
    unsupported = {disk.target: disk for disk in vm.skipped if disk.unsupported}
    for word in excluded:
        if word not in known and word not in unsupported:
            raise UnknownVolume(vm=vm.name, volume=word, known=", ".join(sorted(names.values())) or "none")
    left_over = [disk for target, disk in unsupported.items() if target not in excluded]
    if left_over:
        raise NothingToBackUp(
            vm=vm.name, why="; ".join(f"{disk.target}: {disk.why} (name it in exclude_volumes)" for disk in left_over)
        )
    dropped = {known[word] for word in excluded if word in known}
    volumes = tuple(volume for volume in vm.volumes if volume.source not in dropped)
    if not volumes:
        raise NothingToBackUp(vm=vm.name, why="every volume is excluded" if dropped else "it has no disk")
    return replace(vm, volumes=volumes)


def _resume(site: Site, hypervisor: Hypervisor, *, lease: Lease, run_id: str) -> Backup | None:
    """The row that an earlier attempt of this run wrote; what other, dead runs left is cleaned up first."""
    with site.database.transaction() as cursor:
        remains = backups.unfinished(cursor, vm_uuid=lease.vm_uuid)
    mine = None
    for backup in remains:
        if backup.run_id == run_id and backup.status is BackupStatus.BACKING_UP:
            mine = backup
        else:
            log.warning("%s was left unfinished by %s: cleaning up", backup.external_id, backup.run_id)
            discard(
                site, hypervisor, backup=backup, lease_token=lease.token, why="its run died; cleaned up by the next run"
            )
    if mine is not None:
        with site.database.transaction() as cursor:
            backups.adopt(cursor, backup_id=mine.backup_id, lease_token=lease.token)
    return mine


def _announce(
    site: Site,
    hypervisor: Hypervisor,
    *,
    vm: Vm,
    request: BackupRequest,
    settings: Settings,
    lease: Lease,
    run_id: str,
    now: datetime,
) -> Backup:
    repository = site.repository.name
    with site.database.transaction() as cursor:
        active = vms.active_checkpoint(cursor, vm_uuid=vm.uuid, repository=repository)
        latest = backups.latest_recorded(cursor, vm_uuid=vm.uuid, repository=repository)
        taken = vms.checkpoints_ever_made(cursor, vm_uuid=vm.uuid)
    usable = (
        checkpoints.usable_bitmaps(hypervisor, vm=vm.name, checkpoint=active) if active and vm.state.has_qemu else {}
    )
    state = chain.ChainState(
        vm=vm, mode=request.mode, settings=settings, active_checkpoint=active, latest=latest, usable_bitmaps=usable
    )
    # Names have seconds, backups may be closer together: the next free second is taken.
    when = now.replace(microsecond=0)
    taken |= checkpoints.names(hypervisor.domain(name=vm.name))
    with site.database.transaction() as cursor:
        while layout.checkpoint_name(when=when) in taken or backups.has_external_id(
            cursor, repository=repository, external_id=layout.external_id(vm=vm.name, when=when)
        ):
            when += timedelta(seconds=1)
        decision = chain.decide_chain(
            state, new_checkpoint=layout.checkpoint_name(when=when), new_chain_id=str(uuid.uuid4())
        )
        leases.renew(cursor, vm_uuid=vm.uuid, vm=vm.name, token=lease.token)
        backup_id = backups.open_backup(
            cursor,
            decision=decision,
            external_id=layout.external_id(vm=vm.name, when=when),
            vm_uuid=vm.uuid,
            host=site.host.name,
            repository=repository,
            run_id=run_id,
            lease_token=lease.token,
            created_at=when,
        )
        return backups.get(cursor, backup_id=backup_id)


def _ticket(backup: Backup, *, lease: Lease) -> Ticket:
    return Ticket(
        backup_id=backup.backup_id,
        external_id=backup.external_id,
        vm=backup.vm,
        vm_uuid=backup.vm_uuid,
        host=backup.host,
        repository=backup.repository,
        lease_token=lease.token,
    )
