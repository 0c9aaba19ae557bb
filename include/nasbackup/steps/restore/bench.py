"""Where a restore works: the catalog, the host, and the VM's lease."""

from __future__ import annotations

from dataclasses import dataclass

from nasbackup.catalog import Database, backups, restores
from nasbackup.model import Backup, Host
from nasbackup.restore.plan import RestorePlan, from_document
from nasbackup.steps.lease import SharedLease


@dataclass(frozen=True, kw_only=True)
class Bench:
    """``holder``: whose lease it is, and whose mark is on the backup while somebody is asked; all tasks of one run
    share it.
    """

    database: Database
    host: Host
    holder: str

    def backup(self, external_id: str) -> Backup:
        """Raises BackupNotFound."""
        with self.database.transaction() as cursor:
            return backups.find(cursor, external_id=external_id)

    def lease(self, *, uuid: str, vm: str) -> SharedLease:
        """Of the VM whose backup is restored: meanwhile it is not backed up, and none of its backups is deleted."""
        return SharedLease(database=self.database, vm_uuid=uuid, vm=vm, holder=self.holder)

    def load(self, backup: Backup, *, key: str) -> RestorePlan:
        """The plan that was made. Raises RestoreSuperseded."""
        with self.database.transaction() as cursor:
            return from_document(restores.require(cursor, vm_uuid=backup.vm_uuid, vm=backup.vm, key=key).plan)
