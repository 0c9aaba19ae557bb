"""decide_chain: validate, take the VM's lease, decide, announce the backup."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from nasbackup import chain, layout
from nasbackup.catalog import Cursor, backups, history, leases, vms
from nasbackup.errors import NasError
from nasbackup.hypervisor import Hypervisor, checkpoints, connect
from nasbackup.model import Backup, BackupStatus, ChainDecision, Lease, Vm
from nasbackup.nas import publish
from nasbackup.nas.watchdog import watched
from nasbackup.settings import Settings
from nasbackup.steps.discard import discard
from nasbackup.steps.observe import chain_state, observe_vm
from nasbackup.steps.request import as_document, request_of, settings_of
from nasbackup.steps.room import require_room
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
        vm = observe_vm(hypervisor, request=request)
        site.root()
        with site.database.transaction() as cursor:
            lease = leases.acquire_and_register(cursor, vm_uuid=vm.uuid, vm=vm.name, host=site.host.name, holder=run_id)
            remains = backups.unfinished(cursor, vm_uuid=vm.uuid)
        try:
            backup = _resume(site, hypervisor, remains=remains, lease=lease, run_id=run_id) or _announce(
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


def decide_again(site: Site, hypervisor: Hypervisor, *, ticket: Ticket, backup: Backup) -> Backup:
    """Make the decision anew, before anything was begun: the VM was started or stopped since."""
    request, settings = request_of(backup), settings_of(backup)
    vm = observe_vm(hypervisor, request=request)
    decision = _decide(site, hypervisor, vm=vm, request=request, settings=settings, when=backup.created_at)
    with site.database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=ticket.vm_uuid, vm=ticket.vm, token=ticket.lease_token)
        backups.replan(cursor, backup_id=backup.backup_id, decision=decision)
        again = backups.get(cursor, backup_id=backup.backup_id)
    log.info("The VM is %s now, not %s; decided anew: %s", vm.state, backup.vm_state, again.explanation)
    return again


def _resume(
    site: Site, hypervisor: Hypervisor, *, remains: Sequence[Backup], lease: Lease, run_id: str
) -> Backup | None:
    """The row that an earlier attempt of this run wrote; what other, dead runs left is cleaned up first."""
    mine = None
    for backup in remains:
        if backup.run_id == run_id and backup.status is BackupStatus.BACKING_UP:
            mine = backup
        else:
            log.warning("%s was left unfinished by %s: cleaning up", backup.external_id, backup.run_id)
            try:
                discard(
                    site,
                    hypervisor,
                    backup=backup,
                    lease_token=lease.token,
                    why="its run died; cleaned up by the next run",
                )
            except NasError as error:
                # Its host side is clean. Files in another repository wait until that one is back.
                if backup.repository == site.repository.name:
                    raise
                log.warning("%s: its files are left: %s", backup.external_id, error)
    if mine is not None:
        with site.database.transaction() as cursor:
            backups.adopt(cursor, backup_id=mine.backup_id, lease_token=lease.token)
        # Perhaps published, and not recorded: under the new token nobody can do that any more, and it is made again.
        watched(
            site.repository,
            "removing an earlier try",
            publish.discard,
            site.repository,
            root=site.root(),
            external_id=mine.external_id,
        )
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
    existing = checkpoints.names(hypervisor.domain(name=vm.name))
    with site.database.reading() as cursor:
        when = _free_second(cursor, now=now, vm=vm, existing=existing)
    decision = _decide(site, hypervisor, vm=vm, request=request, settings=settings, when=when)
    with site.database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=vm.uuid, vm=vm.name, token=lease.token)
        return backups.open_backup(
            cursor,
            decision=decision,
            external_id=layout.external_id(vm=vm.name, when=when),
            vm_uuid=vm.uuid,
            host=site.host.name,
            repository=site.repository.name,
            request=as_document(request, settings=settings),
            run_id=run_id,
            lease_token=lease.token,
            created_at=when,
        )


def _decide(
    site: Site, hypervisor: Hypervisor, *, vm: Vm, request: BackupRequest, settings: Settings, when: datetime
) -> ChainDecision:
    """The decision, for which there is room. Raises RepositoryFull, HostNotReady."""
    state = chain_state(site, hypervisor, vm=vm, request=request, settings=settings)
    decision = chain.decide_chain(
        state, new_checkpoint=layout.checkpoint_name(when=when), new_chain_id=str(uuid.uuid4())
    )
    with site.database.reading() as cursor:
        layers = history.layer_sizes(cursor, vm_uuid=vm.uuid, repository=site.repository.name, plans=decision.volumes)
    require_room(site, vm=vm, decision=decision, layers=layers)
    return decision


def _free_second(cursor: Cursor, *, now: datetime, vm: Vm, existing: frozenset[str]) -> datetime:
    """Names carry seconds, backups may be closer together (or the clock went back): the next second that is free."""
    when = now.replace(microsecond=0)
    while (checkpoint := layout.checkpoint_name(when=when)) in existing or vms.is_taken(
        cursor, vm_uuid=vm.uuid, external_id=layout.external_id(vm=vm.name, when=when), checkpoint=checkpoint
    ):
        when += timedelta(seconds=1)
    return when


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
