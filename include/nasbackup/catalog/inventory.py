"""What the hosts define, as nas_sla_watch last saw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg2.extras import Json, execute_values

from nasbackup.catalog.database import Cursor
from nasbackup.catalog.looks import LATELY
from nasbackup.model import SeenVm, VmState

REMEMBERED = timedelta(days=7)
"""A definition that nobody has seen for so long (its host does not answer) says nothing any more."""


@dataclass(frozen=True, kw_only=True)
class DroppedHost:
    """``vms``: how many were seen on it, the last time at ``seen_at``."""

    name: str
    vms: int
    seen_at: datetime


def note_seen(cursor: Cursor, *, host: str, seen: Sequence[SeenVm], now: datetime, hosts: Sequence[str] = ()) -> None:
    """The host's VMs are these: new ones are added, those that it no longer defines are marked.

    A VM that two hosts define is on the one that runs it: a stopped definition that a migration left behind does
    not move it, as long as the other one is ``REMEMBERED``, and on a host that is looked at: one of ``hosts``, which
    this look is at, or that another was at ``LATELY``.
    """
    uuids = [vm.uuid for vm in seen]
    if seen:
        cursor.execute(
            """
            UPDATE vm SET defined = false  -- so what is here takes its place
             WHERE uuid = ANY(%s::uuid[]) AND host <> %s AND NOT host = ANY(%s)
               AND NOT EXISTS (SELECT 1 FROM sla_look l WHERE l.host = vm.host AND looked_at > %s)
            """,
            (uuids, host, list(hosts), now - LATELY),
        )
        execute_values(
            cursor,
            f"""
            INSERT INTO vm (uuid, name, host, title, metadata, state, first_seen_at, seen_at) VALUES %s
            ON CONFLICT (uuid) DO UPDATE
               SET name = EXCLUDED.name, host = EXCLUDED.host, title = EXCLUDED.title, metadata = EXCLUDED.metadata,
                   state = EXCLUDED.state, seen_at = EXCLUDED.seen_at, defined = true
             WHERE vm.host = EXCLUDED.host OR EXCLUDED.state <> 'stopped' OR NOT vm.defined
                OR vm.seen_at IS NULL OR vm.seen_at < EXCLUDED.seen_at - interval '{REMEMBERED.days} days'
            """,  # noqa: S608 - of this file's own making
            [
                (vm.uuid, vm.name, vm.host, vm.title, Json(dict(vm.metadata)), vm.state.value, now, now)
                for vm in sorted(seen, key=lambda vm: vm.state is not VmState.STOPPED)
            ],
            page_size=1000,
        )
    cursor.execute(
        "UPDATE vm SET defined = false, state = NULL WHERE host = %s AND defined AND NOT uuid = ANY(%s::uuid[])",
        (host, uuids),
    )


def hosts_that_nobody_looks_at(cursor: Cursor, *, besides: Sequence[str], now: datetime) -> list[DroppedHost]:
    """Of all hosts but these, those with VMs that were seen within REMEMBERED and that no fleet's look judges now."""
    cursor.execute(
        """
        SELECT vm.host AS name, count(*)::int AS vms, max(vm.seen_at) AS seen_at
          FROM vm LEFT JOIN sla_status s USING (vm_id)
         WHERE vm.defined AND NOT vm.host = ANY(%(besides)s) AND vm.seen_at >= %(since)s AND vm.seen_at < %(until)s
           AND (s.checked_at IS NULL OR s.checked_at < %(until)s)
         GROUP BY vm.host ORDER BY vm.host
        """,
        {"besides": list(besides), "since": now - REMEMBERED, "until": now - LATELY},
    )
    return [DroppedHost(**row) for row in cursor.fetchall()]
