"""How full repositories are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from nasbackup.catalog import Database, capacity
from nasbackup.errors import CatalogError, NasBackupError
from nasbackup.nas.capacity import measure as measure_file_system
from nasbackup.nas.watchdog import watched
from nasbackup.retention.capacity import Sample
from nasbackup.steps.ticket import Store

log = logging.getLogger(__name__)

AT_MOST = timedelta(minutes=2)
"""The next look waits for the end of this one. One that is asked in time may still take its minute to be silent."""


def measure_hourly(
    database: Database, *, stores: Mapping[str, Callable[[], Store]], now: datetime, at_most: timedelta = AT_MOST
) -> list[str]:
    """Note how full each repository is, by name, that nobody has asked for an hour; returns the names of those.

    One that cannot be measured is noted too, with the reason: the next look finds it. When ``at_most`` is over the rest
    is left to the next call. Raises CatalogUnreachable.
    """
    asked: list[str] = []
    started = time.monotonic()
    for name, store in stores.items():
        if asked and time.monotonic() - started > at_most.total_seconds():
            log.warning("It took too long already: the next look goes on with %s", name)
            break
        with database.autocommit() as cursor:
            if not capacity.ask_again(cursor, repository=name):
                continue
        asked.append(name)
        try:
            sample = measure(store(), now=now)
        except CatalogError:
            raise
        except NasBackupError as error:
            log.warning("%s could not be measured: %s", name, error)
            with database.autocommit() as cursor:
                capacity.note_failure(cursor, repository=name, why=str(error))
        else:
            with database.transaction() as cursor:
                capacity.add_sample(cursor, repository=name, sample=sample)
    return asked


def measure(store: Store, *, now: datetime) -> Sample:
    """Asks the NAS and the catalog; notes nothing. Raises NotARepository, NasIo."""
    root = store.root()
    total, free = watched(store.repository, "reading the free space", measure_file_system, store.repository, root=root)
    with store.database.transaction() as cursor:
        used_by_backups = capacity.size_of_backups(cursor, repository=store.repository.name)
    return Sample(measured_at=now, total=total, free=free, backups=used_by_backups)
