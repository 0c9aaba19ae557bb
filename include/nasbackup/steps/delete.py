"""delete: a backup goes when nothing needs it any more, and takes the parents along that waited only for it.

::

    has a child, in any state?  ── yes ─▶ DeletePending: no file is touched; it falls with its last child
                                └─ no ──▶ Deleting (committed) ─▶ files ─▶ row ─▶ is its parent DeletePending? the same

Under the VM's lease, each step committed before the next effect, each repeatable after a crash at any point. No file
is ever rewritten or rebased (CloudStack PR #13074).
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from nasbackup.catalog import Cursor, backups, deletions, leases, vms
from nasbackup.errors import BackupNotDeletable, NasError
from nasbackup.model import Backup, BackupStatus
from nasbackup.nas import publish
from nasbackup.nas.watchdog import watched
from nasbackup.steps.lease import held_lease
from nasbackup.steps.removable import Objections
from nasbackup.steps.ticket import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A backup that is gone. ``files``: relative to the repository's root. ``bytes_freed``: what they occupied."""

    external_id: str
    files: tuple[str, ...]
    bytes_freed: int


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """What became of one request. ``kept_by``: children for which the backup still exists, delete-pending."""

    external_id: str
    removed: tuple[Removal, ...] = ()
    kept_by: tuple[str, ...] = ()
    was_active: bool = False
    """The VM's next backup is a full, and a bitmap on its host is of no use any more (``drop_unneeded``)."""

    @property
    def bytes_freed(self) -> int:
        return sum(removal.bytes_freed for removal in self.removed)


def leaf_first(wanted: Sequence[Backup]) -> list[list[Backup]]:
    """A group per VM and repository, each in the order in which none is delete-pending that goes anyway."""
    groups: dict[tuple[str, str], list[Backup]] = {}
    for backup in _children_first(wanted):
        groups.setdefault((backup.vm_uuid, backup.repository), []).append(backup)
    return list(groups.values())


def _children_first(wanted: Sequence[Backup]) -> list[Backup]:
    return sorted(wanted, key=lambda backup: (backup.chain_position, backup.backup_id), reverse=True)


def delete(store: Store, *, external_ids: Sequence[str], holder: str) -> list[Deletion]:
    """``each_deleted``, up to the first that is refused: raises its BackupNotDeletable. Those before it are done."""
    done = []
    with closing(each_deleted(store, external_ids=external_ids, holder=holder)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, BackupNotDeletable):
                raise outcome
            done.append(outcome)
    return done


def each_deleted(
    store: Store, *, external_ids: Sequence[str], holder: str
) -> Generator[Deletion | BackupNotDeletable, None, None]:
    """Delete backups of one VM, in this order: leaf first, or else parents are delete-pending for a moment.

    Says of each what became of it, as soon as that is so; the VM's lease is held until the last. An id that is gone
    already is no error, it is what was asked for by an earlier try. Raises VmBusy; BackupNotDeletable for one of
    another VM or repository; NasError, LeaseLost: what was told before is done, and the one at hand goes on when it is
    asked for again.
    """
    with store.database.reading() as cursor:
        wanted = [found for name in external_ids if (found := backups.find_or_none(cursor, external_id=name))]
    if not wanted:
        return
    store.root()  # before anything is marked
    first = wanted[0]
    for backup in wanted:
        if (backup.vm_uuid, backup.repository) != (first.vm_uuid, store.repository.name):
            raise BackupNotDeletable(
                backup=backup.external_id, why=f"it is not of VM {first.vm} in repository {store.repository.name}"
            )
    objections = Objections(store=store)
    with held_lease(store.database, vm_uuid=first.vm_uuid, vm=first.vm, holder=holder) as token:
        for backup in wanted:
            yield from _delete_one(store, backup=backup, lease_token=token, objections=objections)


def _delete_one(
    store: Store, *, backup: Backup, lease_token: int, objections: Objections
) -> Iterator[Deletion | BackupNotDeletable]:
    with store.database.reading() as cursor:
        is_there = backups.find_or_none(cursor, external_id=backup.external_id) is not None
        active = vms.active_checkpoint(cursor, vm_uuid=backup.vm_uuid, repository=backup.repository)
    if not is_there:
        yield Deletion(external_id=backup.external_id)  # it was pending, and fell with its last child just now
        return
    removed: list[Removal] = []
    was_active = active is not None and active == backup.checkpoint
    try:
        for removal in let_fall(store, backup=backup, lease_token=lease_token, objections=objections):
            removed.append(removal)
    except BackupNotDeletable as refused:
        yield refused
        return
    except NasError:
        if removed:  # it is a parent that could not fall
            yield Deletion(external_id=backup.external_id, removed=tuple(removed), was_active=was_active)
        raise
    with store.database.reading() as cursor:
        kept_by = deletions.kept_by(cursor, backup_id=backup.backup_id)
    yield Deletion(
        external_id=backup.external_id, removed=tuple(removed), kept_by=tuple(kept_by), was_active=was_active
    )


