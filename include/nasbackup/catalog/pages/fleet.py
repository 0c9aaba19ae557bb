"""The fleet: a page of the table, how many VMs are in which state, and compliance over the last days."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any

from nasbackup.catalog.database import Cursor
from nasbackup.catalog.pages import GENERATED, pattern
from nasbackup.sla.freshness import SKEW

COMPLIANCE_DAYS = 30


class VmStatus(StrEnum):
    """The verdict of the last look, in the order of urgency; the last two are of VMs that were not judged."""

    CRITICAL = "critical"
    WARNING = "warning"
    UNPROTECTED = "unprotected"
    UNKNOWN = "unknown"  # nobody has looked at it yet
    OK = "ok"
    GONE = "gone"  # its host does not define it any more


class Sort(StrEnum):
    URGENCY = "urgency"
    NAME = "name"
    AGE = "age"
    BACKUPS = "backups"
    SIZE = "size"
    POLICY = "policy"
    HOST = "host"


_ORDER = {
    Sort.URGENCY: "urgency {0}, newest_at {0} NULLS FIRST",
    Sort.NAME: "name {0}",
    Sort.AGE: "newest_at {0} NULLS FIRST",
    Sort.BACKUPS: "backups {0}",
    Sort.SIZE: "size {0}",
    Sort.POLICY: "policy {0} NULLS LAST",
    Sort.HOST: "host {0}",
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which VMs, in which order. Empty: all of them. ``search`` is looked for in name and title."""

    search: str = ""
    statuses: tuple[VmStatus, ...] = ()
    policy: str = ""
    zone: str = ""
    host: str = ""
    sort: Sort = Sort.URGENCY
    descending: bool = False
    limit: int = 50
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One VM as the last look saw it. Times are None where there is nothing; a VM without a policy has no RPO."""

    vm_id: int
    uuid: str
    name: str
    title: str
    metadata: Mapping[str, str]
    host: str
    state: str | None
    defined: bool
    policy: str | None
    zone: str | None
    status: VmStatus
    checked_at: datetime | None
    newest_at: datetime | None
    verified_at: datetime | None
    drilled_at: datetime | None
    warn_seconds: int | None
    error_seconds: int | None
    backups: int
    size: int
    problems: tuple[Mapping[str, Any], ...]
    looks: int = 0
    compliant: int = 0
    running: bool = False
    generated: bool = False
    """Its newest backup is one that no run has made."""


@dataclass(frozen=True, kw_only=True)
class PolicyDay:
    day: date
    policy: str
    looks: int
    compliant: int


_FLEET = """
    WITH fleet AS (
        SELECT vm.vm_id, vm.uuid::text AS uuid, vm.name, vm.title, vm.host, vm.state, vm.defined, s.policy, s.zone,
               CASE WHEN NOT vm.defined THEN 'gone' ELSE coalesce(s.status, 'unknown') END AS status, s.checked_at,
               s.newest_at, s.verified_at, s.drilled_at, s.warn_seconds, s.error_seconds,
               coalesce(s.backups, 0) AS backups, coalesce(s.size, 0) AS size, coalesce(s.problems, '[]') AS problems
          FROM vm LEFT JOIN sla_status s USING (vm_id)
         WHERE (%(uuid)s::uuid IS NULL OR vm.uuid = %(uuid)s::uuid)
           AND (%(policy)s = '' OR s.policy = %(policy)s)
           AND (%(zone)s = '' OR s.zone = %(zone)s)
           AND (%(host)s = '' OR vm.host = %(host)s)
           AND (%(search)s = '%%' OR vm.name ILIKE %(search)s OR vm.title ILIKE %(search)s
                                  OR vm.uuid::text ILIKE %(search)s)
    )
"""
_PAGE = f"""
    {_FLEET}
    SELECT *, CASE status WHEN 'ok' THEN 4 WHEN 'critical' THEN 0 WHEN 'warning' THEN 1 WHEN 'unprotected' THEN 2
                          WHEN 'unknown' THEN 3 ELSE 5 END AS urgency  -- as in VmStatus
      FROM fleet
     WHERE cardinality(%(statuses)s::text[]) = 0 OR status = ANY(%(statuses)s)
     ORDER BY :order, name, vm_id LIMIT %(limit)s OFFSET %(offset)s
