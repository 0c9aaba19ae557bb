"""Do what was planned, VM by VM, each under its lease and after a second look."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nasbackup.catalog import backups
from nasbackup.errors import NasBackupError, VmBusy
from nasbackup.hypervisor import Hypervisor, checkpoints, connect, job
from nasbackup.nas import publish
from nasbackup.reconcile.observe import observe
from nasbackup.reconcile.plan import Action, Kind, plan
from nasbackup.steps.delete import finish_as_holder
from nasbackup.steps.discard import discard
from nasbackup.steps.lease import held_lease
from nasbackup.steps.restore import Bench
from nasbackup.steps.restore.undo import clear
from nasbackup.steps.ticket import Site

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    action: Action
    done: bool
    note: str = ""


def act(site: Site, *, actions: Sequence[Action], holder: str) -> list[Outcome]:
    """Carry out those of ``actions`` that still hold once the VM's lease is ours; errors are noted, not raised."""
    outcomes = []
    with connect(site.host) as hypervisor:
        for uuid in dict.fromkeys(action.vm_uuid for action in actions if action.vm_uuid is not None):
            mine = [action for action in actions if action.vm_uuid == uuid]
            try:
                with held_lease(site.database, vm_uuid=uuid, vm=uuid, holder=holder) as token:
                    # What was seen without the lease may have been a run at its last step.
                    current = set(plan(observe(site, holder=holder)).actions)
                    for action in mine:
                        outcomes.append(_one(site, hypervisor, action=action, token=token, still=action in current))
            except VmBusy as busy:
                outcomes += [Outcome(action=action, done=False, note=str(busy)) for action in mine]
    return outcomes


def _one(site: Site, hypervisor: Hypervisor, *, action: Action, token: int, still: bool) -> Outcome:
    if not still:
        return Outcome(action=action, done=False, note="gone by itself meanwhile")
    try:
        _carry_out(site, hypervisor, action=action, token=token)
    except NasBackupError as error:
        log.error("%s %s: %s", action.kind, action.what, error)
        return Outcome(action=action, done=False, note=str(error))
    log.info("%s %s: %s", action.kind, action.what, action.why)
    return Outcome(action=action, done=True)


def _carry_out(site: Site, hypervisor: Hypervisor, *, action: Action, token: int) -> None:
    assert action.vm_uuid is not None
    if action.kind is Kind.UNDO_BACKUP:
        assert action.backup_id is not None
        with site.database.transaction() as cursor:
            backup = backups.get(cursor, backup_id=action.backup_id)
        discard(site, hypervisor, backup=backup, lease_token=token, why="its run died; cleaned up by nas_reconcile")
    elif action.kind is Kind.UNDO_RESTORE:
        clear(Bench(database=site.database, host=site.host, holder=""), vm_uuid=action.vm_uuid, token=token)
    elif action.kind is Kind.END_JOB:
        job.end(hypervisor, name=job.JobName(host=site.host, vm_uuid=action.vm_uuid, stamp=""))
    elif action.kind is Kind.DROP_CHECKPOINT:
        checkpoints.drop(hypervisor, vm_uuid=action.vm_uuid, unneeded=[action.what])
    elif action.kind is Kind.REMOVE_FILE:
        Path(action.what).unlink(missing_ok=True)
    elif action.kind is Kind.FINISH_DELETE:
        # It goes on with all deletions of the VM; of what another action asks for that one says what came of it.
        refused = finish_as_holder(site, vm_uuid=action.vm_uuid, lease_token=token).refused.get(action.what)
        if refused is not None:
            raise refused
    elif action.kind is Kind.REMOVE_DIRECTORY:
        publish.discard(site.repository, root=site.root(), external_id=action.what)
