"""What a decision depends on, gathered from the host and the catalog."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nasbackup import layout
from nasbackup.catalog.standing import Standing
from nasbackup.chain import ChainState
from nasbackup.errors import NothingToBackUp, UnknownVolume
from nasbackup.hypervisor import Hypervisor, checkpoints, inventory
from nasbackup.model import SkippedDisk, Vm, VmState, Volume
from nasbackup.settings import Settings
from nasbackup.steps.ticket import BackupRequest


def observe_vm(hypervisor: Hypervisor, *, request: BackupRequest) -> Vm:
    """The VM with the volumes that this backup is to hold.

    Raises UnknownVm, UnknownVolume (an exclusion that fits nothing), NothingToBackUp (no volume is left, or one
    cannot be backed up and is not excluded: a backup that silently lacks a disk is none).
    """
    vm = inventory.inspect(hypervisor, name=request.vm)
    vm = _without_excluded(vm, excluded=request.exclude_volumes)
    problems = [_why_not(volume, vm=vm, request=request) for volume in vm.volumes]
    refused = [f"{volume.target}: {why}" for volume, why in zip(vm.volumes, problems, strict=True) if why]
    if refused:
        raise NothingToBackUp(vm=vm.name, why="; ".join(refused) + " (or name it in exclude_volumes)")
    return vm


def chain_state(
    hypervisor: Hypervisor, *, vm: Vm, request: BackupRequest, settings: Settings, stands: Standing
) -> ChainState:
    """Everything that decide_chain looks at."""
    active, latest = stands.active_checkpoint, stands.latest
    usable = {}
    if active is not None and latest is not None and (vm.state.has_qemu or settings.stopped_incremental_enabled):
        covered = [volume.source for volume in latest.volumes]
        usable = checkpoints.usable_bitmaps(hypervisor, vm=vm.name, checkpoint=active, covered=covered)
    return ChainState(
        vm=vm, mode=request.mode, settings=settings, active_checkpoint=active, latest=latest, usable_bitmaps=usable
    )


def _without_excluded(vm: Vm, *, excluded: Sequence[str]) -> Vm:
    names = layout.volume_names(vm.volumes)
    known: dict[str, Volume | SkippedDisk] = {
        word: volume for volume in vm.volumes for word in (names[volume.source], volume.target, volume.source)
    }
    unsupported = [disk for disk in vm.skipped if disk.unsupported]
    known |= {disk.target: disk for disk in unsupported}
    for word in excluded:
        if word not in known:
            raise UnknownVolume(vm=vm.name, volume=word, known=", ".join(sorted(names.values())) or "none")
    dropped = {known[word].target for word in excluded}
    left_over = [f"{disk.target}: {disk.why}" for disk in unsupported if disk.target not in dropped]
    if left_over:
        raise NothingToBackUp(vm=vm.name, why="; ".join(left_over) + " (or name it in exclude_volumes)")
    volumes = tuple(volume for volume in vm.volumes if volume.target not in dropped)
    if not volumes:
        raise NothingToBackUp(vm=vm.name, why="every volume is excluded" if dropped else "it has no disk")
    return replace(vm, volumes=volumes)


def _why_not(volume: Volume, *, vm: Vm, request: BackupRequest) -> str | None:
    stopped = vm.state is VmState.STOPPED
    if volume.encrypted and stopped:
        return "an encrypted volume can be read only while the VM runs; start it"
    if stopped and not Path(volume.source).exists():
        return f"{volume.source} cannot be seen from here, and a stopped VM is read straight from its images; start it"
    if volume.encrypted and not request.allow_encrypted:
        return "it is encrypted and its backup would be plain text on the NAS; set allow_encrypted to allow that"
    return None
