"""plan: what will be written, where, and whether there is room; nothing is written yet."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from nasbackup.catalog import restores
from nasbackup.catalog.restores import RestoreState
from nasbackup.errors import BackupNotRestorable, ParamInvalid, RestoreRefused, TargetExists
from nasbackup.hypervisor import Hypervisor, connect, define, inventory, machine_state
from nasbackup.machine import StateKind
from nasbackup.model import Backup, BackupVolume, Target
from nasbackup.nas import state
from nasbackup.nas.watchdog import watched
from nasbackup.restore import files
from nasbackup.restore.definition import check_name, disk_sources, new_nvram_path, redefine
from nasbackup.restore.disks import DiskFile
from nasbackup.restore.image import Located, choose, image_bytes, locate
from nasbackup.restore.plan import (
    PlannedState,
    PlannedVolume,
    RestorePlan,
    RestoreRequest,
    Space,
    check_request,
    new_files,
    planned_state,
)
from nasbackup.steps.restore.bench import Bench
from nasbackup.steps.restore.in_place import matched
from nasbackup.steps.restore.undo import clear


def plan(bench: Bench, *, request: RestoreRequest, dry_run: bool = False) -> RestorePlan:
    """Check everything that can be checked; announce the restore. What an earlier one has left is undone first.

    The caller has joined the VM's lease. ``dry_run``: nothing is announced or undone. Raises RequestError (what was
    asked for is not possible, told with all reasons), BackupNotRestorable, VmNotStopped, NotEnoughSpace, TargetExists.
    """
    check_request(request)
    backup = bench.backup(request.backup)
    token = None if dry_run else bench.lease(uuid=backup.vm_uuid, vm=backup.vm).join()
    if token is not None:
        clear(bench, vm_uuid=backup.vm_uuid, token=token)
    else:
        _require_nothing_cut_off(bench, backup=backup)
    located = locate(bench.database, external_id=request.backup, reader=bench.holder)
    chosen = choose(located.backup, volumes=request.volumes)
    for volume in chosen:
        located.layers(volume)
    with connect(bench.host) as hypervisor:
        with hypervisor.doing("asking for the host's name"):
            host = hypervisor.connection.getHostname()
        made = _PLANNERS[request.target](hypervisor, request=request, located=located, chosen=chosen)
    measured = {volume.name: image_bytes(located, volume=volume) for volume in chosen}
    made = replace(made, volumes=tuple(replace(volume, needs=measured[volume.name]) for volume in made.volumes))
    made = replace(made, space=space_of(made))
    if not dry_run:
        with bench.database.transaction() as cursor:
            restores.begin(cursor, vm_uuid=backup.vm_uuid, key=request.key, host=host, plan=made.as_document())
    return made


def _require_nothing_cut_off(bench: Bench, *, backup: Backup) -> None:
    """For a dry run, which undoes nothing: what it would say of a VM without one of its volumes helps nobody."""
    with bench.database.transaction() as cursor:
        row = restores.find(cursor, vm_uuid=backup.vm_uuid)
    if row is not None and row.state is RestoreState.MOVING:
        raise RestoreRefused(
            vm=row.vm,
            why=f"a restore of {row.plan['backup']} was cut off, or is at its last step: a restore that is no dry run, "
            "or nas_reconcile, undoes it first",
        )


def described(located: Located) -> state.Described:
    """Raises NasIo, BackupNotRestorable (there is no definition that can be used)."""
    try:
        return watched(located.repository, "reading the definition", state.describe, located.directory)
    except OSError as error:
        raise BackupNotRestorable(
            backup=located.backup.external_id, why=f"{error.filename}: {error.strerror}"
        ) from error


def _new_vm(
    hypervisor: Hypervisor, *, request: RestoreRequest, located: Located, chosen: Sequence[BackupVolume]
) -> RestorePlan:
    backup, name = located.backup, request.new_name or located.backup.vm
    check_name(name)
    new_uuid = str(uuid.uuid4())
    define.require_free(hypervisor, name=name, uuid=new_uuid)
    found = described(located)
    volumes = _new(hypervisor, request=request, chosen=chosen, prefix=f"{name}-", suffix="")
    nvram = new_nvram_path(found.domain_xml, name=name)
    places = {StateKind.TPM: str(machine_state.TPM_STATES / new_uuid)}
    if nvram is not None:
        places[StateKind.NVRAM] = nvram
    saved = planned_state(found.saved, places=places, key=request.key, stamp=None)
    for file in saved:
        _require_nothing_at(file.path)
    has_nvram = any(file.kind is StateKind.NVRAM for file in saved)
    targets = {volume.source: volume.target for volume in chosen}
    definition = redefine(
        found.domain_xml,
        name=name,
        uuid=new_uuid,
        disks={
            volume.source: DiskFile(file=volume.path, format=volume.format, target=targets[volume.source])
            for volume in volumes
        },
        keep_macs=request.keep_macs,
        nvram=nvram if has_nvram else None,
        media=[source for source in disk_sources(found.domain_xml) if Path(source).exists()],
    )
    notes = [*found.missing, *definition.notes]
    if nvram is not None and not has_nvram:
        notes.append("the backup has no UEFI variables: the VM starts with those of the firmware's template")
    if definition.has_tpm and not any(file.kind is StateKind.TPM for file in saved):
        notes.append("the backup has no state of the TPM: the VM gets an empty one, and what was sealed stays sealed")
    return _plan(
        request,
        backup=backup,
        vm=name,
        vm_uuid=new_uuid,
        volumes=volumes,
        saved=saved,
        notes=notes,
        definition=definition.xml,
    )


def _in_place(
    hypervisor: Hypervisor, *, request: RestoreRequest, located: Located, chosen: Sequence[BackupVolume]
) -> RestorePlan:
    backup = located.backup
    whole = not request.volumes
    stamp = datetime.now(UTC).strftime("%Y.%m.%d.%H.%M.%S")
    vm, volumes = matched(hypervisor, backup=backup, chosen=chosen, whole=whole, key=request.key, stamp=stamp)
    saved: tuple[PlannedState, ...] = ()
    notes: list[str] = []
    if whole:
        found = described(located)
        current = inventory.domain_definition(hypervisor, name=vm.name)
        places = machine_state.places(current, uuid=vm.uuid)
        saved = tuple(
            file if os.path.lexists(file.path) else replace(file, old=None)
            for file in planned_state(found.saved, places=places, key=request.key, stamp=stamp)
        )
        notes += found.missing
    else:
        notes.append("only these volumes are replaced: the others stay as they are now")
    made = _plan(request, backup=backup, vm=vm.name, vm_uuid=vm.uuid, volumes=volumes, saved=saved, notes=notes)
    return replace(made, whole=whole)


def _volume(
    hypervisor: Hypervisor, *, request: RestoreRequest, located: Located, chosen: Sequence[BackupVolume]
) -> RestorePlan:
    backup = located.backup
    if request.vm is not None:
        domain = hypervisor.domain(name=request.vm)
    else:
        found = hypervisor.domain_by_uuid(backup.vm_uuid)
        domain = found if found is not None else hypervisor.domain(name=backup.vm)
    place = define.place_for(hypervisor, domain=domain)
    volumes = _new(hypervisor, request=request, chosen=chosen, prefix="", suffix=f"-{backup.directory}")
    notes = [at_next_start(place)] if place.waits else []
    return _plan(request, backup=backup, vm=domain.name(), vm_uuid=domain.UUIDString(), volumes=volumes, notes=notes)


def at_next_start(place: define.Place) -> str:
    return (
        f"a disk on bus {place.bus}, which the VM's disks have, cannot come into a VM that runs: it is in the "
        "definition, and the guest has it when the VM was shut down and started again"
    )


_PLANNERS = {Target.NEW_VM: _new_vm, Target.IN_PLACE: _in_place, Target.VOLUME: _volume}


def _new(
    hypervisor: Hypervisor, *, request: RestoreRequest, chosen: Sequence[BackupVolume], prefix: str, suffix: str
) -> tuple[PlannedVolume, ...]:
    directory = request.to or str(define.pool_directory(hypervisor, pool=request.pool or ""))
    if Path(directory).exists() and not Path(directory).is_dir():
        raise ParamInvalid(name="to", value=directory, problem="it is no directory")
    files.require_outside_backups(Path(directory))
    volumes = new_files(
        chosen, directory=directory, prefix=prefix, suffix=suffix, image_format=request.image_format, key=request.key
    )
    for volume in volumes:
        _require_nothing_at(volume.path)
    return volumes


def _require_nothing_at(path: str) -> None:
    if os.path.lexists(path):
        raise TargetExists(path=path)


def _plan(
    request: RestoreRequest,
    *,
    backup: Backup,
    vm: str,
    vm_uuid: str,
    volumes: tuple[PlannedVolume, ...],
    saved: tuple[PlannedState, ...] = (),
    notes: Sequence[str] = (),
    definition: str | None = None,
) -> RestorePlan:
    return RestorePlan(
        key=request.key,
        backup=backup.external_id,
        target=request.target,
        source_vm=backup.vm,
        source_uuid=backup.vm_uuid,
        vm=vm,
        vm_uuid=vm_uuid,
        volumes=volumes,
        state=saved,
        definition=definition,
        start=request.start,
        keep_old=request.keep_old,
        pool=request.pool,
        notes=tuple(notes),
    )


def space_of(made: RestorePlan) -> tuple[Space, ...]:
    """Per file system. Raises NotEnoughSpace. (The machine's state is small enough not to count.)"""
    wanted = [(Path(volume.path).parent, volume.needs) for volume in made.volumes]
    return tuple(Space(path=str(path), needs=needs, has=has) for path, needs, has in files.require_room(wanted))
