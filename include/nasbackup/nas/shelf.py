"""The backups of a repository as their manifests describe them: without a catalog, from the NAS alone (invariant 6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from nasbackup import layout
from nasbackup.errors import BackupNotFound, ImageRefused, ManifestInvalid
from nasbackup.handling import Compression, VerifyLevel
from nasbackup.model import (
    Backup,
    BackupStatus,
    BackupType,
    BackupVolume,
    Consistency,
    Reason,
    Repository,
    VolumeReason,
)
from nasbackup.nas import foreign, manifest
from nasbackup.nas.publish import size_on_disk
from nasbackup.nas.repository import doing


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """``backups``: in the order in which they were made, numbered from 1; each with all its ancestors before it.

    ``problems``: directories that are left out, and why, as sentences.
    """

    root: Path
    backups: tuple[Backup, ...]
    problems: tuple[str, ...]

    def find(self, external_id: str) -> Backup:
        """Raises BackupNotFound."""
        for backup in self.backups:
            if backup.external_id == external_id:
                return backup
        raise BackupNotFound(backup=external_id)

    def lineage(self, backup: Backup) -> list[Backup]:
        """The backup and its ancestors, the full first."""
        numbered = {known.backup_id: known for known in self.backups}
        line = [backup]
        while line[-1].parent_id is not None:
            line.append(numbered[line[-1].parent_id])
        return line[::-1]


def read_shelf(repository: Repository, *, root: Path) -> Shelf:
    """Read every manifest. A directory that is none of a backup is passed over; a broken one is told. Raises NasIo."""
    described: dict[str, Backup] = {}
    imported: dict[str, Backup] = {}
    problems: list[str] = []
    with doing(repository, "reading manifests"):
        for directory in _directories(root):
            external_id = str(directory.relative_to(root))
            try:
                if foreign.is_foreign(directory):
                    imported[external_id] = foreign.read(
                        directory, external_id=external_id, repository=repository, older=imported
                    )
                    continue
                document = manifest.read(directory)
                if document["external_id"] != external_id:
                    raise ManifestInvalid(
                        path=directory / layout.MANIFEST, problem=f"it is of {document['external_id']}, a copy"
                    )
                described[external_id] = _backup(document, repository=repository, directory=directory)
            except (ManifestInvalid, ImageRefused) as error:
                problems.append(f"{external_id}: {error}" if isinstance(error, ImageRefused) else str(error))
            except (OSError, RecursionError, ValueError) as error:
                problems.append(f"{external_id}: {type(error).__name__}: {error}")
    whole: dict[str, Backup] = {}
    for backup in sorted(
        (*described.values(), *imported.values()), key=lambda found: (found.chain_position, found.created_at)
    ):
        problem = _why_not(backup, whole=whole)
        if problem is None:
            whole[backup.external_id] = backup
        else:
            problems.append(f"{backup.external_id}: {problem}")
    return Shelf(root=root, backups=_numbered(list(whole.values())), problems=tuple(problems))


def _directories(root: Path) -> Iterator[Path]:
    for machine in sorted(root.iterdir()):
        if machine.is_dir() and not machine.name.startswith("."):
            yield from sorted(
                path for path in machine.iterdir() if layout.is_backup_directory(path.name) and path.is_dir()
            )


def _why_not(backup: Backup, *, whole: Mapping[str, Backup]) -> str | None:
    """Its chain must be there, and the layers must be built on each other as the manifests say."""
    parent = whole.get(backup.parent) if backup.parent is not None else None
    if backup.parent is not None and parent is None:
        return f"what it is built on, {backup.parent}, is not there or is not whole"
    incremental = backup.type is BackupType.INCREMENTAL
    if incremental != (parent is not None) or incremental != (backup.chain_position > 0):
        return "its type and its place in the chain contradict each other"
    if parent is not None and parent.vm_uuid != backup.vm_uuid:
        return f"what it is built on, {parent.external_id}, is of another VM"
    for kind in ("name", "source", "file"):
        if len({getattr(volume, kind) for volume in backup.volumes}) < len(backup.volumes):
            return f"two of its volumes have the same {kind}"
    files = {volume.source: f"../{parent.directory}/{volume.file}" for volume in parent.volumes} if parent else {}
    for volume in backup.volumes:
        if (volume.type is BackupType.INCREMENTAL) != (volume.backing is not None):
            return f"volume {volume.name} is {volume.type} and built on {volume.backing}"
        if volume.backing is not None and files.get(volume.source) != volume.backing:
            return f"volume {volume.name} is built on {volume.backing}, which is not its parent's file"
    return None


def _numbered(backups: Iterable[Backup]) -> tuple[Backup, ...]:
    """``backups``: parents before their children, and so they stay, though a clock may have gone backwards."""
    begun: dict[str, datetime] = {}
    for backup in backups:
        parent = begun[backup.parent] if backup.parent is not None else backup.created_at
        begun[backup.external_id] = max(backup.created_at, parent)
    ordered = sorted(backups, key=lambda found: (begun[found.external_id], found.chain_position))
    numbers = {backup.external_id: number for number, backup in enumerate(ordered, start=1)}
    return tuple(
        replace(
            backup,
            backup_id=numbers[backup.external_id],
            parent_id=numbers[backup.parent] if backup.parent is not None else None,
        )
        for backup in ordered
    )


def _time(text: str, *, directory: Path) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ManifestInvalid(path=directory / layout.MANIFEST, problem=f"{text!r} is no time with an offset")
    return moment


def _backup(document: Mapping[str, Any], *, repository: Repository, directory: Path) -> Backup:
    published = _time(document["published"], directory=directory)
    return Backup(
        backup_id=0,
        external_id=document["external_id"],
        vm=document["vm"]["name"],
        vm_uuid=document["vm"]["uuid"],
        host=document["vm"]["host"],
        repository=repository.name,
        type=BackupType(document["type"]),
        status=BackupStatus.BACKED_UP,
        reason=Reason(document["reason"]),
        explanation=document["explanation"],
        chain_id=document["chain"]["id"],
        chain_position=document["chain"]["position"],
        parent_id=None,
        parent=document["chain"]["parent"],
        checkpoint=document["checkpoint"],
        created_at=_time(document["created"], directory=directory),
        consistency=Consistency(document["consistency"]) if document["consistency"] else None,
        recorded_at=published,
        size=size_on_disk(directory),
        volumes=tuple(
            _volume(volume, checked_at=published, level=VerifyLevel(document.get("verify", VerifyLevel.FULL)))
            for volume in document["volumes"]
        ),
    )


def _volume(document: Mapping[str, Any], *, checked_at: datetime, level: VerifyLevel) -> BackupVolume:
    """Nothing is published that did not pass what its level asks for."""
    return BackupVolume(
        name=document["name"],
        source=document["source"],
        target=document["target"],
        format=document["source_format"],
        file=document["file"],
        virtual_size=document["virtual_size"],
        type=BackupType(document["type"]),
        reason=VolumeReason(document["reason"]),
        backing=document["backing"],
        bytes_read=document["bytes_read"],
        bytes_written=document["bytes_written"],
        digest=document["digest"],
        verified_at=checked_at if level is VerifyLevel.FULL else None,
        checked_at=checked_at,
        compression=Compression(document.get("compression", Compression.NONE)),
    )
