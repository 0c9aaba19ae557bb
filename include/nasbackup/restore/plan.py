"""What a restore will write, and where: values, and the pure part of the decision.

Disks are matched by their source path; what speaks against the restore is found before a byte is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, Literal

from nasbackup import layout
from nasbackup.errors import ParamInvalid, RestoreRefused
from nasbackup.machine import SavedState, StateKind
from nasbackup.model import Backup, BackupVolume, Target, Vm, VmState

ImageFormat = Literal["qcow2", "raw"]
FORMATS = ("qcow2", "raw")
STAGED = ".restoring-"
BEFORE = ".before-"


@dataclass(frozen=True, kw_only=True)
class RestoreRequest:
    """``key`` names what this restore writes, the same in all its tries. ``vm``: that gets the volume; None: its own.

    ``to`` or ``pool`` say where new files go; in place they go where the old ones are.
    """

    backup: str
    target: Target
    key: str
    volumes: tuple[str, ...] = ()
    new_name: str | None = None
    vm: str | None = None
    to: str | None = None
    pool: str | None = None
    image_format: ImageFormat = "qcow2"
    keep_macs: bool = False
    start: bool = False
    keep_old: bool = True


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """A file (of the TPM's state: a directory) that appears at ``path``, written first at ``staged``.

    ``old``: what the one that is there now will be called; None: there must be none.
    """

    path: str
    staged: str
    old: str | None = None


@dataclass(frozen=True, kw_only=True)
class PlannedVolume(PlannedFile):
    """``needs``: bytes that it will occupy, at most."""

    name: str
    source: str
    format: ImageFormat
    virtual_size: int
    needs: int = 0


@dataclass(frozen=True, kw_only=True)
class PlannedState(PlannedFile):
    kind: StateKind


@dataclass(frozen=True, kw_only=True)
class Space:
    """Of one file system: ``needs`` and ``has`` are bytes."""

    path: str
    needs: int
    has: int


@dataclass(frozen=True, kw_only=True)
class RestorePlan:
    """``vm`` and ``vm_uuid``: of the VM that is made or changed. ``notes``: what the operator should know before.

    ``whole``: in place, and the VM is to be as it was altogether.
    """

    key: str
    backup: str
    target: Target
    source_vm: str
    source_uuid: str
    vm: str
    vm_uuid: str
    volumes: tuple[PlannedVolume, ...]
    state: tuple[PlannedState, ...] = ()
    definition: str | None = None
    start: bool = False
    keep_old: bool = True
    pool: str | None = None
    whole: bool = False
    space: tuple[Space, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[PlannedFile, ...]:
        return (*self.volumes, *self.state)

    def volume(self, name: str) -> PlannedVolume:
        return next(volume for volume in self.volumes if volume.name == name)

    def as_document(self) -> dict[str, Any]:
        return asdict(self)


def from_document(document: Mapping[str, Any]) -> RestorePlan:
    return RestorePlan(
        **{
            **document,
            "target": Target(document["target"]),
            "volumes": tuple(PlannedVolume(**volume) for volume in document["volumes"]),
            "state": tuple(PlannedState(**{**s, "kind": StateKind(s["kind"])}) for s in document["state"]),
            "space": tuple(Space(**space) for space in document["space"]),
            "notes": tuple(document["notes"]),
        }
    )


def parse_moment(text: str) -> datetime:
    """ISO 8601; without an offset it is UTC, as in external ids. Raises ParamInvalid."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ParamInvalid(
            name="before", value=text, problem="it is no time like 2026-01-31 22:00 (UTC) or 2026-01-31T22:00+01:00"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def staged_name(path: str, *, key: str) -> str:
    return f"{path}{STAGED}{key}"


def check_request(request: RestoreRequest) -> None:
    """Raises ParamInvalid for what does not go together."""
    new_files = request.target in (Target.NEW_VM, Target.VOLUME)
    if new_files and bool(request.to) == bool(request.pool):
        raise ParamInvalid(
            name="to", value=request.to, problem="name a directory (to) or a storage pool (pool), and not both"
        )
    if not new_files and request.pool:
        raise ParamInvalid(name="pool", value=request.pool, problem=f"it is of no use for target {request.target}")
    if request.to and not PurePath(request.to).is_absolute():
        raise ParamInvalid(name="to", value=request.to, problem="it must be an absolute path")
    if request.target is Target.IN_PLACE and request.to:
        raise ParamInvalid(name="to", value=request.to, problem="in place, files go where the old ones are")
    if request.target is Target.VOLUME and len(request.volumes) != 1:
        raise ParamInvalid(name="volumes", value=list(request.volumes), problem="name the one volume to attach")
    if request.target is not Target.NEW_VM and request.new_name:
        raise ParamInvalid(name="new_name", value=request.new_name, problem=f"target {request.target} makes no VM")


def new_files(
    volumes: Sequence[BackupVolume], *, directory: str, prefix: str, suffix: str, image_format: ImageFormat, key: str
) -> tuple[PlannedVolume, ...]:
    """One new file per volume, in a directory that may hold others': ``<prefix><volume><suffix>.<format>``."""
    planned = []
    for volume in volumes:
        name = f"{layout.safe_component(f'{prefix}{volume.name}{suffix}')}.{image_format}"
        path = str(PurePath(directory) / name)
        planned.append(
            PlannedVolume(
                path=path,
                staged=staged_name(path, key=key),
                name=volume.name,
                source=volume.source,
                format=image_format,
                virtual_size=volume.virtual_size,
            )
        )
    return tuple(planned)


def in_place_files(
    backup: Backup, volumes: Sequence[BackupVolume], *, vm: Vm, whole: bool, key: str, stamp: str
) -> tuple[PlannedVolume, ...]:
    """Each volume in the place of the disk that has the same source. ``whole``: the VM is to be as it was altogether.

    Raises RestoreRefused with all reasons at once: a disk that is gone, came after the backup, has another
    size, or is encrypted (the backup is what the guest sees).
    """
    disks = {disk.source: disk for disk in vm.volumes}
    problems = []
    for volume in volumes:
        disk = disks.get(volume.source)
        if disk is None:
            problems.append(f"volume {volume.name} ({volume.source}) is none of its disks any more")
        elif disk.virtual_size != volume.virtual_size:
            problems.append(
                f"volume {volume.name} has {disk.virtual_size} bytes now and {volume.virtual_size} in the backup"
            )
        elif disk.encrypted:
            problems.append(f"volume {volume.name} is encrypted, and what is restored is plain")
        elif disk.format not in FORMATS:
            problems.append(f"volume {volume.name} is {disk.format}, and only {' and '.join(FORMATS)} can be written")
        elif not PurePath(disk.source).is_absolute():
            problems.append(f"volume {volume.name} is no file of this host ({disk.source})")
    if whole:
        known = {volume.source for volume in backup.volumes}
        problems += [
            f"its disk {disk.target} ({disk.source}) is not in the backup"
            for disk in vm.volumes
            if disk.source not in known
        ]
    if problems:
        raise RestoreRefused(
            vm=vm.name,
            why="; ".join(problems) + " (name the volumes that are to be replaced, or restore to a new VM)",
        )
    return tuple(
        PlannedVolume(
            path=volume.source,
            staged=staged_name(volume.source, key=key),
            old=f"{volume.source}{BEFORE}{stamp}",
            name=volume.name,
            source=volume.source,
            format="raw" if disks[volume.source].format == "raw" else "qcow2",
            virtual_size=volume.virtual_size,
        )
        for volume in volumes
    )


def is_running(vm: Vm) -> bool:
    return vm.state is not VmState.STOPPED


def planned_state(
    saved: Sequence[SavedState], *, places: Mapping[StateKind, str], key: str, stamp: str | None
) -> tuple[PlannedState, ...]:
    """``stamp``: what is at the place now is kept under that; None: there is nothing."""
    return tuple(
        PlannedState(
            path=places[entry.kind],
            staged=staged_name(places[entry.kind], key=key),
            old=f"{places[entry.kind]}{BEFORE}{stamp}" if stamp else None,
            kind=entry.kind,
        )
        for entry in saved
        if entry.kind in places
    )
