"""Alerts that are open, and the outbox: what is still to be told through which channel of fleet.yaml."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from psycopg2.extras import execute_values

from nasbackup.catalog.database import Cursor
from nasbackup.sla.alerts import Changes, Closing, Event, Identity, OpenAlert, Opening, Scope, Update
from nasbackup.sla.findings import Finding, Kind, Severity, Subject, SubjectKind
from nasbackup.sla.messages import Notice

PATIENCE = timedelta(hours=24)
"""What could not be told for so long is dropped, if it is over by now, or fleet.yaml does not name the channel. The
opening of what still lasts is else never dropped."""

KEPT = timedelta(days=400)
"""Closed alerts are history until then."""

# Any numbers will do, as long as every process takes the same: the first half of a lock's name.
_LOOK, _CHANNEL = 0x616C74, 0x616C75


# --- looks ----------------------------------------------------------------------------------------------------


def begin_look(cursor: Cursor) -> None:
    """From here to the end of the transaction nobody else changes alerts, and nothing is being delivered."""
    cursor.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_LOOK,))


def open_alerts(cursor: Cursor) -> list[OpenAlert]:
    """The oldest first, with the channels that were told of each."""
    cursor.execute(
        """
        SELECT alert.*, coalesce(told, '{}') AS told, coalesce(waiting, '{}') AS waiting
          FROM alert
          LEFT JOIN LATERAL (
               SELECT array_agg(channel) FILTER (WHERE delivered_at IS NOT NULL) AS told,
                      array_agg(channel) FILTER (WHERE delivered_at IS NULL) AS waiting
                 FROM alert_delivery d WHERE d.alert_id = alert.alert_id AND event = 'opened'
          ) deliveries ON true
         WHERE closed_at IS NULL
         ORDER BY opened_at, alert_id
        """
    )
    return [
        OpenAlert(
            alert_id=row["alert_id"],
            finding=_finding(row),
            opened_at=row["opened_at"],
            confirmed_at=row["confirmed_at"],
            told=frozenset(row["told"]),
            waiting=frozenset(row["waiting"]),
        )
        for row in cursor.fetchall()
    ]


def vm_scopes(cursor: Cursor) -> dict[Identity, Scope]:
    """Zone and policy of each VM, as the last look judged it."""
    cursor.execute("SELECT uuid, zone, policy FROM sla_status JOIN vm USING (vm_id)")
    return {
        (SubjectKind.VM, str(row["uuid"])): Scope(zone=row["zone"], policy=row["policy"]) for row in cursor.fetchall()
    }


def vms_that_are_gone(cursor: Cursor) -> dict[Identity, str]:
    """VMs of which something is open or to be told and that no host defines any more -> the host that did."""
    cursor.execute(
        """
        SELECT subject, host
          FROM (SELECT subject FROM alert WHERE closed_at IS NULL AND subject_kind = 'vm'
                 UNION  -- not OR, for which all alerts that ever were are read
                SELECT subject FROM alert_delivery JOIN alert USING (alert_id)
                 WHERE delivered_at IS NULL AND subject_kind = 'vm') told
          JOIN vm ON vm.uuid::text = subject AND NOT vm.defined
        """
    )
    return {(SubjectKind.VM, row["subject"]): row["host"] for row in cursor.fetchall()}


def drop_for_nobody(
    cursor: Cursor, *, channels: Sequence[str], subjects: Container[Identity], now: datetime
) -> Counter[str]:
    """What of these subjects has waited for PATIENCE, for other channels than these, by channel: fleet.yaml does not
    name them any more.

    What waits is counted by a metric and an alarm of its own, and nobody would ever take it. Not at once: a look that
    goes by an older fleet.yaml does not know the channels of the newer one.
    """
    cursor.execute(
        "SELECT delivery_id, channel, subject_kind, subject FROM alert_delivery JOIN alert USING (alert_id)"
        " WHERE delivered_at IS NULL AND NOT channel = ANY(%s) AND created_at < %s",
        (list(channels), now - PATIENCE),
    )
    found = [row for row in cursor.fetchall() if (SubjectKind(row["subject_kind"]), row["subject"]) in subjects]
    cursor.execute("DELETE FROM alert_delivery WHERE delivery_id = ANY(%s)", ([row["delivery_id"] for row in found],))
    return Counter(row["channel"] for row in found)


def apply(cursor: Cursor, changed: Changes, *, now: datetime) -> None:
    """Write one look's changes, with what is to be told. The caller has begun the look in this transaction."""
    cursor.execute("UPDATE alert SET confirmed_at = %s WHERE alert_id = ANY(%s)", (now, changed.confirmed))
    _open(cursor, changed.opened, now=now)
    _update(cursor, changed.updated, now=now)
    _close(cursor, changed.closed, now=now)
    cursor.execute(
        "DELETE FROM alert WHERE closed_at < %(then)s AND opened_at < %(then)s",  # the index is on opened_at
        {"then": now - KEPT},
    )
    cursor.execute(
        "DELETE FROM alert_delivery WHERE delivered_at IS NULL AND event <> 'opened' AND created_at < %s",
        (now - PATIENCE,),
    )


