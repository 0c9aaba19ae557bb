"""Verify recorded backups: every layer of every volume, from the full up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nasbackup import qcow2
from nasbackup.errors import BackupNotRestorable, ImageRefused, VerifyFailed
from nasbackup.model import Backup, BackupStatus, BackupType, BackupVolume, Repository
from nasbackup.nas.watchdog import watched
from nasbackup.steps.verify import check_content, check_structure
from nasbackup.transfer.pump import Progress

_RESTORABLE = frozenset({BackupStatus.BACKED_UP, BackupStatus.DELETE_PENDING})


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One file that a volume of a backup is made of."""

    backup: str
    volume: BackupVolume
    file: Path


def layers_of(lineage: Sequence[Backup], *, root: Path, volume: BackupVolume) -> list[Layer]:
    """The files that make up the volume in the newest backup of ``lineage`` (full first), the base first.

    A volume may be full inside an incremental backup: its line is then shorter than the backup's. Raises
    BackupNotRestorable when an ancestor is missing or in a state in which its files may be gone.
    """
    layers: list[Layer] = []
    wanted: BackupVolume | None = volume
    for backup in reversed(lineage):
        found = next((candidate for candidate in backup.volumes if candidate.source == volume.source), None)
        if wanted is None:
            break
        if found is None or backup.status not in _RESTORABLE:
            raise BackupNotRestorable(
                backup=lineage[-1].external_id, why=f"its ancestor {backup.external_id} is {backup.status}"
            )
        layers.append(Layer(backup=backup.external_id, volume=found, file=root / backup.external_id / found.file))
        wanted = found if found.type is BackupType.INCREMENTAL else None
    if wanted is not None:
        raise BackupNotRestorable(backup=lineage[-1].external_id, why=f"volume {volume.name} has no full below it")
    return layers[::-1]


def check_links(layers: Sequence[Layer]) -> None:
    """The quick check, before a chain is used where it lies: every file is there, and built on what it should be.

    Nothing is opened by QEMU, no content is read. Raises BackupNotRestorable.
    """
    for layer in layers:
        try:
            header = qcow2.read_header(layer.file)
        except ImageRefused as error:
            missing = not layer.file.exists()
            problem = "the file is missing (is the NAS mounted?)" if missing else error.problem
        else:
            same = (header.backing, header.virtual_size) == (layer.volume.backing, layer.volume.virtual_size)
            problem = "" if same else f"it is {header}, which is not what was recorded"
        if problem:
            raise BackupNotRestorable(
                backup=layers[-1].backup, why=f"layer of {layer.backup} is broken: {layer.file}: {problem}"
            )


def verify_layers(
    layers: Sequence[Layer], *, on_layer: Callable[[Layer], Callable[[Progress], None] | None] | None = None
) -> None:
    """Check every layer, the base first. Raises BackupNotRestorable, which names the broken backup and file."""
    for layer in layers:
        verify_layer(layer, of=layers[-1].backup, on_progress=on_layer(layer) if on_layer else None)


def verify_layer(
    layer: Layer,
    *,
    of: str,
    repository: Repository | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> None:
    """``of``: the backup that is to be restored. ``repository``: whose silence is not waited for.

    Raises BackupNotRestorable, NasIo.
    """
    try:
        if repository is None:
            check_structure(layer.file, volume=layer.volume)
        else:
            watched(repository, f"checking {layer.file.name}", check_structure, layer.file, volume=layer.volume)
        check_content(layer.file, volume=layer.volume, on_progress=on_progress)
    except VerifyFailed as error:
        raise BackupNotRestorable(backup=of, why=f"layer of {layer.backup} is broken: {error}") from error
