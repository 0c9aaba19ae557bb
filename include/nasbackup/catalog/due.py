"""How much a VM needs its next backup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from nasbackup.catalog.database import Cursor
from nasbackup.catalog.inventory import REMEMBERED
from nasbackup.catalog.looks import LATELY
from nasbackup.model import VmState


@dataclass(frozen=True, kw_only=True)
class DueState:
    """``newest_at``: of its newest restorable backup; ``holds``: the repository of that, empty without one.

    ``backed_up_by``: who is making one now; empty: nobody.

    ``seen_on``: the host that it is on, by what nas_sla_watch saw within ``inventory.REMEMBERED``, if that host was
    looked at ``looks.LATELY``; empty: not known. A stopped VM with its name on another host was left behind there by a
    migration.
    """

    newest_at: datetime | None
    holds: str
    backed_up_by: str
    seen_on: str

    def is_left_behind(self, *, host: str, state: VmState) -> bool:
        return state is VmState.STOPPED and self.seen_on not in ("", host)


def states(cursor: Cursor, *, vm_uuids: Sequence[str]) -> dict[str, DueState]:
    """By UUID; VMs that the catalog does not know are not in the answer."""
    cursor.execute(
        """
        SELECT vm.uuid::text AS uuid, newest.created_at AS newest_at, coalesce(newest.repository, '') AS holds,
               CASE WHEN vm.defined AND vm.seen_at >= clock_timestamp() - %(remembered)s
                     AND EXISTS (SELECT 1 FROM sla_look l
                                  WHERE l.host = vm.host AND looked_at > clock_timestamp() - %(lately)s)
                    THEN vm.host ELSE '' END AS seen_on,
               CASE WHEN EXISTS (SELECT 1 FROM backup WHERE vm_id = vm.vm_id AND status = 'BackingUp')
                    THEN coalesce(lease.holder, '') ELSE '' END AS backed_up_by
          FROM vm
          LEFT JOIN lease ON lease.vm_id = vm.vm_id AND lease.expires_at >= clock_timestamp()
          LEFT JOIN LATERAL (
               SELECT b.created_at, r.name AS repository FROM backup b JOIN repository r USING (repository_id)
                WHERE b.vm_id = vm.vm_id AND b.status = 'BackedUp'
                ORDER BY b.begun DESC LIMIT 1  -- no clock can turn that round
               ) newest ON true
         WHERE vm.uuid = ANY(%(uuids)s::uuid[])
        """,
        {"uuids": list(vm_uuids), "remembered": REMEMBERED, "lately": LATELY},
    )
    return {row["uuid"]: DueState(**{name: row[name] for name in row if name != "uuid"}) for row in cursor.fetchall()}
