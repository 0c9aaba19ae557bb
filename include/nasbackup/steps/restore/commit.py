"""commit: the restored images become a new VM, the VM's own volumes, or a new disk; as a whole or not at all."""

from __future__ import annotations

import logging
import os
import shlex
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasbackup.catalog import Database, leases, restores, vms
from nasbackup.catalog.restores import RestoreState
from nasbackup.errors import (
    DiskNotAttached,
    HypervisorError,
    NasBackupError,
    RestoredNotStarted,
    VerifyFailed,
    VmNotStopped,
)
from nasbackup.hypervisor import Hypervisor, connect, define, machine_state
from nasbackup.machine import StateKind
from nasbackup.model import Backup, Target
from nasbackup.nas import state
from nasbackup.nas.durable import write_durably
from nasbackup.nas.watchdog import watched
from nasbackup.restore import files
from nasbackup.restore.image import locate
from nasbackup.restore.plan import RestorePlan
from nasbackup.steps.bitmaps import drop_unneeded
from nasbackup.steps.restore.bench import Bench
from nasbackup.steps.restore.in_place import require_same
from nasbackup.steps.restore.plan import at_next_start, described
from nasbackup.steps.restore.undo import undo_moves

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RestoreResult:
    """``kept``: the old volumes, under the names that they have now."""

    backup: str
    target: Target
    vm: str
    vm_uuid: str
    volumes: dict[str, str]
    """Name -> file."""
    kept: tuple[str, ...] = ()
    attached: str | None = None
    started: bool = False
    notes: tuple[str, ...] = ()


def result_document(result: RestoreResult) -> dict[str, Any]:
    """In JSON: the public form (docs/restore.md)."""
    return {
        "external_id": result.backup,
        "target": result.target.value,
        "vm": result.vm,
        "vm_uuid": result.vm_uuid,
        "volumes": [{"name": name, "file": path} for name, path in result.volumes.items()],
        "kept": list(result.kept),
        "attached": result.attached,
        "started": result.started,
        "notes": list(result.notes),
    }


def commit(bench: Bench, *, backup: Backup, key: str) -> RestoreResult:
    """Define, swap or attach. A second call goes on where the first was cut off, or finds it done.

    After an error the VM is as it was (RestoredNotStarted excepted: the restore itself is done; DiskNotAttached: the
    image is). Raises VerifyFailed (a volume is not restored yet), VmNotStopped, RestoreRefused, VmExists, TargetExists,
    FileTrouble, HypervisorError.
    """
    lease = bench.lease(uuid=backup.vm_uuid, vm=backup.vm)
    lease.join()
    with bench.database.transaction() as cursor:  # a new token: an orphan of an earlier try writes nothing any more
        token = leases.acquire(cursor, vm_uuid=backup.vm_uuid, vm=backup.vm, holder=bench.holder).token
    plan = bench.load(backup, key=key)
    with connect(bench.host) as hypervisor:
        if _state(bench.database, backup=backup, key=key) is not RestoreState.DONE:
            try:
                _commit(bench, hypervisor, backup=backup, plan=plan, token=token)
            except NasBackupError:
                # What was restored stays staged: a retry needs not read it from the NAS again.
                moving = _state(bench.database, backup=backup, key=key) is RestoreState.MOVING
                if moving and undo_moves(bench, plan=plan):
                    _set_state(bench, backup=backup, plan=plan, token=token, state=RestoreState.STAGING)
                raise
        return _after(bench, hypervisor, plan=plan)


def _commit(bench: Bench, hypervisor: Hypervisor, *, backup: Backup, plan: RestorePlan, token: int) -> None:
    moving = _state(bench.database, backup=backup, key=plan.key) is RestoreState.MOVING
    if not moving:
        _stage_state(bench, backup=backup, plan=plan)
        for file in plan.files:
            if not Path(file.staged).exists():
                raise VerifyFailed(file=file.staged, problem="it is not restored yet; run that step again")
    if plan.target is Target.IN_PLACE:
        _swap(bench, hypervisor, backup=backup, plan=plan, token=token, moving=moving)
        return
    _set_state(bench, backup=backup, plan=plan, token=token, state=RestoreState.MOVING)
    for file in plan.files:
        files.take_new_place(file)
    if plan.target is Target.NEW_VM:
        assert plan.definition is not None
        define.define(hypervisor, definition=plan.definition, name=plan.vm, uuid=plan.vm_uuid)
    else:
        try:
            _attach(hypervisor, plan=plan)
        except DiskNotAttached:  # what took hours is there, under its name: it stays, and a retry attaches it
            _set_state(bench, backup=backup, plan=plan, token=token, state=RestoreState.DONE)
            raise
    _set_state(bench, backup=backup, plan=plan, token=token, state=RestoreState.DONE)


def _attach(hypervisor: Hypervisor, *, plan: RestorePlan) -> define.Attached:
    """Once, however often it is called. Raises DiskNotAttached."""
    (volume,) = plan.volumes
    try:
        domain = hypervisor.domain(name=plan.vm)
        return define.attach(hypervisor, domain=domain, file=Path(volume.path), image_format=volume.format)
    except NasBackupError as error:
        raise DiskNotAttached(
            volume=volume.name,
            path=volume.path,
            vm=plan.vm,
            reason=str(error).rstrip("."),
            command=_attach_by_hand(hypervisor, plan=plan),
        ) from error