def _open(cursor: Cursor, opened: Sequence[Opening], *, now: datetime) -> None:
    rows = execute_values(
        cursor,
        "INSERT INTO alert (kind, subject_kind, subject, label, severity, text, hint, opened_at, updated_at,"
        " confirmed_at) VALUES %s RETURNING alert_id, kind, subject_kind, subject",
        [(*_values(opening.finding), now, now, now) for opening in opened],
        page_size=1000,
        fetch=True,
    )
    numbers = {(row["kind"], row["subject_kind"], row["subject"]): row["alert_id"] for row in rows}
    _tell(
        cursor,
        (
            (numbers[_values(opening.finding)[:3]], channel, Event.OPENED)
            for opening in opened
            for channel in opening.channels
        ),
        now=now,
    )


def _update(cursor: Cursor, updated: Sequence[Update], *, now: datetime) -> None:
    execute_values(
        cursor,
        """
        UPDATE alert SET label = new.label, severity = new.severity, text = new.text, hint = new.hint,
                         updated_at = new.updated_at
          FROM (VALUES %s) AS new (alert_id, label, severity, text, hint, updated_at)
         WHERE alert.alert_id = new.alert_id
        """,
        [(update.alert_id, *_values(update.finding)[3:], now) for update in updated],
        page_size=1000,
    )
    withdrawn = [(update.alert_id, channel) for update in updated for channel in update.withdrawn]
    if withdrawn:
        cursor.execute(
            "DELETE FROM alert_delivery WHERE (alert_id, channel) IN %s AND delivered_at IS NULL AND event = 'opened'",
            (tuple(withdrawn),),
        )
    # Raised and lowered since the channel was last reached: only the last of it is told.
    outdated = [update.alert_id for update in updated if update.due]
    cursor.execute(
        "DELETE FROM alert_delivery WHERE alert_id = ANY(%s) AND delivered_at IS NULL AND event <> 'opened'",
        (outdated,),
    )
    _tell(cursor, ((update.alert_id, *due) for update in updated for due in update.due), now=now)


def _close(cursor: Cursor, closed: Sequence[Closing], *, now: datetime) -> None:
    numbers = [closing.alert_id for closing in closed]
    forgotten = [closing.alert_id for closing in closed if closing.forgotten]
    cursor.execute(
        "UPDATE alert SET closed_at = %s, forgotten = alert_id = ANY(%s) WHERE alert_id = ANY(%s)",
        (now, forgotten, numbers),
    )
    cursor.execute("DELETE FROM alert_delivery WHERE alert_id = ANY(%s) AND delivered_at IS NULL", (numbers,))
    due = ((closing.alert_id, channel, Event.CLOSED) for closing in closed for channel in closing.channels)
    _tell(cursor, due, now=now)


