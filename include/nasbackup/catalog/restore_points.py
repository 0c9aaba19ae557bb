"""All restore points of all VMs, a VM and a repository at a time: there may be a million, so none stays in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby

from nasbackup.catalog.database import Cursor, PlainCursor
from nasbackup.retention.verdicts import RestorePoint


@dataclass(frozen=True, kw_only=True)
class Holding:
    """The backups of one VM in one repository, in the order in which they were begun."""

    vm: str
    vm_uuid: str
    host: str
    unprotected_since: datetime | None
    repository: str
    points: Sequence[RestorePoint]


@dataclass(frozen=True, kw_only=True)
class KnownVm:
    vm_id: int
    vm: str
    vm_uuid: str
    host: str
    unprotected_since: datetime | None
    title: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    defined: bool = True
    """False: its host was asked, and does not define it any more."""


def known_vms(cursor: Cursor, *, vm_uuid: str | None = None) -> list[KnownVm]:
    """All, or that one."""
    cursor.execute(
        "SELECT vm_id, name, uuid, host, unprotected_since, title, metadata, defined FROM vm"
        " WHERE %s::uuid IS NULL OR uuid = %s::uuid ORDER BY vm_id",
        (vm_uuid, vm_uuid),
    )
    return [
        KnownVm(
            vm_id=row["vm_id"],
            vm=row["name"],
            vm_uuid=str(row["uuid"]),
            host=row["host"],
            unprotected_since=row["unprotected_since"],
            title=row["title"],
            metadata=row["metadata"],
            defined=row["defined"],
        )
        for row in cursor.fetchall()
    ]


def holdings(cursor: Cursor, *, vms: Sequence[KnownVm]) -> Iterator[Holding]:
    """Streamed from the server as long as the transaction is open."""
    cursor.execute("SELECT repository_id, name FROM repository")
    repositories = {row["repository_id"]: row["name"] for row in cursor.fetchall()}
    known = {vm.vm_id: vm for vm in vms}
    # A plain tuple per row, from a cursor on the server: a dictionary per row takes three times as long.
    with cursor.connection.cursor(name="restore_points", cursor_factory=PlainCursor) as rows:
        rows.itersize = 20_000
        rows.execute(
            """
            SELECT vm_id, repository_id, backup_id, created_at, status, type = 'FULL', parent_id,
                   pinned_at IS NOT NULL, expires_at, status = 'Failed' AND cleaned_at IS NOT NULL, external_id,
                   coalesce(size, 0)
              FROM backup WHERE vm_id = ANY(%s)
             ORDER BY vm_id, repository_id, begun
            """,
            (list(known),),
        )
        for (vm_id, repository_id), group in groupby(rows, key=lambda row: (row[0], row[1])):
            vm = known[vm_id]
            yield Holding(
                vm=vm.vm,
                vm_uuid=vm.vm_uuid,
                host=vm.host,
                unprotected_since=vm.unprotected_since,
                repository=repositories[repository_id],
                points=[RestorePoint._make(row[2:]) for row in group],
            )


def note_unprotected(cursor: Cursor, *, vm_uuids: Sequence[str], hosts: Sequence[str], now: datetime) -> None:
    """Note since when these VMs are unprotected; all others of these hosts are protected (again)."""
    cursor.execute(
        """
        UPDATE vm SET unprotected_since = CASE WHEN uuid = ANY(%(uuids)s::uuid[]) THEN %(now)s END
         WHERE (unprotected_since IS NULL) = (uuid = ANY(%(uuids)s::uuid[])) AND host = ANY(%(hosts)s)
        """,
        {"uuids": list(vm_uuids), "hosts": list(hosts), "now": now},
    )
