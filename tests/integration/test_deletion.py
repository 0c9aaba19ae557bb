"""Deletion on a real catalog and real files: chains stay whole, and what was begun is ended, whatever comes between."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg2
import pytest
from nasbackup import layout, steps
from nasbackup.catalog import Database, backups, deletions, leases, repositories, vms
from nasbackup.errors import BackupNotDeletable, LeaseLost, NasBackupError, NasIo, NotARepository, VmBusy
from nasbackup.model import Backup, BackupStatus, Consistency, Host, Repository, RepositoryType
from nasbackup.nas import publish, watchdog
from nasbackup.nas import repository as nas_repository
from nasbackup.nas.watchdog import watched
from nasbackup.steps import Site, Ticket
from nasbackup.steps.delete import Removal, delete, finish, let_parent_fall

from lab.nas import FaultyNas, faulty_nas, small_nas
from tests.integration.test_catalog import COPIED, full, incremental, plan

BEGIN = datetime(2026, 1, 31, 22, 0, 5, tzinfo=UTC)
MIB = 1 << 20


@dataclass(kw_only=True)
class Vault:
    """Backups of one VM in one repository. Catalog, lease and publishing are the real ones; the data is a few bytes."""

    site: Site
    vm: str = "i-2-1-VM"
    vm_uuid: str = field(default_factory=lambda: str(uuid4()))
    content: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """External id -> name -> bytes: what was published."""
    begun: int = 0

    def __post_init__(self) -> None:
        with self.site.database.transaction() as cursor:
            vms.register(cursor, uuid=self.vm_uuid, name=self.vm, host=self.site.host.name)

    # --- making -----------------------------------------------------------------------------------------------

    def begin(self, *, parent: Backup | None = None, size: int = 9000) -> Ticket:
        """Everything up to the moment at which it could be recorded; the lease is held."""
        self.begun += 1
        when = BEGIN + timedelta(hours=self.begun)
        checkpoint = layout.checkpoint_name(when=when)
        decision = full(checkpoint)
        if parent is not None:
            decision = incremental(checkpoint, parent=parent.backup_id, position=parent.chain_position + 1)
        external_id, run = layout.external_id(vm=self.vm, when=when), f"run-{self.begun}"
        with self.site.database.transaction() as cursor:
            lease = leases.acquire(cursor, vm_uuid=self.vm_uuid, vm=self.vm, holder=run)
        with self.site.database.transaction() as cursor:
            leases.renew(cursor, vm_uuid=self.vm_uuid, vm=self.vm, token=lease.token)
            backup_id = backups.open_backup(
                cursor,
                decision=decision,
                external_id=external_id,
                vm_uuid=self.vm_uuid,
                host=self.site.host.name,
                repository=self.site.repository.name,
                run_id=run,
                lease_token=lease.token,
                created_at=when,
            )
            backups.set_consistency(cursor, backup_id=backup_id, consistency=Consistency.CRASH)
        self._copy(backup_id, external_id=external_id, data=external_id[-8:].encode() * (size // 8))
        return self.ticket(backup_id, token=lease.token)
