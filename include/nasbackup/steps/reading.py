"""Read a backup for long without keeping its VM from being backed up: only its deletion has to wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from nasbackup.catalog import Database, backups, readings
from nasbackup.errors import CatalogError, ReadingLost

HOLD_SECONDS = 900.0
RENEW_SECONDS = 30.0


@dataclass(kw_only=True)
class Protection:
    """A backup that nobody deletes as long as this holds."""

    backup: str
    lost: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises ReadingLost when the backup may have been deleted meanwhile."""
        if self.lost.is_set():
            raise ReadingLost(backup=self.backup, why="the catalog could not be told in time that it is being read")


@contextmanager
def protected(database: Database, *, external_id: str, reader: str) -> Iterator[Protection]:
    """Keep the backup and its ancestors from being deleted, for the length of the block.

    A deletion meanwhile makes it delete-pending; the next nas_retention or nas_reconcile takes it away. Raises
    BackupNotFound, BackupNotRestorable; at the end ReadingLost, unless the protection held all the time.
    """
    with database.transaction() as cursor:
        backup_id = backups.find(cursor, external_id=external_id).backup_id
        reading_id = readings.begin(cursor, backup_id=backup_id, reader=reader, seconds=HOLD_SECONDS)
    protection = Protection(backup=external_id)
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(database, reading_id, protection, done), daemon=True)
    keeper.start()
    try:
        yield protection
        protection.check()
    finally:
        done.set()
        keeper.join()
        with suppress(CatalogError), database.transaction() as cursor:  # else it expires
            readings.end(cursor, reading_id=reading_id)


def _keep(database: Database, reading_id: int, protection: Protection, done: threading.Event) -> None:
    held_until = time.monotonic() + HOLD_SECONDS - RENEW_SECONDS
    while not done.wait(RENEW_SECONDS):
        try:
            with database.transaction() as cursor:
                readings.renew(cursor, reading_id=reading_id, backup=protection.backup, seconds=HOLD_SECONDS)
            held_until = time.monotonic() + HOLD_SECONDS - RENEW_SECONDS
        except ReadingLost:
            return protection.lost.set()
        except CatalogError:
            if time.monotonic() > held_until:
                return protection.lost.set()
