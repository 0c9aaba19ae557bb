"""decide_chain: validate, take the VM's lease, decide, announce the backup."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from nasbackup import chain, estimate, layout
from nasbackup.catalog import backups, due, leases
from nasbackup.catalog.standing import FAR_BACK, MOSTLY, Standing, standing
from nasbackup.errors import NasError, VmElsewhere
from nasbackup.hypervisor import Hypervisor, checkpoints, connect
from nasbackup.model import Backup, BackupStatus, ChainDecision, Lease, Mode, Vm, VmState
from nasbackup.nas import publish
from nasbackup.nas.watchdog import watched
from nasbackup.settings import Settings
from nasbackup.steps.cut_off import restore_explained
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

    A second call of the same run goes on with the row of the first. Raises RequestError (nothing was touched; of them
    VmElsewhere: what a migration left behind of the VM would become its newest backup, unless a full was asked for),
    VmBusy (another run holds the lease), RestoreCutOff, NotARepository, HostUnreachable, RepositoryFull, HostNotReady,
    LeaseLost (a newer attempt has taken over; nothing was written).
    """
    with connect(site.host) as hypervisor:
        with restore_explained(site, hypervisor, vm=request.vm):
            vm = observe_vm(hypervisor, request=request)
        _require_here(site, vm=vm, mode=request.mode)
        site.root()
        with site.database.autocommit() as cursor:
            lease = leases.acquire_and_register(cursor, vm_uuid=vm.uuid, vm=vm.name, host=site.host.name, holder=run_id)
        try:
            backup = None
            when, stands = _free_second(site, hypervisor, vm=vm, now=now)
            if stands.unfinished:
                backup = _resume(site, hypervisor, unfinished=stands.unfinished, lease=lease, run_id=run_id)
                if backup is None:  # cleaning up has taken its time
                    when, stands = _free_second(site, hypervisor, vm=vm, now=now)
            if backup is None:
                decision = _decide(
                    site, hypervisor, vm=vm, request=request, settings=settings, stands=stands, when=when
                )
                backup = _announce(
                    site,
                    vm=vm,
                    decision=decision,
                    request=as_document(request, settings=settings),
                    lease=lease,
                    when=when,
                )
        except BaseException:
            with site.database.transaction() as cursor:
                leases.release(cursor, vm_uuid=vm.uuid, token=lease.token)
            raise
    log.info("%s: %s", backup.external_id, backup.explanation)
    return _ticket(backup, lease=lease), backup


def _require_here(site: Site, *, vm: Vm, mode: Mode) -> None:
    """Not where only a stopped definition is, while the VM is on another host. Raises VmElsewhere."""
    if vm.state is not VmState.STOPPED:
        return
    with site.database.reading() as cursor:
        known = due.states(cursor, vm_uuids=[vm.uuid]).get(vm.uuid)
    if known is None or not known.is_left_behind(host=site.host.name, state=vm.state):
        return
    if mode is not Mode.FULL:
        raise VmElsewhere(vm=vm.name, host=site.host.name, seen_on=known.seen_on)
    log.warning(
        "%s was last seen on host %s; what is here is backed up, since a full was asked for", vm.name, known.seen_on
    )


def decide_again(site: Site, hypervisor: Hypervisor, *, ticket: Ticket, backup: Backup) -> Backup:
    """Make the decision anew, before anything was begun: the VM was started or stopped since."""
    request, settings = request_of(backup), settings_of(backup)
    vm = observe_vm(hypervisor, request=request)
    when = backup.created_at
    stands = _stands(site, vm=vm, when=when)
    decision = _decide(site, hypervisor, vm=vm, request=request, settings=settings, stands=stands, when=when)
    with site.database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=ticket.vm_uuid, vm=ticket.vm, token=ticket.lease_token)
        backups.replan(cursor, backup_id=backup.backup_id, decision=decision)
        again = backups.get(cursor, backup_id=backup.backup_id)
    log.info("The VM is %s now, not %s; decided anew: %s", vm.state, backup.vm_state, again.explanation)
    return again


def _resume(
    site: Site, hypervisor: Hypervisor, *, unfinished: Sequence[int], lease: Lease, run_id: str
) -> Backup | None:
    """The row that an earlier attempt of this run wrote; what other, dead runs left is cleaned up first."""
    with site.database.reading() as cursor:
        remains = backups.get_many(cursor, backup_ids=unfinished)
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
        root = site.root()
        with site.database.transaction() as cursor:
            # An orphan that wakes here must not take the row from the attempt that has taken over.
            leases.renew(cursor, vm_uuid=mine.vm_uuid, vm=mine.vm, token=lease.token)
            backups.adopt(cursor, backup_id=mine.backup_id, lease_token=lease.token)
        # Perhaps published, and not recorded: under the new token nobody can do that any more, and it is made again.
        watched(
            site.repository,
            "removing an earlier try",
            publish.discard,
            site.repository,
            root=root,
            external_id=mine.external_id,
        )
    return mine


def _free_second(site: Site, hypervisor: Hypervisor, *, vm: Vm, now: datetime | None) -> tuple[datetime, Standing]:
    """Names carry seconds, backups may be closer together (or the clock went back): the next second that is free.

    And how the VM stands, which comes in the same answer.
    """
    existing = checkpoints.names(hypervisor.domain(name=vm.name))
    when = (now or datetime.now(UTC)).replace(microsecond=0)
    while layout.checkpoint_name(when=when) in existing or (stands := _stands(site, vm=vm, when=when)).is_taken:
        when += timedelta(seconds=1)
    return when, stands


def _stands(site: Site, *, vm: Vm, when: datetime, backups: int = MOSTLY) -> Standing:
    with site.database.reading() as cursor:
        return standing(
            cursor,
            vm_uuid=vm.uuid,
            repository=site.repository.name,
            external_id=layout.external_id(vm=vm.name, when=when),
            checkpoint=layout.checkpoint_name(when=when),
            backups=backups,
        )


def _decide(
    site: Site,
    hypervisor: Hypervisor,
    *,
    vm: Vm,
    request: BackupRequest,
    settings: Settings,
    stands: Standing,
    when: datetime,
) -> ChainDecision:
    """The decision, for which there is room. Raises RepositoryFull, HostNotReady."""
    state = chain_state(hypervisor, vm=vm, request=request, settings=settings, stands=stands)
    decision = chain.decide_chain(
        state, new_checkpoint=layout.checkpoint_name(when=when), new_chain_id=str(uuid.uuid4())
    )
    layers = estimate.layers_of(stands.recent)
    if stands.has_older and not estimate.are_enough(decision.volumes, history=layers):
        layers = estimate.layers_of(_stands(site, vm=vm, when=when, backups=FAR_BACK).recent)
    require_room(site, vm=vm, decision=decision, layers=layers)
    return decision


def _announce(
    site: Site, *, vm: Vm, decision: ChainDecision, request: Mapping[str, Any], lease: Lease, when: datetime
) -> Backup:
    with site.database.autocommit() as cursor:
        return backups.open_backup(
            cursor,
            decision=decision,
            external_id=layout.external_id(vm=vm.name, when=when),
            vm_uuid=vm.uuid,
            vm=vm.name,
            host=site.host.name,
            repository=site.repository.name,
            request=request,
            run_id=lease.holder,
            lease_token=lease.token,
            created_at=when,
        )


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
