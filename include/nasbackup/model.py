"""The words of the project as values: no I/O, no behaviour beyond what a value can answer about itself.

Sizes and offsets are bytes, times are aware UTC datetimes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from nasbackup.handling import Compression


class VmState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"

    @property
    def has_qemu(self) -> bool:
        """A QEMU process holds the disks: libvirt's backup job is possible, and nothing else is."""
        return self is not VmState.STOPPED


class BackupType(StrEnum):
    FULL = "FULL"
    INCREMENTAL = "INCREMENTAL"


class BackupStatus(StrEnum):
    BACKING_UP = "BackingUp"
    BACKED_UP = "BackedUp"
    FAILED = "Failed"
    DELETE_PENDING = "DeletePending"
    DELETING = "Deleting"


class Mode(StrEnum):
    """What the operator asks for."""

    AUTO = "auto"
    FULL = "full"


class Reason(StrEnum):
    """Why a backup is what it is: the rows of the decision table, in its order."""

    INCREMENTAL_DISABLED = "incremental_disabled"
    FORCED_FULL = "forced_full"
    VM_STOPPED = "vm_stopped"
    FULL_EVERY_DISABLED = "full_every_disabled"
    NO_ACTIVE_CHECKPOINT = "no_active_checkpoint"
    LATEST_BACKUP_MISMATCH = "latest_backup_mismatch"
    CHAIN_COMPLETE = "chain_complete"
    VM_RENAMED = "vm_renamed"
    BITMAP_UNUSABLE = "bitmap_unusable"
    INCREMENTAL = "incremental"
    IMPORTED = "imported"  # not decided here: found in a repository, made by CloudStack


class VolumeReason(StrEnum):
    """Why one volume of a backup is full or incremental."""

    FULL_BACKUP = "full_backup"  # the whole backup is a full
    INCREMENTAL = "incremental"
    NEW_VOLUME = "new_volume"  # the parent does not have this source
    RESIZED = "resized"
    BITMAP_UNUSABLE = "bitmap_unusable"
    NO_BITMAP_POSSIBLE = "no_bitmap_possible"  # raw, or over the network: full every time


class Quiesce(StrEnum):
    """Whether the guest's file systems are frozen for the moment in which the point in time is taken."""

    OFF = "off"
    CONTINUE = "continue"  # freeze; when the guest cannot, go on and record the backup as crash-consistent
    FAIL = "fail"  # freeze; when the guest cannot, there is no backup


class Consistency(StrEnum):
    CRASH = "crash"  # as after a power cut: journals bring it right
    FILESYSTEM = "filesystem"  # the guest agent had frozen every file system


class Target(StrEnum):
    """What a restored backup becomes."""

    IMAGE = "image"  # standalone files, nothing defined
    NEW_VM = "new_vm"
    IN_PLACE = "in_place"  # the volumes of the VM itself are replaced
    VOLUME = "volume"  # one volume becomes a new disk of a VM


class RepositoryType(StrEnum):
    LOCAL = "local"
    NFS = "nfs"
    CIFS = "cifs"
    CEPH = "ceph"


# --- the world outside ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Host:
    """A KVM host. ``name`` is the id of its Airflow Connection."""

    name: str
    uri: str = "qemu:///system"
    socket_dir: str = "/var/lib/nasbackup/run"
    scratch_dir: str = "/var/lib/nasbackup/scratch"
    zone: str = "default"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A NAS as this machine sees it. ``name`` is the id of its Airflow Connection, ``path`` is absolute."""

    name: str
    type: RepositoryType
    path: str
    address: str = ""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One disk of a domain. ``source`` is its identity: the image's path, or a URI; ``target`` (vda) is not."""

    source: str
    target: str
    format: str
    virtual_size: int
    allocated: int = 0
    encrypted: bool = False


@dataclass(frozen=True, kw_only=True)
class SkippedDisk:
    """A disk that is not backed up, with the reason that the operator reads.

    ``unsupported``: its content is the VM's own, so leaving it out has to be asked for.
    """

    target: str
    source: str
    why: str
    unsupported: bool = False


@dataclass(frozen=True, kw_only=True)
class Vm:
    """A libvirt domain as the inventory sees it."""

    name: str
    uuid: str
    state: VmState
    volumes: tuple[Volume, ...]
    skipped: tuple[SkippedDisk, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SeenVm:
    """A libvirt domain as a policy sees it. ``metadata``: namespace URI -> text of the domain's element of it."""

    name: str
    uuid: str
    host: str
    state: VmState
    title: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


# --- decisions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class VolumePlan:
    """What one volume of the coming backup will be.

    ``file`` is the name inside the backup's directory; ``backing`` is the relative reference that the qcow2
    layer gets (``../<parent directory>/<file>``), None for a full.
    """

    name: str
    source: str
    target: str
    format: str
    file: str
    virtual_size: int
    type: BackupType
    reason: VolumeReason
    backing: str | None = None


@dataclass(frozen=True, kw_only=True)
class ChainDecision:
    """What the coming backup will be, and why (``explanation`` is the sentence for people).

    ``vm_state`` is what the decision was made for: a running VM is read through libvirt's backup job, a stopped one
    straight from its images.
    """

    vm_state: VmState = VmState.RUNNING
    type: BackupType
    reason: Reason
    explanation: str
    checkpoint: str | None
    base_checkpoint: str | None
    chain_id: str | None
    chain_position: int
    parent_id: int | None
    parent: str | None
    """The external id of the parent."""
    volumes: tuple[VolumePlan, ...]


# --- records --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BackupVolume(VolumePlan):
    """A volume of a recorded (or running) backup: what was planned, and what came of it."""

    source_stamp: str | None = None
    bytes_read: int | None = None
    bytes_written: int | None = None
    digest: str | None = None
    attempt: str | None = None
    verified_at: datetime | None = None
    """When every byte of it was last read back; None: never."""
    checked_at: datetime | None = None
    """When its file passed what its backup's verify level asks for."""
    copy_seconds: float | None = None
    compression: Compression = Compression.NONE


@dataclass(frozen=True, kw_only=True)
class ChainLink:
    """What makes a backup a part of its chain. ``backup_id`` is the catalog's own number."""

    backup_id: int
    external_id: str
    status: BackupStatus
    checkpoint: str | None
    chain_id: str | None
    chain_position: int

    @property
    def directory(self) -> str:
        """The last part of the external id: the backup's directory inside the VM's."""
        return self.external_id.rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class Backup(ChainLink):
    """One restore point of one VM, as the catalog knows it."""

    vm: str
    vm_uuid: str
    host: str
    repository: str
    type: BackupType
    reason: Reason
    explanation: str
    vm_state: VmState = VmState.RUNNING
    parent_id: int | None
    parent: str | None
    created_at: datetime
    request: Mapping[str, Any] = field(default_factory=dict)
    consistency: Consistency | None = None
    recorded_at: datetime | None = None
    size: int | None = None
    pinned_at: datetime | None = None
    expires_at: datetime | None = None
    error: str | None = None
    run_id: str = ""
    volumes: tuple[BackupVolume, ...] = field(default=())

    @property
    def verified(self) -> bool:
        return bool(self.volumes) and all(volume.verified_at is not None for volume in self.volumes)


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to change one VM's backups. ``token`` grows with each new holder (fencing token)."""

    vm_uuid: str
    holder: str
    token: int
    expires_at: datetime
