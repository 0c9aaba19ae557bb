"""What must be true of one VM and its backups, known from what was done to it and from nothing else.

No line of the product's decisions is used here. A volume's dirty bitmap of a checkpoint can be believed from the
backup that made it until the checkpoint is dropped, QEMU is killed, or the image is replaced; and while it can be
believed, the next backup must be incremental.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from nasbackup.model import BackupType, Reason, VolumeReason

SECTOR = 512
GRANULE = 64 << 10
"""What one bit of a bitmap stands for: a cluster of the image."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a guest does to a disk, wherever it fits: places are taken modulo the size, so each one fits every disk."""

    kind: Literal["write", "zeroes", "unmapped zeroes", "discard"]
    disk: int
    sector: int
    sectors: int
    pattern: int = 0


@dataclass(kw_only=True)
class Disk:
    source: str
    target: str
    content: bytearray
    attached: bool = True
    bitmaps: dict[str, set[int]] = field(default_factory=dict)
    """Checkpoint -> granules that changed since, for as long as that can be believed."""
    broken: set[str] = field(default_factory=set)
    """Checkpoints whose bitmap a killed QEMU may have left in the image."""
    sizes_had: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.sizes_had.add(self.size)

    @property
    def size(self) -> int:
        return len(self.content)

    def extent(self, change: Change) -> tuple[int, int]:
        offset = change.sector * SECTOR % self.size
        end = min(offset + change.sectors * SECTOR, self.size)
        if change.kind == "discard":  # of whole clusters; qcow2 does not forget parts of one
            offset -= offset % GRANULE
            end = min(-(-end // GRANULE) * GRANULE, self.size)
        return offset, end - offset

    def apply(self, change: Change) -> None:
        offset, length = self.extent(change)
        self.content[offset : offset + length] = bytes([change.pattern]) * length
        for changed in self.bitmaps.values():
            changed.update(range(offset // GRANULE, (offset + length - 1) // GRANULE + 1))

    def resize(self, size: int) -> None:
        self.content = self.content[:size] + bytes(max(size - self.size, 0))
        self.sizes_had.add(size)

    def drop(self, checkpoint: str) -> None:
        self.bitmaps.pop(checkpoint, None)
        self.broken.discard(checkpoint)

    def replace(self, content: bytes) -> None:
        """Another image took its place: nothing is known of it."""
        self.content = bytearray(content)
        self.bitmaps.clear()
        self.broken.clear()


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The latest backup in a repository."""

    external_id: str
    checkpoint: str | None
    position: int
    sizes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Expected:
    type: BackupType
    reason: Reason
    parent: str | None = None
    position: int = 0
    has_checkpoint: bool = True
    volumes: Mapping[str, VolumeReason] = field(default_factory=dict)
    """By target."""


@dataclass(kw_only=True)
class Model:
    disks: list[Disk]
    running: bool
    variables: dict[str, str] = field(default_factory=dict)
    latest: dict[str, Recorded] = field(default_factory=dict)
    """By repository."""

    @property
    def attached(self) -> Sequence[Disk]:
        return [disk for disk in self.disks if disk.attached]

    def active(self) -> set[str]:
        return {latest.checkpoint for latest in self.latest.values() if latest.checkpoint is not None}

    def kill(self) -> None:
        self.running = False
        for disk in self.attached:
            disk.broken |= disk.bitmaps.keys()
            disk.bitmaps.clear()

    def began(self, *, checkpoint: str | None, targets: Collection[str]) -> None:
        """The point in time was fixed: from now on changes are recorded under this name, too."""
        for disk in self.attached:
            if checkpoint is not None and disk.target in targets:
                disk.bitmaps[checkpoint] = set()

    def dropped(self, checkpoints: Collection[str]) -> None:
        for disk in self.attached:
            for checkpoint in checkpoints:
                disk.drop(checkpoint)

    def dropped_all_but_the_active(self) -> None:
        for disk in self.attached:
            self.dropped(({*disk.bitmaps} | disk.broken) - self.active())

    def setting(self, key: str, *, default: str) -> str:
        return self.variables.get(f"{key}.default", self.variables.get(key, default))

    # --- the oracle -------------------------------------------------------------------------------------------

    def next_backup(self, *, repository: str, forced: bool = False, excluded: Collection[str] = ()) -> Expected:
        disks = [disk for disk in self.attached if disk.target not in excluded]
        base = self.latest.get(repository)

        def full(reason: Reason, *, has_checkpoint: bool = True) -> Expected:
            whole = {disk.target: VolumeReason.FULL_BACKUP for disk in disks}
            return Expected(type=BackupType.FULL, reason=reason, has_checkpoint=has_checkpoint, volumes=whole)

        every = int(self.setting("nas.backup.full.every", default="10"))
        if self.setting("nas.backup.incremental.enabled", default="true") == "false":
            return full(Reason.INCREMENTAL_DISABLED, has_checkpoint=False)
        if forced:
            return full(Reason.FORCED_FULL)
        if not self.running and self.setting("nas.backup.stopped.incremental.enabled", default="false") == "false":
            return full(Reason.VM_STOPPED)
        if every <= 1:
            return full(Reason.FULL_EVERY_DISABLED)
        if base is None or base.checkpoint is None:
            return full(Reason.NO_ACTIVE_CHECKPOINT)
        if base.position + 2 > every:
            return full(Reason.CHAIN_COMPLETE)
        volumes = {disk.target: self._volume(disk, base=base) for disk in disks}
        if VolumeReason.INCREMENTAL not in volumes.values():
            return full(Reason.BITMAP_UNUSABLE)
        return Expected(
            type=BackupType.INCREMENTAL,
            reason=Reason.INCREMENTAL,
            parent=base.external_id,
            position=base.position + 1,
            volumes=volumes,
        )

    @staticmethod
    def _volume(disk: Disk, *, base: Recorded) -> VolumeReason:
        if disk.source not in base.sizes:
            return VolumeReason.NEW_VOLUME
        if base.sizes[disk.source] != disk.size:
            return VolumeReason.RESIZED
        return VolumeReason.INCREMENTAL if base.checkpoint in disk.bitmaps else VolumeReason.BITMAP_UNUSABLE
