"""What a restore that did not come to its end has left is taken away; the VM is as it was before."""

from __future__ import annotations

import logging
from pathlib import Path

from nasbackup.catalog import leases, restores
from nasbackup.catalog.restores import RestoreRow, RestoreState
from nasbackup.errors import RestoreRefused, VmBusy
from nasbackup.hypervisor import Hypervisor, connect
from nasbackup.hypervisor.xml import parse_disks
from nasbackup.model import Backup, Target
from nasbackup.restore import files
from nasbackup.restore.plan import STAGED, RestorePlan, from_document
from nasbackup.steps.restore.bench import Bench

log = logging.getLogger(__name__)


def give_back(bench: Bench, *, backup: Backup, key: str) -> None:
    """The end of a restore, whatever became of it: one that was not committed is undone, and the lease is returned."""
    lease = bench.lease(uuid=backup.vm_uuid, vm=backup.vm)
    try:
        token = lease.join()
    except VmBusy as busy:
        # The lease was given up while somebody was asked. What is left is undone by the VM's next restore.
        log.warning("%s", busy)
        return
    with bench.database.transaction() as cursor:
        row = restores.find(cursor, vm_uuid=backup.vm_uuid)
    if row is not None and row.key == key:
        clear(bench, vm_uuid=backup.vm_uuid, token=token)
    lease.leave()


def clear(bench: Bench, *, vm_uuid: str, token: int) -> str | None:
    """By the holder of the lease: undo the VM's restore if it was not committed, and forget it.

    Returns what was found, as a sentence. Raises FileTrouble, HostUnreachable: then it is still there to be cleared.
    """
    with bench.database.transaction() as cursor:
        row = restores.find(cursor, vm_uuid=vm_uuid)
    if row is None:
        return None
    plan = from_document(row.plan)
    with connect(bench.host) as hypervisor, hypervisor.doing("asking for the host's name"):
        here = hypervisor.connection.getHostname()
    if row.host == here:
        found = _clear(bench, row=row, plan=plan)
    elif row.state is RestoreState.MOVING:
        raise RestoreRefused(
            vm=row.vm,
            why=f"an earlier restore was cut off on host {row.host} and has to be undone there: by nas_reconcile, or "
            "by another restore on that host",
        )
    else:
        left = ", ".join(f"{file.path}{STAGED}{row.key}" for file in plan.files)
        found = f"A restore of {plan.backup} on host {row.host} did not come to its end; it may have left {left} there"
    with bench.database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=vm_uuid, vm=row.vm, token=token)
        restores.end(cursor, vm_uuid=vm_uuid, key=row.key)
    if found:
        log.warning("%s", found)
    return found


def _clear(bench: Bench, *, row: RestoreRow, plan: RestorePlan) -> str | None:
    if row.state is RestoreState.DONE:
        return None
    moved = row.state is RestoreState.MOVING
    if moved and not undo_moves(bench, plan=plan):
        return None  # it was at its end
    for file in plan.files:
        files.remove_staged(Path(file.path))
    if moved and plan.target is Target.IN_PLACE:
        return f"A restore of {plan.backup} into {plan.vm} was cut off; the VM has its old volumes again"
    return f"A restore of {plan.backup} did not come to its end; what it had written is removed"


def undo_moves(bench: Bench, *, plan: RestorePlan) -> bool:
    """What was restored is staged again, and the VM as it was. False: it is in use, or can be, and nothing is undone.

    Raises VmNotStopped, FileTrouble, HostUnreachable.
    """
    if plan.target is Target.IN_PLACE:
        if files.have_places(plan.files):
            return False
        there = [Path(name) for file in plan.files for name in (file.path, file.old) if name is not None]
        with files.kept_from_qemu(there, vm=plan.vm):
            files.give_back_places(plan.files)
        return True
    with connect(bench.host) as hypervisor:
        if _is_in_use(hypervisor, plan=plan):
            return False
    for file in plan.files:
        files.leave_new_place(file)
    return True


def _is_in_use(hypervisor: Hypervisor, *, plan: RestorePlan) -> bool:
    """The VM that was to be made is defined, or the disk that was to be attached is."""
    domain = hypervisor.domain_by_uuid(plan.vm_uuid)
    if domain is None or plan.target is Target.NEW_VM:
        return domain is not None
    with hypervisor.doing(f"reading the definition of VM {plan.vm}"):
        sources = {disk.source for flags in (0, 2) for disk in parse_disks(domain.XMLDesc(flags))}
    return plan.volumes[0].path in sources