def let_fall(store: Store, *, backup: Backup, lease_token: int, objections: Objections) -> Iterator[Removal]:
    """delete(B), by the holder of the lease: this backup, and each parent that only waited for it, as they go.

    Raises BackupNotDeletable for the backup itself; a parent that cannot be removed waits on.
    """
    identity = store.repository_uuid
    current: Backup | None = backup
    while current is not None:
        try:
            status = _mark(store, backup=current, lease_token=lease_token, objections=objections)
        except BackupNotDeletable as refused:
            if current is backup:
                raise
            log.warning("%s", refused)
            break
        if status is BackupStatus.DELETE_PENDING:
            log.info("%s is delete-pending: it has children", current.external_id)
            break
        files = watched(
            store.repository,
            f"removing {current.external_id}",
            publish.remove,
            store.repository,
            identity=identity,
            external_id=current.external_id,
        )
        with store.database.transaction() as cursor:
            leases.renew(cursor, vm_uuid=backup.vm_uuid, vm=backup.vm, token=lease_token)
            parent = deletions.close(cursor, backup_id=current.backup_id)
            gone = Removal(external_id=current.external_id, files=files.files, bytes_freed=files.bytes_freed)
            log.info("%s is gone: %d bytes freed", current.external_id, files.bytes_freed)
            current = backups.get(cursor, backup_id=parent) if parent is not None else None
        yield gone


def _mark(store: Store, *, backup: Backup, lease_token: int, objections: Objections) -> BackupStatus:
    """The NAS is asked only about what would go: a backup with children that the catalog knows stays anyway."""
    with store.database.reading() as cursor:
        kept = bool(deletions.kept_by(cursor, backup_id=backup.backup_id))
    if kept:
        with store.database.transaction() as cursor:
            leases.renew(cursor, vm_uuid=backup.vm_uuid, vm=backup.vm, token=lease_token)
            if deletions.mark_kept(cursor, backup_id=backup.backup_id):
                return BackupStatus.DELETE_PENDING
    objections.require_none(backup=backup)
    with store.database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=backup.vm_uuid, vm=backup.vm, token=lease_token)
        return deletions.mark(cursor, backup_id=backup.backup_id)


def list_files(store: Store, *, vm: str) -> list[str]:
    """All files of the VM's directory (the first part of an external id), relative to the repository's root."""
    root = store.root()
    return watched(store.repository, f"listing {vm}", publish.list_files, store.repository, root=root, machine=vm)


def let_parent_fall(store: Store, *, backup: Backup, lease_token: int) -> list[Removal]:
    """A failed child is cleaned up: a parent that was delete-pending because of it alone goes now, if it can."""
    if backup.parent_id is None:
        return []
    with store.database.transaction() as cursor:
        parent_id = deletions.falling(cursor, backup_id=backup.parent_id)
        parent = backups.get(cursor, backup_id=parent_id) if parent_id is not None else None
    if parent is None:
        return []
    try:
        return list(let_fall(store, backup=parent, lease_token=lease_token, objections=Objections(store=store)))
    except BackupNotDeletable as refused:  # that is for whoever deletes: the run that cleans up goes on
        log.warning("%s", refused)
        return []


@dataclass(frozen=True, kw_only=True)
class Finished:
    """``refused``: external id of what cannot be removed now -> why."""

    removed: tuple[Removal, ...] = ()
    refused: Mapping[str, BackupNotDeletable] = field(default_factory=dict)


def finish(store: Store, *, vm_uuid: str, vm: str, holder: str) -> Finished:
    """Go on with every deletion of the VM in this repository that was begun, and that nothing holds up any more."""
    with store.database.transaction() as cursor:
        waiting = deletions.unfinished(cursor, vm_uuid=vm_uuid)
    if not any(backup.repository == store.repository.name for backup in waiting):
        return Finished()
    with held_lease(store.database, vm_uuid=vm_uuid, vm=vm, holder=holder) as token:
        return finish_as_holder(store, vm_uuid=vm_uuid, lease_token=token)


def finish_as_holder(store: Store, *, vm_uuid: str, lease_token: int) -> Finished:
    """All that can go is gone then, whatever cannot. Raises VmBusy, NasError."""
    removed: list[Removal] = []
    refused: dict[str, BackupNotDeletable] = {}
    objections = Objections(store=store)
    while True:
        with store.database.transaction() as cursor:
            waiting = [
                backup
                for backup in deletions.unfinished(cursor, vm_uuid=vm_uuid)
                if backup.repository == store.repository.name and backup.external_id not in refused
            ]
        if not waiting:
            return Finished(removed=tuple(removed), refused=refused)
        try:
            removed += let_fall(store, backup=waiting[-1], lease_token=lease_token, objections=objections)
        except BackupNotDeletable as error:
            refused[waiting[-1].external_id] = error


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What would become of one backup. ``kept_by``: children that are not to be deleted as well."""

    external_id: str
    goes: bool
    kept_by: tuple[str, ...] = ()
    refused: str = ""


def preview(cursor: Cursor, *, wanted: Sequence[Backup]) -> list[Preview]:
    """What delete(B) of each of these would do now, leaf first; nothing is changed."""
    found: dict[str, Preview] = {}
    for backup in _children_first(wanted):
        refused = deletions.refusal(cursor, backup_id=backup.backup_id)
        kept_by = tuple(
            child
            for child in deletions.kept_by(cursor, backup_id=backup.backup_id)
            if child not in found or not found[child].goes
        )
        found[backup.external_id] = Preview(
            external_id=backup.external_id,
            goes=refused is None and not kept_by,
            kept_by=kept_by,
            refused=refused or "",
        )
    return list(found.values())
