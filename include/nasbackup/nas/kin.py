"""Which backups of a VM are on the NAS, and what they are built on: as it says itself, whatever the catalog knows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nasbackup import layout
from nasbackup.model import Repository
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


@dataclass(frozen=True, kw_only=True)
class Parents:
    """``of``: external id -> what it is built on. ``unclear``: external ids of those that do not say it."""

    of: Mapping[str, str]
    unclear: tuple[str, ...]


def parents(repository: Repository, *, identity: str, external_ids: Sequence[str]) -> Parents:
    """What each of these is built on, as far as it has a manifest. Raises NotARepository, NasIo.

    It is not asked whether the manifest is sound: layers that qemu-img can restore may lie beside one that somebody has
    edited, or that a newer version wrote.
    """
    root = open_root(repository, identity=identity)
    found: dict[str, str] = {}
    unclear = []
    with doing(repository, "reading manifests"):
        for external_id in external_ids:
            try:
                parent = _parent(root / external_id)
            except (ValueError, LookupError, TypeError, RecursionError):
                unclear.append(external_id)
                continue
            if parent is not None:
                found[external_id] = parent
    return Parents(of=found, unclear=tuple(unclear))


def _parent(directory: Path) -> str | None:
    """None: a full, or no backup, which has no manifest."""
    try:
        content = (directory / layout.MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    parent = json.loads(content)["chain"]["parent"]
    if parent is not None and not isinstance(parent, str):
        raise TypeError(parent)
    return parent
