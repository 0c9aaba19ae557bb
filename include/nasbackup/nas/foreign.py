"""Backups that Apache CloudStack's NAS provider left in this layout, without a manifest: told by their files.

Nothing in such a directory is trusted. A file's header is read before QEMU opens it, and its backing file must be a
volume of an older backup of the same instance in this repository, named as CloudStack names it: ``../<time>/<file>``.
CloudStack writes the times in its management server's own time zone; they are taken for UTC.
"""

from __future__ import annotations

import re
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from nasbackup import layout, qcow2
from nasbackup.errors import ImageRefused
from nasbackup.model import Backup, BackupStatus, BackupType, BackupVolume, Reason, Repository, VolumeReason
from nasbackup.nas.publish import size_on_disk

CLOUDSTACK_DEFINITION = "domain-config.xml"
DEFINITIONS = (CLOUDSTACK_DEFINITION, layout.DOMAIN_XML)
_VOLUME = re.compile(r"(root|datadisk)\.([^/\x00-\x1f.][^/\x00-\x1f]*?)(?:\.qcow2)?\.qcow2")
_DEFINITION_MAX = 1 << 20  # bytes


def is_foreign(directory: Path) -> bool:
    """Whether CloudStack made it. One of ours whose manifest is gone is none: it is being deleted, or was damaged."""
    if (directory / layout.MANIFEST).exists() or not any(_VOLUME.fullmatch(path.name) for path in directory.iterdir()):
        return False
    ours = (directory.parent / layout.RESTORE_TXT).exists() or any(directory.parent.glob(f"*/{layout.MANIFEST}"))
    return not ours or (directory / CLOUDSTACK_DEFINITION).is_file()


def read(directory: Path, *, external_id: str, repository: Repository, older: Mapping[str, Backup]) -> Backup:
    """``older``: this instance's backups that were read before, by external id.

    Raises ImageRefused for a file that QEMU must not open, and for one whose chain does not resolve in ``older``.
    """
    instance, name = external_id.split("/")
    domain = _domain(directory)
    files = sorted(
        (path for path in directory.iterdir() if _VOLUME.fullmatch(path.name)),
        key=lambda path: (not path.name.startswith("root."), path.name),
    )
    parents: set[str] = set()
    volumes = []
    for number, file in enumerate(files):
        header = qcow2.read_header(file)
        matched = _VOLUME.fullmatch(file.name)
        assert matched is not None
        source, parent = matched[2], None
        if header.backing is not None:
            parent, below = _resolve(header.backing, file=file, instance=instance, older=older)
            source = below.source  # CloudStack may give the volume another name from one backup to the next
            parents.add(parent)
        if header.virtual_size <= 0:
            raise ImageRefused(file=file, problem="it is a disk of no size")
        volumes.append(
            BackupVolume(
                name=layout.safe_component(matched[2]),
                source=source,
                target=f"vd{chr(ord('a') + number)}" if number < 26 else f"disk{number}",
                format="qcow2",
                file=file.name,
                virtual_size=header.virtual_size,
                type=BackupType.FULL if parent is None else BackupType.INCREMENTAL,
                reason=VolumeReason.FULL_BACKUP if parent is None else VolumeReason.INCREMENTAL,
                backing=header.backing,
            )
        )
    if len(parents) > 1:
        raise ImageRefused(file=directory, problem=f"its volumes are built on different backups: {sorted(parents)}")
    parent = parents.pop() if parents else None
    root = older[parent] if parent is not None else None
    return Backup(
        backup_id=0,
        external_id=external_id,
        vm=instance,
        vm_uuid=root.vm_uuid if root is not None else _uuid(domain, instance=instance),
        host="",
        repository=repository.name,
        type=BackupType.FULL if root is None else BackupType.INCREMENTAL,
        status=BackupStatus.BACKED_UP,
        reason=Reason.IMPORTED,
        explanation="imported: made by Apache CloudStack, no manifest",
        chain_id=root.chain_id if root is not None else str(uuid.uuid5(uuid.NAMESPACE_URL, external_id)),
        chain_position=root.chain_position + 1 if root is not None else 0,
        parent_id=None,
        parent=parent,
        checkpoint=None,
        created_at=_time(name),
        size=size_on_disk(directory),
        volumes=tuple(volumes),
    )


def _resolve(backing: str, *, file: Path, instance: str, older: Mapping[str, Backup]) -> tuple[str, BackupVolume]:
    """The backup and the volume in it that the file is built on. Raises ImageRefused for any other kind of name."""
    up, _, rest = backing.partition("/")
    directory, _, name = rest.partition("/")
    if up != ".." or not layout.is_backup_directory(directory) or not _VOLUME.fullmatch(name):
        raise ImageRefused(
            file=file, problem=f"it is built on {backing!r}, which is no volume of another backup of {instance}"
        )
    below = older.get(f"{instance}/{directory}")
    found = [volume for volume in below.volumes if volume.file == name] if below is not None else []
    if not found:
        raise ImageRefused(
            file=file, problem=f"it is built on {backing!r}, which is not there, not whole, or not older than itself"
        )
    return f"{instance}/{directory}", found[0]


def definition(directory: Path) -> str | None:
    """The VM's definition as CloudStack kept it; None without one, or when it is too large to be one."""
    for name in DEFINITIONS:
        path = directory / name
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= _DEFINITION_MAX:
            return path.read_text(errors="replace")
    return None


def _domain(directory: Path) -> ET.Element | None:
    text = definition(directory)
    try:
        return ET.fromstring(text) if text else None
    except ET.ParseError:
        return None


def _uuid(domain: ET.Element | None, *, instance: str) -> str:
    """The VM's own; without a definition one that is the same for all backups of this instance."""
    try:
        return str(uuid.UUID((domain.findtext("uuid") or "").strip() if domain is not None else ""))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"cloudstack-nas:{instance}"))


def _time(name: str) -> datetime:
    """Raises ValueError for 2026.13.99.00.00.00."""
    return datetime(*map(int, name.split(".")), tzinfo=UTC)  # type: ignore[misc,arg-type]
