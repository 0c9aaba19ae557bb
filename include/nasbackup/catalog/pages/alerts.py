"""Alerts: those that are open, the worst first, and those that were; and who was told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from nasbackup.catalog.database import Cursor
from nasbackup.catalog.pages import pattern


@dataclass(frozen=True, kw_only=True)
class Delivery:
    channel: str
    event: str
    delivered_at: datetime | None
    tries: int
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Alert:
    """``forgotten``: closed because nobody looked any more, not because it was over."""

    alert_id: int
    kind: str
    subject_kind: str
    subject: str
    label: str
    severity: str
    text: str
    hint: str
    opened_at: datetime
    updated_at: datetime
    closed_at: datetime | None
    forgotten: bool = False
    told: tuple[Delivery, ...] = ()


_MATCHES = """
     FROM alert WHERE (closed_at IS NULL) = %(open)s
      AND (%(subject)s = '' OR subject_kind = 'vm' AND subject = %(subject)s)
      AND (%(severity)s = '' OR severity = %(severity)s)
      AND (%(search)s = '%%' OR label ILIKE %(search)s OR text ILIKE %(search)s)
"""
# The worst first while they are open; of closed ones the last that ended.
_PAGE = f"""
    SELECT alert_id, kind, subject_kind, subject, label, severity, text, hint,
           opened_at, updated_at, closed_at, forgotten
    {_MATCHES}
     ORDER BY closed_at IS NULL AND severity = 'critical' DESC, coalesce(closed_at, opened_at) DESC, alert_id DESC
     LIMIT %(limit)s OFFSET %(offset)s
"""
_COUNT = f"SELECT count(*) AS count {_MATCHES}"


def alerts(
    cursor: Cursor,
    *,
    open_ones: bool,
    subject: str = "",
    severity: str = "",
    search: str = "",
    limit: int = 50,
    offset: int = 0,
) -> tuple[list[Alert], int]:
    """A page of them, and how many there are. ``subject``: the UUID of one VM."""
    values = {"open": open_ones, "subject": subject, "severity": severity, "search": pattern(search)}
    cursor.execute(_PAGE, {**values, "limit": limit, "offset": offset})
    found = cursor.fetchall()
    cursor.execute(_COUNT, values)
    row = cursor.fetchone()
    assert row is not None
    told = _told(cursor, [alert["alert_id"] for alert in found])
    return [Alert(**alert, told=told.get(alert["alert_id"], ())) for alert in found], row["count"]


def open_count(cursor: Cursor) -> Mapping[str, int]:
    """Severity -> open alerts."""
    cursor.execute("SELECT severity, count(*) AS count FROM alert WHERE closed_at IS NULL GROUP BY severity")
    return {row["severity"]: row["count"] for row in cursor.fetchall()}


def _told(cursor: Cursor, ids: list[int]) -> dict[int, tuple[Delivery, ...]]:
    cursor.execute(
        "SELECT alert_id, channel, event, delivered_at, tries, error FROM alert_delivery"
        " WHERE alert_id = ANY(%s) ORDER BY delivery_id",
        (ids,),
    )
    told: dict[int, tuple[Delivery, ...]] = {}
    for row in cursor.fetchall():
        alert_id = row["alert_id"]
        delivery = Delivery(**{key: value for key, value in row.items() if key != "alert_id"})
        told[alert_id] = (*told.get(alert_id, ()), delivery)
    return told