"""  # noqa: S608 (constants, and :order is one of _ORDER)
_COUNTS = f"{_FLEET} SELECT status, count(*) FROM fleet GROUP BY status"  # noqa: S608


def rows(cursor: Cursor, *, wanted: Wanted, uuid: str | None = None) -> list[Row]:
    """One page of the table."""
    order = _ORDER[wanted.sort].format("DESC" if wanted.descending else "ASC")
    if wanted.descending:
        order = order.replace("NULLS FIRST", "NULLS LAST")
    cursor.execute(_PAGE.replace(":order", order), _values(wanted, uuid=uuid))
    return _completed(cursor, [dict(row) for row in cursor.fetchall()])


def one(cursor: Cursor, *, uuid: str) -> Row | None:
    found = rows(cursor, wanted=Wanted(), uuid=uuid)
    return found[0] if found else None


def counts(cursor: Cursor, *, wanted: Wanted) -> dict[VmStatus, int]:
    """How many VMs are in which state, of those that everything but the filter by state lets through."""
    cursor.execute(_COUNTS, _values(wanted))
    found = {row["status"]: row["count"] for row in cursor.fetchall()}
    return {status: found.get(status.value, 0) for status in VmStatus}


def places(cursor: Cursor) -> dict[str, list[str]]:
    """What can be filtered by: policies, zones and hosts that VMs have."""
    cursor.execute("SELECT DISTINCT policy, zone FROM sla_status")
    pairs = cursor.fetchall()
    cursor.execute("SELECT DISTINCT host FROM vm ORDER BY host")
    return {
        "policy": sorted({row["policy"] for row in pairs if row["policy"]}),
        "zone": sorted({row["zone"] for row in pairs if row["zone"]}),
        "host": [row["host"] for row in cursor.fetchall()],
    }


def by_policy(cursor: Cursor) -> dict[str, tuple[int, int, int]]:
    """Policy -> (how many VMs it has, how many of them have an RPO, how many of these are within it at this moment).

    A VM that is younger than its RPO has broken no promise (``sla.freshness.within_rpo``).
    """
    cursor.execute(
        """
        SELECT policy, count(*) AS vms, count(error_seconds) AS promised,
               count(*) FILTER (WHERE coalesce(newest_at, first_seen_at)
                                      > clock_timestamp() - make_interval(secs => error_seconds)
                                  AND coalesce(newest_at, first_seen_at) <= clock_timestamp() + %s) AS kept
          FROM sla_status JOIN vm USING (vm_id) WHERE policy IS NOT NULL GROUP BY policy ORDER BY policy
        """,
        (SKEW,),
    )
    return {row["policy"]: (row["vms"], row["promised"], row["kept"]) for row in cursor.fetchall()}


def policy_days(cursor: Cursor) -> list[PolicyDay]:
    """The last 30 days (UTC), of all policies."""
    cursor.execute(
        """
        SELECT day, policy, looks, compliant FROM sla_policy_day
         WHERE day > (clock_timestamp() AT TIME ZONE 'UTC')::date - %s ORDER BY policy, day
        """,
        (COMPLIANCE_DAYS,),
    )
    return [PolicyDay(**row) for row in cursor.fetchall()]


def vm_days(cursor: Cursor, *, vm_id: int) -> list[PolicyDay]:
    """The same of one VM."""
    cursor.execute(
        """
        SELECT day, policy, looks, compliant FROM sla_day
         WHERE vm_id = %s AND day > (clock_timestamp() AT TIME ZONE 'UTC')::date - %s ORDER BY day
        """,
        (vm_id, COMPLIANCE_DAYS),
    )
    return [PolicyDay(**row) for row in cursor.fetchall()]


def _values(wanted: Wanted, *, uuid: str | None = None) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "search": pattern(wanted.search),
        "policy": wanted.policy,
        "zone": wanted.zone,
        "host": wanted.host,
        "statuses": [status.value for status in wanted.statuses],
        "limit": wanted.limit,
        "offset": wanted.offset,
    }


def _completed(cursor: Cursor, found: Sequence[dict[str, Any]]) -> list[Row]:
    """With what only the VMs of this page are asked about."""
    ids = {"ids": [row["vm_id"] for row in found]}
    cursor.execute(
        """
        SELECT vm_id, sum(looks)::bigint AS looks, sum(compliant)::bigint AS compliant FROM sla_day
         WHERE vm_id = ANY(%(ids)s) AND day > (clock_timestamp() AT TIME ZONE 'UTC')::date - %(days)s GROUP BY vm_id
        """,
        {**ids, "days": COMPLIANCE_DAYS},
    )
    kept = {row["vm_id"]: row for row in cursor.fetchall()}
    cursor.execute(
        """
        SELECT vm_id, metadata,
               EXISTS (SELECT 1 FROM backup b WHERE b.vm_id = vm.vm_id AND b.status = 'BackingUp') AS running
          FROM vm WHERE vm_id = ANY(%(ids)s)
        """,
        ids,
    )
    seen = {row["vm_id"]: row for row in cursor.fetchall()}
    cursor.execute(
        """
        SELECT vm_id FROM unnest(%(ids)s::bigint[]) AS wanted(vm_id)
         CROSS JOIN LATERAL (SELECT run_id FROM backup b WHERE b.vm_id = wanted.vm_id AND status = 'BackedUp'
                              ORDER BY begun DESC LIMIT 1) newest
         WHERE newest.run_id = %(generated)s
        """,
        {**ids, "generated": GENERATED},
    )
    generated = {row["vm_id"] for row in cursor.fetchall()}
    for row in found:
        del row["urgency"]
        row["status"] = VmStatus(row["status"])
        row["problems"] = tuple(row["problems"])
        row["looks"], row["compliant"] = (
            kept[row["vm_id"]][key] if row["vm_id"] in kept else 0 for key in ("looks", "compliant")
        )
        row["metadata"], row["running"] = (seen[row["vm_id"]][key] for key in ("metadata", "running"))
        row["generated"] = row["vm_id"] in generated
    return [Row(**row) for row in found]
