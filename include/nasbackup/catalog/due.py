"""How much a VM needs its next backup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from nasbackup.catalog.database import Cursor


@dataclass(frozen=True, kw_only=True)
class DueState:
    """``newest_at``: of its newest restorable backup. ``backed_up_by``: who is making one now; empty: nobody."""

    newest_at: datetime | None
    backed_up_by: str


def states(cursor: Cursor, *, vm_uuids: Sequence[str]) -> dict[str, DueState]:
    """By UUID; VMs that the catalog does not know are not in the answer."""
    cursor.execute(
        """
        SELECT vm.uuid::text AS uuid, newest.created_at AS newest_at,
               CASE WHEN EXISTS (SELECT 1 FROM backup WHERE vm_id = vm.vm_id AND status = 'BackingUp')
                    THEN coalesce(lease.holder, '') ELSE '' END AS backed_up_by
          FROM vm
          LEFT JOIN lease ON lease.vm_id = vm.vm_id AND lease.expires_at >= clock_timestamp()
          LEFT JOIN LATERAL (
               SELECT max(created_at) AS created_at FROM backup WHERE vm_id = vm.vm_id AND status = 'BackedUp'
               ) newest ON true
         WHERE vm.uuid = ANY(%s::uuid[])
        """,
        (list(vm_uuids),),
    )
    return {
        row["uuid"]: DueState(newest_at=row["newest_at"], backed_up_by=row["backed_up_by"]) for row in cursor.fetchall()
    }
