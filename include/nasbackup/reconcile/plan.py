"""What to take away, and what only to report: a pure function of three views.

Only what this catalog made is ever touched: a checkpoint by its name in a backup's row, a directory by its external
id, a socket or scratch file by the UUID of a VM that the catalog knows. Everything else is foreign.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from nasbackup import layout
from nasbackup.answers import ANSWERED_WITHIN
from nasbackup.model import Backup, BackupStatus


class Kind(StrEnum):
    UNDO_BACKUP = "undo_backup"  # left unfinished by a run that died: job, checkpoint and files go
    UNDO_RESTORE = "undo_restore"  # one that was cut off while files got their names, or left long ago
    FINISH_DELETE = "finish_delete"  # a deletion that was begun, and that nothing holds up any more
    END_JOB = "end_job"  # a backup job of ours that no backup in the making needs
    DROP_CHECKPOINT = "drop_checkpoint"
    REMOVE_FILE = "remove_file"  # socket or scratch
    REMOVE_DIRECTORY = "remove_directory"  # of a backup that was never recorded
    REPORT = "report"  # nothing is done: somebody should look


@dataclass(frozen=True, kw_only=True)
class Action:
    kind: Kind
    what: str
    why: str
    vm_uuid: str | None = None
    backup_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class VmView:
    """One VM of the catalog: what it says, and what its host has."""

    uuid: str
    name: str
    leased: bool
    on_host: bool
    job: str | None
    checkpoints: frozenset[str]
    ours: frozenset[str]
    in_use: frozenset[str]
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class NasView:
    """Directories of one repository, relative to its root: published ones and partial ones."""

    published: frozenset[str]
    partial: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class LeftRestore:
    """A restore on this host that nobody is at work on."""

    vm_uuid: str
    vm: str
    backup: str
    moving: bool
    begun_at: datetime


@dataclass(frozen=True, kw_only=True)
class View:
    """Everything of one host and one repository, seen at once. ``backups``: all of this repository, in any state."""

    vms: tuple[VmView, ...]
    nas: NasView
    backups: tuple[Backup, ...]
    clean: frozenset[int]
    """Numbers of failed backups of which nothing is left."""
    socket_dir: str
    falling: frozenset[int] = frozenset()
    """Numbers of the backups whose deletion was begun and can go on: the catalog decides that, for everybody."""
    restores: tuple[LeftRestore, ...] = ()
    now: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    actions: tuple[Action, ...]

    @property
    def to_do(self) -> Sequence[Action]:
        return [action for action in self.actions if action.kind is not Kind.REPORT]


def plan(view: View) -> Plan:
    """What would be done. A VM whose lease is held is at work and left alone altogether."""
    return Plan(actions=tuple(_actions(view)))


def _actions(view: View) -> Iterator[Action]:
    leased = {vm.uuid for vm in view.vms if vm.leased}
    undone = [backup for backup in view.backups if backup.vm_uuid not in leased and _is_unfinished(backup, view=view)]
    for backup in undone:
        yield Action(
            kind=Kind.UNDO_BACKUP,
            what=backup.external_id,
            why=f"it is {backup.status} and its run {backup.run_id} has ended",
            vm_uuid=backup.vm_uuid,
            backup_id=backup.backup_id,
        )
    for backup in view.backups:
        if backup.vm_uuid not in leased and backup.backup_id in view.falling:
            yield Action(
                kind=Kind.FINISH_DELETE,
                what=backup.external_id,
                why=f"it is {backup.status} and nothing needs it any more",
                vm_uuid=backup.vm_uuid,
                backup_id=backup.backup_id,
            )
    for left in view.restores:
        # One that has moved nothing yet may be waiting for somebody's answer.
        if left.moving or (view.now is not None and view.now - left.begun_at > ANSWERED_WITHIN):
            yield Action(
                kind=Kind.UNDO_RESTORE,
                what=left.backup,
                why=f"its restore (VM {left.vm}) was begun {left.begun_at:%Y-%m-%d %H:%M} and nobody is at work on it",
                vm_uuid=left.vm_uuid,
            )
    for vm in view.vms:
        if not vm.leased and vm.on_host:
            yield from _on_host(vm, view=view, undone={b.checkpoint for b in undone if b.vm_uuid == vm.uuid})
    yield from _on_nas(view, leased=leased, undone={backup.external_id for backup in undone})


def _is_unfinished(backup: Backup, *, view: View) -> bool:
    if backup.status is BackupStatus.FAILED:
        return backup.backup_id not in view.clean
    return backup.status is BackupStatus.BACKING_UP


def _on_host(vm: VmView, *, view: View, undone: set[str | None]) -> Iterator[Action]:
    ours = vm.job is not None and vm.job.startswith(f"{view.socket_dir}/{vm.uuid}-")
    if ours and not undone:
        yield Action(
            kind=Kind.END_JOB, what=vm.job or "", why=f"no backup of {vm.name} is in the making", vm_uuid=vm.uuid
        )
    for name in sorted((vm.checkpoints & vm.ours) - (vm.in_use - undone) - undone):
        yield Action(
            kind=Kind.DROP_CHECKPOINT, what=name, why=f"nothing of {vm.name} needs it any more", vm_uuid=vm.uuid
        )
    if not ours:
        for path in vm.files:
            yield Action(kind=Kind.REMOVE_FILE, what=path, why=f"{vm.name} has no backup job", vm_uuid=vm.uuid)


def _on_nas(view: View, *, leased: set[str], undone: set[str]) -> Iterator[Action]:
    rows = {backup.external_id: backup for backup in view.backups}
    partial = {layout.external_id_of_partial(directory): directory for directory in view.nas.partial}
    for external_id, directory in _visible(partial, view.nas.published):
        backup = rows.get(external_id)
        if backup is None:
            yield Action(kind=Kind.REPORT, what=directory, why="the catalog does not know it: foreign, left alone")
        elif backup.vm_uuid in leased or external_id in undone:
            continue
        elif backup.status is BackupStatus.FAILED:
            # Published by an orphan after its backup had been undone.
            yield Action(
                kind=Kind.REMOVE_DIRECTORY,
                what=external_id,
                why=f"its backup is {backup.status}",
                vm_uuid=backup.vm_uuid,
                backup_id=backup.backup_id,
            )
    for backup in view.backups:
        if backup.status is BackupStatus.BACKED_UP and backup.external_id not in view.nas.published:
            yield Action(
                kind=Kind.REPORT, what=backup.external_id, why="the catalog has it as BackedUp and it is not on the NAS"
            )


def _visible(partial: dict[str, str], published: Iterable[str]) -> Iterator[tuple[str, str]]:
    yield from sorted(partial.items())
    yield from sorted((directory, directory) for directory in published)
