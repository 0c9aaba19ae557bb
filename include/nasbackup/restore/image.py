"""Restore to images: standalone files, nothing defined, nothing started."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nasbackup.catalog import Database, backups, repositories
from nasbackup.errors import BackupNotRestorable, TargetExists, UnknownVolume
from nasbackup.model import Backup, BackupStatus, BackupVolume
from nasbackup.nas.repository import open_root
from nasbackup.restore.verification import Layer, layers_of, verify_layers
from nasbackup.transfer.convert import flatten, is_same_disk
from nasbackup.transfer.pump import Progress

ImageFormat = Literal["qcow2", "raw"]
Follow = Callable[[str, Progress], None]
"""Called with what is being done and how far it is."""


@dataclass(frozen=True, kw_only=True)
class RestoredVolume:
    name: str
    source: str
    file: Path
    layers: int


@dataclass(frozen=True, kw_only=True)
class Located:
    """A backup, its ancestors (the full first, itself last) and the repository's root that holds them."""

    backup: Backup
    lineage: Sequence[Backup]
    root: Path

    def layers(self, volume: BackupVolume) -> list[Layer]:
        return layers_of(self.lineage, root=self.root, volume=volume)


def locate(database: Database, *, external_id: str) -> Located:
    """Find a backup and its repository. Raises BackupNotFound, BackupNotRestorable, NotARepository."""
    with database.transaction() as cursor:
        backup = backups.find(cursor, external_id=external_id)
        lineage = backups.lineage(cursor, backup_id=backup.backup_id)
        registered = repositories.get(cursor, name=backup.repository)
    if backup.status is not BackupStatus.BACKED_UP:
        raise BackupNotRestorable(backup=external_id, why=_why_not(backup))
    return Located(backup=backup, lineage=lineage, root=open_root(registered.repository, identity=registered.uuid))


def _why_not(backup: Backup) -> str:
    if backup.status is BackupStatus.DELETE_PENDING:
        return "somebody has deleted it; it is only there until the backups that are built on it are gone"
    return f"it is {backup.status}"


def restore_images(
    located: Located,
    *,
    to: Path,
    image_format: ImageFormat = "qcow2",
    volumes: Sequence[str] = (),
    follow: Follow | None = None,
) -> list[RestoredVolume]:
    """Write one standalone image per volume into the directory ``to``, after every layer was verified.

    ``volumes`` chooses by name (none: all). Raises UnknownVolume, TargetExists (nothing was written),
    BackupNotRestorable (a layer is broken; nothing was written), TargetFull. An image has its name only when it
    is complete: until then it is a ``<name>.partial-…`` of this attempt's own, and after a failure that is removed.
    """
    chosen = choose(located.backup, volumes=volumes)
    targets = {volume.name: image_path(to, volume=volume, image_format=image_format) for volume in chosen}
    for volume in chosen:
        verify_layers(
            located.layers(volume),
            on_layer=lambda layer: _bind(follow, f"verifying {layer.backup}/{layer.file.name}"),
        )
    to.mkdir(parents=True, exist_ok=True)
    restored = []
    for volume in chosen:
        layers, target = located.layers(volume), targets[volume.name]
        partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:12]}")
        _remove_partials(target)
        try:
            flatten(
                chain_top=layers[-1].file,
                target=partial,
                output_format=image_format,
                on_progress=_bind(follow, f"restoring {volume.name}"),
            )
            _give_name(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        restored.append(RestoredVolume(name=volume.name, source=volume.source, file=target, layers=len(layers)))
    return restored


def find_restored(located: Located, *, to: Path, image_format: ImageFormat, volume: str) -> RestoredVolume | None:
    """The image of an earlier try that was killed when it had given the image its name; None: it is another's."""
    (chosen,) = choose(located.backup, volumes=[volume])
    layers, target = located.layers(chosen), to / f"{chosen.name}.{image_format}"
    if not is_same_disk(chain_top=layers[-1].file, image=target, image_format=image_format):
        return None
    return RestoredVolume(name=chosen.name, source=chosen.source, file=target, layers=len(layers))


def _remove_partials(target: Path) -> None:
    """Of attempts that were killed. What an orphan of one still writes has no name any more."""
    for path in target.parent.iterdir():
        if path.name.startswith(f"{target.name}.partial-"):
            path.unlink(missing_ok=True)


def _give_name(partial: Path, target: Path) -> None:
    """Never over anything: what appeared there meanwhile is somebody's. Raises TargetExists."""
    try:
        os.link(partial, target)
    except FileExistsError as error:
        raise TargetExists(path=target) from error
    except OSError:  # a file system without hard links
        if target.exists():
            raise TargetExists(path=target) from None
        partial.rename(target)


def image_path(to: Path, *, volume: BackupVolume, image_format: ImageFormat) -> Path:
    """Where the volume's image goes. Raises TargetExists when something is there already."""
    if "/" in volume.name or volume.name.startswith("."):  # from a manifest that nobody of us has written
        raise BackupNotRestorable(backup=volume.file, why=f"its volume {volume.name!r} has no name for a file")
    path = to / f"{volume.name}.{image_format}"
    if path.exists():
        raise TargetExists(path=path)
    return path


def choose(backup: Backup, *, volumes: Sequence[str]) -> list[BackupVolume]:
    """The volumes of these names, all when none is named. Raises UnknownVolume."""
    known = {volume.name: volume for volume in backup.volumes}
    for name in volumes:
        if name not in known:
            raise UnknownVolume(vm=backup.vm, volume=name, known=", ".join(sorted(known)))
    return [volume for volume in backup.volumes if not volumes or volume.name in volumes]


def _bind(follow: Follow | None, what: str) -> Callable[[Progress], None] | None:
    return (lambda progress: follow(what, progress)) if follow else None
