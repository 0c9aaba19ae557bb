"""Restore to images: standalone files, nothing defined, nothing started."""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nasbackup.catalog import Database, backups, readings, repositories, restores
from nasbackup.errors import BackupNotRestorable, TargetExists, ToolFailed, UnknownVolume, VerifyFailed
from nasbackup.model import Backup, BackupStatus, BackupVolume, Repository, RepositoryType
from nasbackup.nas.repository import open_root
from nasbackup.nas.watchdog import Follower, watched
from nasbackup.restore.files import require_outside_backups, require_room
from nasbackup.restore.plan import ImageFormat
from nasbackup.restore.verification import Layer, layers_of, verify_layer
from nasbackup.transfer.convert import flatten, is_same_disk, measure
from nasbackup.transfer.pump import Progress
from nasbackup.transfer.readback import check_image

log = logging.getLogger(__name__)

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
    older: Callable[[], Iterator[Located]] = lambda: iter(())
    """Earlier backups of the VM in this repository, the newest first."""

    @property
    def repository(self) -> Repository:
        return Repository(name=self.backup.repository, type=RepositoryType.LOCAL, path=str(self.root))

    @property
    def directory(self) -> Path:
        return self.root / self.backup.external_id

    def layers(self, volume: BackupVolume) -> list[Layer]:
        return layers_of(self.lineage, root=self.root, volume=volume)


def locate(database: Database, *, external_id: str, reader: str | None = None) -> Located:
    """Find a backup and its repository. Raises BackupNotFound, BackupNotRestorable, NotARepository.

    ``reader``: whoever has a mark on it that holds may go on, though somebody has deleted it meanwhile.
    """
    with database.transaction() as cursor:
        backup = backups.find(cursor, external_id=external_id)
        lineage = backups.lineage(cursor, backup_id=backup.backup_id)
        registered = repositories.get(cursor, name=backup.repository)
        held = reader is not None and readings.find(cursor, backup_id=backup.backup_id, reader=reader) is not None
    if backup.status is not BackupStatus.BACKED_UP and not (held and backup.status is BackupStatus.DELETE_PENDING):
        raise BackupNotRestorable(backup=external_id, why=_why_not(backup))
    root = watched(
        registered.repository, "reading the marker", open_root, registered.repository, identity=registered.uuid
    )
    return Located(backup=backup, lineage=lineage, root=root, older=lambda: _older(database, backup=backup, root=root))


def _older(database: Database, *, backup: Backup, root: Path) -> Iterator[Located]:
    with database.transaction() as cursor:
        found = restores.recorded_before(cursor, backup_id=backup.backup_id)
    for earlier in found:
        with database.transaction() as cursor:
            lineage = backups.lineage(cursor, backup_id=earlier.backup_id)
        yield Located(backup=earlier, lineage=lineage, root=root)


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

    ``volumes`` chooses by name (none: all). Raises UnknownVolume, ParamInvalid, TargetExists (nothing was written),
    BackupNotRestorable (a layer is broken; nothing was written), NasIo (the NAS fell silent), TargetFull, VerifyFailed.
    An image has its name only when it is complete and was read back: until then it is a ``<name>.partial-…`` of this
    attempt's own, and after a failure that is removed.
    """
    chosen = choose(located.backup, volumes=volumes)
    targets = {volume.name: image_path(to, volume=volume, image_format=image_format) for volume in chosen}
    require_room([(to, image_bytes(located, volume=volume)) for volume in chosen])
    following = {volume.name: watching(located, volume=volume.name, follow=follow) for volume in chosen}
    for volume in chosen:
        require_whole(located, volume=volume, follow=following[volume.name])
    to.mkdir(parents=True, exist_ok=True)
    restored = []
    for volume in chosen:
        layers, target = located.layers(volume), targets[volume.name]
        beginning = _partial_beginning(target, backup=located.backup)
        _remove_partials(target, beginning=beginning)
        partial = target.with_name(f"{beginning}{uuid.uuid4().hex[:12]}")
        try:
            looking = following[volume.name]
            write_image(layers[-1].file, to=partial, image_format=image_format, name=volume.name, follow=looking)
            _give_name(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        restored.append(RestoredVolume(name=volume.name, source=volume.source, file=target, layers=len(layers)))
    return restored


def watching(located: Located, *, volume: str, follow: Follow | None) -> Follow:
    """``follow``, and before it a look whether the NAS still answers: the result raises NasIo when it does not."""
    follower = Follower(located.repository, f"restoring {volume}")

    def look(what: str, progress: Progress) -> None:
        follower.look((what, progress.phase, progress.done))
        if follow is not None:
            follow(what, progress)

    return look


def write_image(
    chain_top: Path, *, to: Path, image_format: ImageFormat, name: str, follow: Follow | None = None
) -> None:
    """What was written is read back and compared. ``name``: of the volume. Raises VerifyFailed, TransferError."""
    restoring, comparing = _bind(follow, f"restoring {name}"), _bind(follow, f"comparing {name}")
    flatten(chain_top=chain_top, target=to, output_format=image_format, on_progress=restoring)
    if image_format == "qcow2":
        check_image(to)
    if not is_same_disk(chain_top=chain_top, image=to, image_format=image_format, on_progress=comparing):
        raise VerifyFailed(file=to, problem="it is not what was read from the NAS; it is removed, nothing was changed")


def image_bytes(located: Located, *, volume: BackupVolume) -> int:
    """What its standalone image will occupy, at most. Raises NasIo, BackupNotRestorable (a layer cannot be opened)."""
    top = located.layers(volume)[-1].file
    try:
        return watched(located.repository, f"measuring {volume.name}", measure, top)
    except ToolFailed:
        # Only verification can tell which layer it is, and which older backup is whole.
        require_whole(located, volume=volume)
        raise


def find_restored(located: Located, *, to: Path, image_format: ImageFormat, volume: str) -> RestoredVolume | None:
    """The image of an earlier try that was killed when it had given the image its name; None: it is another's."""
    (chosen,) = choose(located.backup, volumes=[volume])
    layers, target = located.layers(chosen), to / f"{chosen.name}.{image_format}"
    if not is_same_disk(chain_top=layers[-1].file, image=target, image_format=image_format):
        return None
    return RestoredVolume(name=chosen.name, source=chosen.source, file=target, layers=len(layers))


