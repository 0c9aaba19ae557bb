"""What the hosts define, as nas_sla_watch last saw it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from psycopg2.extras import Json, execute_values

from nasbackup.catalog.database import Cursor
from nasbackup.model import SeenVm, VmState


def note_seen(cursor: Cursor, *, host: str, seen: Sequence[SeenVm], now: datetime) -> None:
    """The host's VMs are these: new ones are added, those that it no longer defines are marked.

    A VM that two hosts define is on the one that runs it: a stopped definition that a migration left behind does
    not move it.
    """
    if seen:
        execute_values(
            cursor,
            """
            INSERT INTO vm (uuid, name, host, title, metadata, state, first_seen_at, seen_at) VALUES %s
            ON CONFLICT (uuid) DO UPDATE
               SET name = EXCLUDED.name, host = EXCLUDED.host, title = EXCLUDED.title, metadata = EXCLUDED.metadata,
                   state = EXCLUDED.state, seen_at = EXCLUDED.seen_at, defined = true
             WHERE vm.host = EXCLUDED.host OR EXCLUDED.state <> 'stopped' OR NOT vm.defined
                OR vm.seen_at IS NULL
            """,
            [
                (vm.uuid, vm.name, vm.host, vm.title, Json(dict(vm.metadata)), vm.state.value, now, now)
                for vm in sorted(seen, key=lambda vm: vm.state is not VmState.STOPPED)
            ],
            page_size=1000,
        )
    cursor.execute(
        "UPDATE vm SET defined = false, state = NULL WHERE host = %s AND defined AND NOT uuid = ANY(%s::uuid[])",
        (host, [vm.uuid for vm in seen]),
    )
