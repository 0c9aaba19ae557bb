"""Where the commands find backups: in the catalog, or, with ``--repository PATH``, on the NAS alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import click

from nasbackup.catalog import Database, backups, deletions, read_back, repositories, restores
from nasbackup.cli.options import database_or_refuse, holder
from nasbackup.errors import NotARepository
from nasbackup.model import Backup, BackupStatus, Repository, RepositoryType
from nasbackup.nas.repository import read_name
from nasbackup.nas.shelf import Shelf, read_shelf
from nasbackup.restore.image import Follow, Located, locate
from nasbackup.restore.verification import Layer
from nasbackup.steps.lease import SharedLease
from nasbackup.steps.reading import Protection, protected


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Backups, the oldest first; ``kept_by``: number of a delete-pending one -> why it still exists."""

    backups: Sequence[Backup]
    roots: Mapping[str, Path]
    kept_by: Mapping[int, Sequence[str]]


class Place(Protocol):
    def listing(self, *, vm: str | None = None, statuses: Sequence[BackupStatus] = tuple(BackupStatus)) -> Listing: ...

    def one(self, external_id: str) -> Listing:
        """A listing of exactly this one. Raises BackupNotFound."""

    def locate(self, external_id: str, *, reader: str | None = None) -> Located: ...

    def latest(self, *, vm: str, before: datetime | None) -> Backup | None:
        """The VM's newest backup that can be restored, from before this moment."""

    def reading(self, located: Located, follow: Follow) -> Any:
        """A block in which nobody deletes a layer; yields what to call with progress."""

    def note_read_back(self, layers: Sequence[Layer]) -> None:
        """These were compared with their digests, and are what was copied."""

    def protecting(self, located: Located, what: str) -> Any:
        """The same for hours: the VM is backed up meanwhile. Yields a ``Protection``."""


@dataclass(frozen=True, kw_only=True)
class InCatalog:
    database: Database

    def listing(self, *, vm: str | None = None, statuses: Sequence[BackupStatus] = tuple(BackupStatus)) -> Listing:
        with self.database.transaction() as cursor:
            return self._listing(cursor, backups.list_backups(cursor, vm=vm, statuses=statuses))

    def one(self, external_id: str) -> Listing:
        with self.database.transaction() as cursor:
            return self._listing(cursor, [backups.find(cursor, external_id=external_id)])

    def _listing(self, cursor: Any, found: Sequence[Backup]) -> Listing:
        """Only a delete-pending backup needs a reason to exist."""
        pending = [backup.backup_id for backup in found if backup.status is BackupStatus.DELETE_PENDING]
        known = [registered.repository for registered in repositories.list_all(cursor)]
        return Listing(
            backups=found,
            roots={repository.name: Path(repository.path) for repository in known},
            kept_by=deletions.keepers(cursor, backup_ids=pending) if pending else {},
        )

    def locate(self, external_id: str, *, reader: str | None = None) -> Located:
        return locate(self.database, external_id=external_id, reader=reader)

    def latest(self, *, vm: str, before: datetime | None) -> Backup | None:
        with self.database.transaction() as cursor:
            return restores.latest_of(cursor, vm=vm, before=before)

    @contextmanager
    def reading(self, located: Located, follow: Follow) -> Iterator[Follow]:
        backup = located.backup
        lease = SharedLease(database=self.database, vm_uuid=backup.vm_uuid, vm=backup.vm, holder=holder("restore"))
        token = lease.join()
        try:
            self.locate(backup.external_id)  # it may have been deleted a moment ago
            yield lease.renewing(token, follow)
        finally:
            lease.leave()

    def note_read_back(self, layers: Sequence[Layer]) -> None:
        found = [(layer.backup, layer.volume.name, layer.volume.digest) for layer in layers]
        with self.database.transaction() as cursor:
            read_back.note(cursor, layers=[(backup, name, digest) for backup, name, digest in found if digest])

    def protecting(self, located: Located, what: str) -> AbstractContextManager[Protection]:
        return protected(self.database, external_id=located.backup.external_id, reader=holder(what))


@dataclass(frozen=True, kw_only=True)
class OnShelf:
    shelf: Shelf

    def listing(self, *, vm: str | None = None, statuses: Sequence[BackupStatus] = tuple(BackupStatus)) -> Listing:
        return self._listing(
            [found for found in self.shelf.backups if vm in (None, found.vm) and found.status in statuses]
        )

    def one(self, external_id: str) -> Listing:
        return self._listing([self.shelf.find(external_id)])

    def _listing(self, found: Sequence[Backup]) -> Listing:
        return Listing(backups=found, roots={backup.repository: self.shelf.root for backup in found}, kept_by={})

    def locate(self, external_id: str, *, reader: str | None = None) -> Located:
        backup = self.shelf.find(external_id)
        return self._located(backup)

    def _located(self, backup: Backup) -> Located:
        older = [known for known in self.shelf.backups if known.vm_uuid == backup.vm_uuid][::-1]
        return Located(
            backup=backup,
            lineage=self.shelf.lineage(backup),
            root=self.shelf.root,
            older=lambda: map(self._located, (known for known in older if known.backup_id < backup.backup_id)),
        )

    def latest(self, *, vm: str, before: datetime | None) -> Backup | None:
        found = [known for known in self.shelf.backups if known.vm == vm]
        return next((known for known in found[::-1] if before is None or known.created_at < before), None)

    @contextmanager
    def reading(self, located: Located, follow: Follow) -> Iterator[Follow]:
        yield follow  # there is no catalog, so there is nobody to keep away

    def note_read_back(self, layers: Sequence[Layer]) -> None:
        """There is nowhere to note it: a manifest is never changed."""

    @contextmanager
    def protecting(self, located: Located, what: str) -> Iterator[Protection]:
        yield Protection(backup=located.backup.external_id)


def with_place(command: Callable[..., None]) -> Callable[..., None]:
    """Adds ``--repository PATH``, and calls the command with a ``place``."""

    @click.option(
        "--repository",
        "repository_path",
        type=click.Path(path_type=Path, file_okay=False),
        help="A repository's directory: read its manifests, ask no catalog.",
    )
    @functools.wraps(command)
    def wrapper(*args: Any, repository_path: Path | None, **kwargs: Any) -> None:
        place: Place
        if repository_path is None:
            place = InCatalog(database=database_or_refuse())
        else:
            place = OnShelf(shelf=open_shelf(repository_path.absolute()))
        return command(*args, place=place, **kwargs)

    return wrapper


def open_shelf(root: Path) -> Shelf:
    """What is on it; problems are told on stderr. Raises NotARepository when there is no such directory."""
    repository = Repository(name=read_name(root) or root.name, type=RepositoryType.LOCAL, path=str(root))
    if not root.is_dir():
        raise NotARepository(path=root, repository=repository.name, problem="there is no such directory")
    shelf = read_shelf(repository, root=root)
    for problem in shelf.problems:
        click.echo(f"Left out: {problem}", err=True)
    return shelf
