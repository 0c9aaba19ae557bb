"""In place: the VM as it is now, and whether its disks are still those that the plan was made for."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from nasbackup.errors import RestoreRefused, VmNotStopped
from nasbackup.hypervisor import Hypervisor, inventory, machine_state, xml
from nasbackup.model import Backup, BackupVolume, Vm
from nasbackup.restore.plan import PlannedVolume, RestorePlan, in_place_files, is_running


def matched(
    hypervisor: Hypervisor, *, backup: Backup, chosen: Sequence[BackupVolume], whole: bool, key: str, stamp: str = ""
) -> tuple[Vm, tuple[PlannedVolume, ...]]:
    """The stopped VM, and each volume in the place of its disk. ``stamp``: of the name that the old ones get.

    Raises RestoreRefused, VmNotStopped.
    """
    vm = vm_in_place(hypervisor, backup=backup)
    volumes = in_place_files(backup, chosen, vm=vm, whole=whole, key=key, stamp=stamp)
    for volume in volumes:
        path = Path(volume.path)
        if path.is_symlink() or not path.is_file():
            raise RestoreRefused(
                vm=vm.name,
                why=f"{path} is no plain file (a link, or a block device), and cannot be replaced by one: restore to a "
                "new VM; or restore to images, write the image there with `qemu-img convert -n -f qcow2 -O "
                f"{volume.format} IMAGE {shlex.quote(str(path))}`, and have the next backup be mode=full",
            )
    return vm, volumes


def require_same(hypervisor: Hypervisor, *, backup: Backup, plan: RestorePlan) -> None:
    """The disks are still those of the plan: somebody may have been asked for hours, and then much was copied.

    A disk that was moved, resized or converted meanwhile would be left as it is, and a stale file replaced. Raises
    RestoreRefused, VmNotStopped.
    """
    names = {volume.name for volume in plan.volumes}
    chosen = [volume for volume in backup.volumes if volume.name in names]
    vm, now = matched(hypervisor, backup=backup, chosen=chosen, whole=plan.whole, key=plan.key)
    found = {volume.name: (volume.path, volume.format, volume.virtual_size) for volume in now}
    changed = [
        f"volume {volume.name} was {volume.path} ({volume.format}, {volume.virtual_size} bytes)"
        for volume in plan.volumes
        if found.get(volume.name) != (volume.path, volume.format, volume.virtual_size)
    ]
    places = machine_state.places(inventory.domain_definition(hypervisor, name=vm.name), uuid=vm.uuid)
    changed += [f"{file.kind} was {file.path}" for file in plan.state if places.get(file.kind) != file.path]
    if changed:
        raise RestoreRefused(
            vm=vm.name,
            why=f"it was changed since the restore was planned ({'; '.join(changed)}): begin the restore again",
        )


def vm_in_place(hypervisor: Hypervisor, *, backup: Backup) -> Vm:
    """The backup's VM, stopped and without anything that its old volumes are needed for. Raises RestoreRefused,
    VmNotStopped.
    """
    domain = hypervisor.domain_by_uuid(backup.vm_uuid)
    if domain is None:
        raise RestoreRefused(
            vm=backup.vm,
            why=f"host {hypervisor.host.name} does not define it (UUID {backup.vm_uuid}): restore to a new VM",
        )
    with hypervisor.doing(f"reading VM {domain.name()}"):
        state_now = inventory.state_of(domain)
        if state_now.has_qemu:
            raise VmNotStopped(vm=domain.name(), state=state_now)
        if domain.hasManagedSaveImage():
            raise RestoreRefused(
                vm=domain.name(),
                why="its memory is saved (virsh managedsave) and would wake up on other disks: start it and shut it "
                "down, or `virsh managedsave-remove` it",
            )
        chained = xml.disks_with_a_chain(inventory.domain_definition(hypervisor, name=domain.name()))
        snapshots = [snapshot.getName() for snapshot in domain.listAllSnapshots()]
    if snapshots:
        raise RestoreRefused(
            vm=domain.name(),
            why=f"it has snapshots ({', '.join(snapshots)}), which restored volumes do not: delete them first",
        )
    if chained:
        raise RestoreRefused(
            vm=domain.name(),
            why=f"its definition names what lies below {', '.join(chained)} (<backingStore>), and restored volumes "
            "stand alone: take that out with `virsh edit`",
        )
    vm = inventory.inspect(hypervisor, name=domain.name())
    if is_running(vm):
        raise VmNotStopped(vm=vm.name, state=vm.state)
    return vm
