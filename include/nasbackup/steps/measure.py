"""How full a repository is now."""

from __future__ import annotations

from datetime import datetime

from nasbackup.catalog import capacity
from nasbackup.nas.capacity import measure as measure_file_system
from nasbackup.nas.watchdog import watched
from nasbackup.retention.capacity import Sample
from nasbackup.steps.ticket import Store


def measure(store: Store, *, now: datetime) -> Sample:
    """Asks the NAS and the catalog; notes nothing. Raises NotARepository, NasIo."""
    root = store.root()
    total, free = watched(store.repository, "reading the free space", measure_file_system, store.repository, root=root)
    with store.database.transaction() as cursor:
        used_by_backups = capacity.size_of_backups(cursor, repository=store.repository.name)
    return Sample(measured_at=now, total=total, free=free, backups=used_by_backups)
