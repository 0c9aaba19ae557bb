"""Repositories: how full each is, and was."""

from __future__ import annotations

from dataclasses import dataclass

from nasbackup.catalog import capacity
from nasbackup.catalog.database import Cursor
from nasbackup.retention.capacity import Sample


@dataclass(frozen=True, kw_only=True)
class RepositoryRow:
    """``vms``: those whose chain goes on here. ``samples`` in the order of time; none before nas_retention ran."""

    name: str
    type: str
    path: str
    address: str
    vms: int
    samples: tuple[Sample, ...]


def repositories(cursor: Cursor) -> list[RepositoryRow]:
    cursor.execute(
        """
        SELECT r.name, r.type, r.path, r.address, coalesce(a.vms, 0) AS vms FROM repository r
          LEFT JOIN (SELECT repository_id, count(checkpoint) AS vms FROM active_checkpoint GROUP BY repository_id) a
               USING (repository_id)
         ORDER BY r.name
        """
    )
    found = cursor.fetchall()
    return [RepositoryRow(**row, samples=tuple(capacity.samples(cursor, repository=row["name"]))) for row in found]
