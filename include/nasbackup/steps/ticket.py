"""What the steps hand each other: a reference to the backup, and where its parts are found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nasbackup import layout
from nasbackup.catalog import Database, backups, leases, repositories
from nasbackup.errors import BackupNotOpen
from nasbackup.handling import Compression, VerifyLevel
from nasbackup.hypervisor.job import JobName
from nasbackup.model import Backup, BackupStatus, Host, Mode, Quiesce, Repository
from nasbackup.nas.repository import open_root
from nasbackup.nas.watchdog import watched


@dataclass(frozen=True, kw_only=True)
class BackupRequest:
    """What the operator or a schedule asks for. ``exclude_volumes`` names volumes by name, target or source."""

    vm: str
    mode: Mode = Mode.AUTO
    quiesce: Quiesce = Quiesce.OFF
    exclude_volumes: tuple[str, ...] = ()
    allow_encrypted: bool = False
    """Back up encrypted volumes too, although what goes to the NAS is their plain content."""
    compression: Compression = Compression.NONE
    bandwidth: int | None = None
    """Bytes a second that the copy, and the reading back, of each volume reads at most; None: no limit."""
    verify: VerifyLevel = VerifyLevel.FULL


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """The right to go on with one backup: whoever holds an outdated ``lease_token`` is refused by the catalog."""

    backup_id: int
    external_id: str
    vm: str
    vm_uuid: str
    host: str
    repository: str
    lease_token: int


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where backups are known and where they lie: enough to delete or to restore one."""

    database: Database
    repository: Repository

    def root(self) -> Path:
        """The repository's root, after the check that it is that. Raises NotARepository, UnknownRepository."""
        return watched(self.repository, "reading the marker", open_root, self.repository, identity=self.repository_uuid)

    @cached_property
    def repository_uuid(self) -> str:
        """A name keeps its identity for ever: it is asked for once. Raises UnknownRepository."""
        with self.database.reading() as cursor:
            return repositories.get(cursor, name=self.repository.name).uuid


@dataclass(frozen=True, kw_only=True)
class Site(Store):
    """The three places where the truth lives: the catalog, the repository and the host."""

    host: Host

    def load(self, ticket: Ticket) -> Backup:
        """The backup, with the lease renewed. Raises LeaseLost, or BackupNotOpen when it is not being made any more."""
        with self.database.transaction() as cursor:
            leases.renew(cursor, vm_uuid=ticket.vm_uuid, vm=ticket.vm, token=ticket.lease_token)
            backup = backups.get(cursor, backup_id=ticket.backup_id)
        if backup.status is not BackupStatus.BACKING_UP:
            raise BackupNotOpen(backup=backup.external_id, status=backup.status)
        return backup

    def renew(self, ticket: Ticket) -> None:
        with self.database.transaction() as cursor:
            leases.renew(cursor, vm_uuid=ticket.vm_uuid, vm=ticket.vm, token=ticket.lease_token)

    def job_name(self, backup: Backup) -> JobName:
        return JobName(host=self.host, vm_uuid=backup.vm_uuid, stamp=backup.directory)


def base_checkpoint(site: Site, backup: Backup) -> str | None:
    """The checkpoint whose bitmaps say what changed since the parent; None for a full."""
    if backup.parent_id is None:
        return None
    with site.database.reading() as cursor:
        return backups.get(cursor, backup_id=backup.parent_id).checkpoint


def partial_path(root: Path, *, backup: Backup) -> Path:
    return root / layout.partial_directory(backup.external_id)
