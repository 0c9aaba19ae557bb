"""rebuild-catalog: what the NAS describes and the catalog does not know is written into the catalog."""

from __future__ import annotations

from dataclasses import dataclass

from nasbackup.catalog import backups, recovered, vms
from nasbackup.model import BackupStatus
from nasbackup.nas.shelf import read_shelf
from nasbackup.steps.ticket import Store

_WHOLE = (BackupStatus.BACKED_UP, BackupStatus.DELETE_PENDING)


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """``added``: external ids. ``known``: how many the catalog had. ``problems``: what was left out, and why."""

    added: tuple[str, ...]
    known: int
    problems: tuple[str, ...]


def rebuild_catalog(store: Store, *, dry_run: bool = False) -> Rebuilt:
    """In one transaction: all of it, or nothing. No active checkpoint: each VM's next backup is a full.

    A backup whose name the catalog has already, in whatever state, is left as it is there, and so are those that are
    built on one that is not BackedUp. Raises NotARepository, ManifestInvalid, NasIo.
    """
    root = store.root()
    shelf = read_shelf(store.repository, root=root)
    added, problems = [], list(shelf.problems)
    with store.database.transaction() as cursor:
        numbers: dict[str, int] = {}
        known = 0
        for backup in shelf.backups:
            existing = backups.find_or_none(cursor, external_id=backup.external_id)
            if existing is not None:
                known += 1
                if existing.repository == store.repository.name and existing.status in _WHOLE:
                    numbers[backup.external_id] = existing.backup_id
                continue
            if backup.parent is not None and backup.parent not in numbers:
                problems.append(f"{backup.external_id}: to the catalog {backup.parent} is not a whole backup")
                continue
            vms.register_if_unknown(cursor, uuid=backup.vm_uuid, name=backup.vm, host=backup.host)
            parent_id = numbers[backup.parent] if backup.parent is not None else None
            numbers[backup.external_id] = recovered.insert_recorded(cursor, backup=backup, parent_id=parent_id)
            added.append(backup.external_id)
        if dry_run:
            cursor.connection.rollback()
    return Rebuilt(added=tuple(added), known=known, problems=tuple(problems))
