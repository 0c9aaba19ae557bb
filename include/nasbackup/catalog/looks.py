"""When nas_sla_watch last looked at each host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from nasbackup.catalog.database import Cursor


@dataclass(frozen=True, kw_only=True)
class Looks:
    """At some hosts. ``oldest``: at the one that was looked at the longest ago; ``never``: those that never were."""

    oldest: datetime | None
    never: tuple[str, ...] = ()

    @property
    def at(self) -> datetime | None:
        """Since when all of them were looked at; None: not all of them ever were."""
        return None if self.never else self.oldest


def note(cursor: Cursor, *, hosts: Sequence[str], now: datetime) -> None:
    """A look at these hosts has ended. Hosts that nobody has looked at for a month are forgotten."""
    cursor.execute(
        """
        INSERT INTO sla_look (host, looked_at) SELECT host, %s FROM unnest(%s) AS host
        ON CONFLICT (host) DO UPDATE SET looked_at = EXCLUDED.looked_at
        """,
        (now, list(hosts)),
    )
    cursor.execute("DELETE FROM sla_look WHERE looked_at < %s - interval '30 days'", (now,))


def last(cursor: Cursor, *, hosts: Sequence[str] | None) -> Looks:
    """At these hosts; None: at all that somebody looked at within a day of the last look."""
    cursor.execute(
        """
        SELECT host, looked_at FROM sla_look
         WHERE CASE WHEN %(hosts)s::text[] IS NULL
                    THEN looked_at > (SELECT max(looked_at) FROM sla_look) - interval '1 day'
                    ELSE host = ANY(%(hosts)s::text[]) END
        """,
        {"hosts": None if hosts is None else list(hosts)},
    )
    found = {row["host"]: row["looked_at"] for row in cursor.fetchall()}
    return Looks(
        oldest=min(found.values(), default=None),
        never=tuple(host for host in hosts or () if host not in found),
    )
