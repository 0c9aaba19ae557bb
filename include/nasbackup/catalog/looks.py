"""When nas_sla_watch last looked at each host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from nasbackup.catalog.database import Cursor

LATELY = timedelta(hours=1)
"""A host that no look was at for so long is looked at by nobody: it went from fleet.yaml, or nas_sla_watch is paused.
(One that does not answer is looked at.)"""


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


def recent(cursor: Cursor, *, now: datetime) -> frozenset[str]:
    """The hosts that were looked at LATELY, by whichever fleet's watch."""
    cursor.execute("SELECT host FROM sla_look WHERE looked_at > %s", (now - LATELY,))
    return frozenset(row["host"] for row in cursor.fetchall())


def last(cursor: Cursor, *, hosts: Sequence[str] | None) -> Looks:
    """At these hosts; None: at all that somebody looked at LATELY before the last look."""
    cursor.execute(
        """
        SELECT host, looked_at FROM sla_look
         WHERE CASE WHEN %(hosts)s::text[] IS NULL
                    THEN looked_at > (SELECT max(looked_at) FROM sla_look) - %(lately)s
                    ELSE host = ANY(%(hosts)s::text[]) END
        """,
        {"hosts": None if hosts is None else list(hosts), "lately": LATELY},
    )
    found = {row["host"]: row["looked_at"] for row in cursor.fetchall()}
    return Looks(
        oldest=min(found.values(), default=None),
        never=tuple(host for host in hosts or () if host not in found),
    )