def _tell(cursor: Cursor, due: Iterable[tuple[int, str, Event]], *, now: datetime) -> None:
    execute_values(
        cursor,
        "INSERT INTO alert_delivery (alert_id, channel, event, created_at) VALUES %s",
        [(alert_id, channel, event.value, now) for alert_id, channel, event in due],
        page_size=1000,
    )


# --- deliveries -----------------------------------------------------------------------------------------------


def begin_delivery(cursor: Cursor, *, channel: str) -> bool:
    """Whether this process may deliver to the channel until its transaction ends: one at a time, and no look."""
    cursor.execute("SELECT pg_try_advisory_xact_lock(%s, hashtext(%s)) AS mine", (_CHANNEL, channel))
    row = cursor.fetchone()
    if not (row and row["mine"]):
        return False
    cursor.execute("SELECT pg_advisory_xact_lock_shared(%s, 0)", (_LOOK,))
    return True


def pending(cursor: Cursor, *, channel: str, limit: int) -> list[Notice]:
    """What is still to be told through the channel, as it is now; the oldest first."""
    cursor.execute(
        """
        SELECT delivery_id, event, alert.*
          FROM alert_delivery JOIN alert USING (alert_id)
         WHERE channel = %s AND delivered_at IS NULL ORDER BY delivery_id LIMIT %s
        """,
        (channel, limit),
    )
    return [
        Notice(
            delivery_id=row["delivery_id"],
            alert_id=row["alert_id"],
            event=Event(row["event"]),
            opened_at=row["opened_at"],
            closed_at=row["closed_at"],
            forgotten=row["forgotten"],
            **vars(_finding(row)),
        )
        for row in cursor.fetchall()
    ]


def delivered(cursor: Cursor, *, delivery_ids: Collection[int], now: datetime) -> None:
    cursor.execute(
        "UPDATE alert_delivery SET delivered_at = %s, tries = tries + 1, error = NULL WHERE delivery_id = ANY(%s)",
        (now, list(delivery_ids)),
    )


def not_delivered(cursor: Cursor, *, delivery_ids: Collection[int], error: str) -> None:
    """It stays pending, with what the channel said."""
    cursor.execute(
        "UPDATE alert_delivery SET tries = tries + 1, error = %s WHERE delivery_id = ANY(%s)",
        (error, list(delivery_ids)),
    )


# --- for people -----------------------------------------------------------------------------------------------


def recent(cursor: Cursor, *, also_closed: bool, limit: int) -> list[Mapping[str, Any]]:
    """Rows of ``alert``, open ones first, the latest first; ``undelivered``: channel -> what it said, or null."""
    cursor.execute(
        """
        SELECT alert.*, coalesce(undelivered, '{}') AS undelivered
          FROM alert
          LEFT JOIN LATERAL (
               SELECT jsonb_object_agg(channel, error) AS undelivered
                 FROM alert_delivery d WHERE d.alert_id = alert.alert_id AND delivered_at IS NULL
          ) deliveries ON true
         WHERE %s OR closed_at IS NULL
         ORDER BY closed_at IS NOT NULL, opened_at DESC, alert_id DESC LIMIT %s
        """,
        (also_closed, limit),
    )
    return list(cursor.fetchall())


def _values(finding: Finding) -> tuple[str, str, str, str, str, str, str]:
    """Kind and subject, and then what may change: label, severity, text, hint."""
    subject = finding.subject
    named = (finding.kind.value, subject.kind.value, subject.key)
    return (*named, subject.label, finding.severity.value, finding.text, finding.hint)


def _finding(row: Mapping[str, Any]) -> Finding:
    return Finding(
        kind=Kind(row["kind"]),
        severity=Severity(row["severity"]),
        subject=Subject(kind=SubjectKind(row["subject_kind"]), key=row["subject"], label=row["label"]),
        text=row["text"],
        hint=row["hint"],
    )
