"""rebuild-catalog: what the NAS describes and the catalog does not know is written into the catalog."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nasbackup import layout
from nasbackup.catalog import Cursor, backups, leases, recovered, vms
from nasbackup.errors import VmBusy
from nasbackup.model import Backup, BackupStatus, Reason
from nasbackup.nas.shelf import read_shelf
from nasbackup.steps.lease import held_lease
from nasbackup.steps.ticket import Store

_WHOLE = (BackupStatus.BACKED_UP, BackupStatus.DELETE_PENDING)
_UNFINISHED = (BackupStatus.BACKING_UP, BackupStatus.FAILED)


@dataclass(kw_only=True)
class Rebuilt:
    """``added``: external ids. ``known``: how many the catalog had. ``problems``: what was left out, and why."""

    added: list[str] = field(default_factory=list)
    known: int = 0
    problems: list[str] = field(default_factory=list)


def rebuild_catalog(store: Store, *, holder: str, dry_run: bool = False) -> Rebuilt:
    """VM by VM, each under its lease and in one transaction. No active checkpoint: the next backups are fulls.

    A backup whose name the catalog has already, in whatever state, is left as it is there, but for one that it has as
    unfinished and on which others are built: that was recorded after the dump from which the catalog was restored. One
    that is built on one that is not whole is left out, and so is a VM that is busy. Each goes to its place in time
    among those that the catalog has. Raises NotARepository, NasIo.
    """
    root = store.root()
    shelf = read_shelf(store.repository, root=root)
    result = Rebuilt(problems=list(shelf.problems))
    groups: dict[str, list[Backup]] = {}
    for backup in shelf.backups:
        if backup.reason is Reason.IMPORTED:
            result.problems.append(
                f"{backup.external_id}: CloudStack made it, and it has no manifest; "
                f"`nasbackup list` and `restore` take it with --repository {root}"
            )
            continue
        groups.setdefault(backup.vm_uuid, []).append(backup)
    for vm_uuid, found in groups.items():
        vm = found[-1]
        if dry_run:
            with store.database.transaction() as cursor:
                vms.register_if_unknown(cursor, uuid=vm_uuid, name=vm.vm, host=vm.host)
                _recover(store, cursor, found=found, result=result)
                cursor.connection.rollback()
            continue
        with store.database.transaction() as cursor:
            vms.register_if_unknown(cursor, uuid=vm_uuid, name=vm.vm, host=vm.host)
        try:
            with (
                held_lease(store.database, vm_uuid=vm_uuid, vm=vm.vm, holder=holder) as token,
                store.database.transaction() as cursor,
            ):
                leases.renew(cursor, vm_uuid=vm_uuid, vm=vm.vm, token=token)
                _recover(store, cursor, found=found, result=result)
        except VmBusy as busy:
            result.problems.append(f"{vm.vm}: {busy}")
    return result


def _recover(store: Store, cursor: Cursor, *, found: Sequence[Backup], result: Rebuilt) -> None:
    """``found``: of one VM, in the order in which they were made."""
    root = store.root()
    numbers: dict[str, int] = {}
    built_on = {backup.parent for backup in found}
    for backup in found:
        existing = backups.find_or_none(cursor, external_id=backup.external_id)
        mine = existing is None or (existing.repository, existing.vm_uuid) == (backup.repository, backup.vm_uuid)
        if mine and existing is not None and existing.status in _UNFINISHED and backup.external_id in built_on:
            recovered.forget_unfinished(cursor, backup_id=existing.backup_id)
            existing = None
        if existing is not None and not mine:
            result.problems.append(
                f"{backup.external_id}: the catalog has one of this name, of VM {existing.vm} in {existing.repository}"
            )
        elif existing is not None:
            result.known += 1
            if existing.status in _WHOLE:
                numbers[backup.external_id] = existing.backup_id
        elif backup.parent is not None and backup.parent not in numbers:
            result.problems.append(f"{backup.external_id}: to the catalog {backup.parent} is not a whole backup")
        elif (root / backup.external_id / layout.MANIFEST).is_file():  # else deleted since the shelf was read
            parent_id = numbers[backup.parent] if backup.parent is not None else None
            numbers[backup.external_id] = recovered.insert_recorded(cursor, backup=backup, parent_id=parent_id)
            result.added.append(backup.external_id)