def _attach_by_hand(hypervisor: Hypervisor, *, plan: RestorePlan) -> str:
    """Into the definition, which takes what a running VM does not: a bus without hot plug, or without a free slot."""
    (volume,) = plan.volumes
    where = ["TARGET"]
    with suppress(NasBackupError):
        place = define.place_for(hypervisor, domain=hypervisor.domain(name=plan.vm))
        where = [place.target, "--targetbus", place.bus]
    words = ["virsh", "attach-disk", plan.vm, volume.path, *where]
    return shlex.join([*words, "--driver", "qemu", "--subdriver", volume.format, "--config"])


def _swap(bench: Bench, hypervisor: Hypervisor, *, backup: Backup, plan: RestorePlan, token: int, moving: bool) -> None:
    """While nobody can start the VM: the old volumes go aside, the new ones take their places.

    First, and for good, the VM loses its active checkpoints: its next backup is a full whatever happens here.
    """
    if moving and files.have_places(plan.files):  # an earlier try; the VM may run by now
        _set_state(bench, backup=backup, plan=plan, token=token, state=RestoreState.DONE)
        return
    there = [Path(name) for file in plan.files for name in (file.path, file.old) if name is not None]
    with files.kept_from_qemu(there, vm=plan.vm):
        if moving:
            _require_stopped(hypervisor, plan=plan)
        else:
            require_same(hypervisor, backup=backup, plan=plan)
            for file in plan.files:
                _take_owner(Path(file.path), to=Path(file.staged))
        with bench.database.transaction() as cursor:
            leases.renew(cursor, vm_uuid=backup.vm_uuid, vm=backup.vm, token=token)
            restores.set_state(cursor, vm_uuid=backup.vm_uuid, vm=backup.vm, key=plan.key, state=RestoreState.MOVING)
            vms.clear_active_checkpoint(cursor, vm_uuid=backup.vm_uuid)
        files.take_places(plan.files)
        _set_state(bench, backup=backup, plan=plan, token=token, state=RestoreState.DONE)


def _after(bench: Bench, hypervisor: Hypervisor, *, plan: RestorePlan) -> RestoreResult:
    """What may be done again, and whose failure takes nothing back."""
    kept = [file.old for file in plan.files if file.old is not None]
    if plan.target is Target.IN_PLACE:
        # Checkpoints are of the old images, and libvirt still has a list of them.
        drop_unneeded(bench.database, hypervisor, vm_uuid=plan.vm_uuid)
        if not plan.keep_old:
            for old in kept:
                with files.doing("Removing", Path(old)):
                    files.remove(Path(old))
            kept = []
    if plan.pool is not None:
        define.refresh_pool(hypervisor, pool=plan.pool)
    if plan.start:
        try:
            define.start(hypervisor, uuid=plan.vm_uuid, name=plan.vm)
        except HypervisorError as error:
            raise RestoredNotStarted(vm=plan.vm, reason=error.data["reason"]) from error
    attached = _attach(hypervisor, plan=plan) if plan.target is Target.VOLUME else None
    notes = plan.notes
    if attached is not None:  # the plan's note was of that time: the VM may have been started or shut down since
        notes = (at_next_start(attached),) if attached.waits else ()
    return RestoreResult(
        backup=plan.backup,
        target=plan.target,
        vm=plan.vm,
        vm_uuid=plan.vm_uuid,
        volumes={volume.name: volume.path for volume in plan.volumes},
        kept=tuple(kept),
        attached=attached.target if attached is not None else None,
        started=plan.start,
        notes=notes,
    )


def _state(database: Database, *, backup: Backup, key: str) -> RestoreState:
    with database.transaction() as cursor:
        return restores.require(cursor, vm_uuid=backup.vm_uuid, vm=backup.vm, key=key).state


def _set_state(bench: Bench, *, backup: Backup, plan: RestorePlan, token: int, state: RestoreState) -> None:
    with bench.database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=backup.vm_uuid, vm=backup.vm, token=token)
        restores.set_state(cursor, vm_uuid=backup.vm_uuid, vm=backup.vm, key=plan.key, state=state)


def _require_stopped(hypervisor: Hypervisor, *, plan: RestorePlan) -> None:
    domain = hypervisor.domain_by_uuid(plan.vm_uuid)
    with hypervisor.doing("reading the VM's state"):
        if domain is not None and domain.isActive():
            raise VmNotStopped(vm=plan.vm, state="running")


def _stage_state(bench: Bench, *, backup: Backup, plan: RestorePlan) -> None:
    """The machine's state is small: it is staged here, verified by its digest."""
    if not plan.state:
        return
    located = locate(bench.database, external_id=backup.external_id, reader=bench.holder)
    saved = {entry.kind: entry for entry in described(located).saved}
    for file in plan.state:
        content = watched(
            located.repository, f"reading {file.kind}", state.load, located.directory, entry=saved[file.kind]
        )
        staged = Path(file.staged)
        with files.doing("Writing", staged):
            files.remove_staged(Path(file.path))
            staged.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
            if file.kind is StateKind.NVRAM:
                write_durably(staged, content)
                staged.chmod(0o600)
                continue
            try:
                machine_state.unpack(content, to=staged)
            except tarfile.TarError as error:
                raise VerifyFailed(file=saved[file.kind].file, problem=f"it cannot be unpacked: {error}") from error


def _take_owner(old: Path, *, to: Path) -> None:
    """Whoever could use the old file can use the new one. (libvirt gives images to QEMU's user when the VM starts.)"""
    with files.doing("Reading", old):
        if to.is_dir() or not old.exists():
            return
        status = old.stat()
        to.chmod(status.st_mode & 0o7777)
        if (status.st_uid, status.st_gid) != (to.stat().st_uid, to.stat().st_gid):
            with suppress(PermissionError):  # not root: it stays ours, and libvirt sees to it
                os.chown(to, status.st_uid, status.st_gid)