def require_whole(located: Located, *, volume: BackupVolume, follow: Follow | None = None) -> None:
    """Every layer of the volume is read back and compared with its digest, the base first.

    Raises BackupNotRestorable: it names the broken layer, and the newest older backup that is whole, if there is one;
    to find that, those are read back too.
    """
    sound: dict[Path, bool] = {}
    try:
        _verify(located, volume=volume, sound=sound, follow=follow)
    except BackupNotRestorable as error:
        log.warning("%s Looking for the newest older backup that is whole: each is read to the end.", error)
        whole = next((found for found in located.older() if _is_whole(found, sound=sound, follow=follow)), None)
        instead = (
            f"restore {whole.backup.external_id}, the newest older one that is whole" if whole else "no older one is"
        )
        raise BackupNotRestorable(
            backup=error.data["backup"],
            why=f"{error.data['why']}; {instead}",
            instead=whole.backup.external_id if whole else None,
        ) from error


def _is_whole(located: Located, *, sound: dict[Path, bool], follow: Follow | None) -> bool:
    try:
        for volume in located.backup.volumes:
            _verify(located, volume=volume, sound=sound, follow=follow)
    except BackupNotRestorable:
        return False
    return True


def _verify(located: Located, *, volume: BackupVolume, sound: dict[Path, bool], follow: Follow | None) -> None:
    """``sound``: what is known of layers that were read before; they are not read again."""
    for layer in located.layers(volume):
        if sound.get(layer.file) is False:
            raise BackupNotRestorable(backup=located.backup.external_id, why=f"layer of {layer.backup} is broken")
        if layer.file not in sound:
            sound[layer.file] = False
            bound = _bind(follow, f"verifying {layer.backup}/{layer.file.name}")
            verify_layer(layer, of=located.backup.external_id, repository=located.repository, on_progress=bound)
            sound[layer.file] = True


def _partial_beginning(target: Path, *, backup: Backup) -> str:
    """Of the backup's own: another VM's volume of this name may just be written into the same directory."""
    return f"{target.name}.partial-{hashlib.sha256(backup.external_id.encode()).hexdigest()[:12]}-"


def _remove_partials(target: Path, *, beginning: str) -> None:
    """Of attempts that were killed. What an orphan of one still writes has no name any more."""
    for path in target.parent.iterdir():
        if path.name.startswith(beginning):
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
    """Where the volume's image goes. Raises TargetExists when something is there already, ParamInvalid."""
    require_outside_backups(to)
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
