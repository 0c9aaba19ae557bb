"""Which backups of a VM are on the NAS, and what they are built on: as it says itself, whatever the catalog knows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from nasbackup import layout
from nasbackup.errors import ManifestInvalid
from nasbackup.model import Repository
from nasbackup.nas import manifest
from nasbackup.nas.repository import doing, open_root


@dataclass(frozen=True, kw_only=True)
class Kin:
    """External ids. ``links``: those of ``there`` that are links to a directory somewhere else."""

    there: tuple[str, ...]
    links: tuple[str, ...]


def kin(repository: Repository, *, identity: str, instance: str) -> Kin:
    """What looks like a backup in the VM's directory; partial ones are left out. Raises NotARepository, NasIo."""
    root = open_root(repository, identity=identity)
    found: list[tuple[str, bool]] = []
    with doing(repository, f"listing {instance}"), suppress(FileNotFoundError), os.scandir(root / instance) as entries:
        found = [
            (f"{instance}/{entry.name}", entry.is_symlink())
            for entry in entries
            if layout.is_backup_directory(entry.name)
        ]
    return Kin(there=tuple(name for name, _ in found), links=tuple(name for name, is_link in found if is_link))


def parents(repository: Repository, *, identity: str, external_ids: Sequence[str]) -> dict[str, str]:
    """What each of these is built on. A full, one without a sound manifest of its own, or a copy has no entry."""
    root = open_root(repository, identity=identity)
    found: dict[str, str] = {}
    with doing(repository, "reading manifests"):
        for external_id in external_ids:
            with suppress(ManifestInvalid, NotADirectoryError, RecursionError):
                document = manifest.read(root / external_id)
                if document["external_id"] == external_id and document["chain"]["parent"] is not None:
                    found[external_id] = document["chain"]["parent"]
    return found
