"""The facts that VMs are judged by, and the verdicts of the last look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from psycopg2.extras import Json, execute_values

from nasbackup.catalog.database import Cursor
from nasbackup.model import BackupStatus
from nasbackup.sla.facts import RecentBackup, VmFacts
from nasbackup.sla.verdict import Verdict

RECENT = 24
"""Backups of each VM that are looked at: a history to compare the newest with, also after weeks of silence."""

# What is newest goes by the order of begin and of recording, which no clock can turn round.
_FACTS = """
    SELECT vm.vm_id, vm.name AS vm, vm.uuid::text AS vm_uuid, vm.host, vm.title, vm.metadata, vm.first_seen_at,
           newest.created_at AS newest_at, held.backups, held.size, layers.verified_at, good.drilled_at,
           CASE WHEN last.result = 'failed' THEN last.detail ELSE '' END AS drill_failure
      FROM vm
      LEFT JOIN LATERAL (
           SELECT count(*) FILTER (WHERE status = 'BackedUp')::int AS backups, coalesce(sum(size), 0)::bigint AS size
             FROM backup WHERE vm_id = vm.vm_id AND status IN ('BackedUp', 'DeletePending', 'Deleting')
           ) held ON true
      LEFT JOIN LATERAL (
           SELECT backup_id, parent_id, created_at FROM backup WHERE vm_id = vm.vm_id AND status = 'BackedUp'
            ORDER BY begun DESC LIMIT 1
           ) newest ON true
      LEFT JOIN LATERAL (
           WITH RECURSIVE line AS (
               SELECT newest.parent_id, v.source, v.type, v.verified_at
                 FROM backup_volume v WHERE v.backup_id = newest.backup_id
                UNION ALL
               SELECT p.parent_id, v.source, v.type, v.verified_at
                 FROM line JOIN backup p ON p.backup_id = line.parent_id
                 JOIN backup_volume v ON v.backup_id = p.backup_id AND v.source = line.source
                WHERE line.type = 'INCREMENTAL'
           )
           SELECT CASE WHEN count(*) = count(verified_at) THEN min(verified_at) END AS verified_at FROM line
           ) layers ON true
      LEFT JOIN LATERAL (
           SELECT finished_at AS drilled_at FROM drill WHERE vm_id = vm.vm_id AND result = 'ok'
            ORDER BY drill_id DESC LIMIT 1
           ) good ON true
      LEFT JOIN LATERAL (
           SELECT result, detail FROM drill WHERE vm_id = vm.vm_id ORDER BY drill_id DESC LIMIT 1
           ) last ON true
     WHERE vm.defined AND vm.host = ANY(%(hosts)s)
     ORDER BY vm.vm_id
"""

_RECENT = """
    SELECT vm.vm_id, b.external_id, b.status, b.created_at, b.error, v.changed, v.sources, v.sizes
      FROM vm
     CROSS JOIN LATERAL (
           SELECT backup_id, external_id, status, created_at, error, begun FROM backup
            WHERE vm_id = vm.vm_id AND status IN ('BackedUp', 'Failed', 'BackingUp')
            ORDER BY begun DESC LIMIT %(recent)s
           ) b
     CROSS JOIN LATERAL (
           SELECT CASE WHEN bool_and(type = 'INCREMENTAL') THEN sum(bytes_read)::bigint END AS changed,
                  array_agg(source) AS sources, array_agg(virtual_size) AS sizes
             FROM backup_volume WHERE backup_id = b.backup_id
           ) v
     WHERE vm.defined AND vm.host = ANY(%(hosts)s)
     ORDER BY vm.vm_id, b.begun DESC
"""


def facts(cursor: Cursor, *, hosts: Sequence[str]) -> Iterator[VmFacts]:
    """Of all VMs that these hosts define: streamed from the server as long as the transaction is open."""
    values = {"hosts": list(hosts), "recent": RECENT}
    connection = cursor.connection
    with (
        connection.cursor(name="recent_backups", cursor_factory=Cursor) as recents,
        connection.cursor(name="vms", cursor_factory=Cursor) as vms,
    ):
        recents.itersize, vms.itersize = 5_000, 1_000
        recents.execute(_RECENT, values)
        vms.execute(_FACTS, values)
        groups = groupby(recents, key=lambda row: row["vm_id"])
        ahead = next(groups, None)
        for row in vms:
            recent: tuple[RecentBackup, ...] = ()
            if ahead is not None and ahead[0] == row["vm_id"]:
                recent = tuple(_recent(backup) for backup in ahead[1])
                ahead = next(groups, None)
            yield VmFacts(**row, recent=recent)


def replace_verdicts(
    cursor: Cursor, *, verdicts: Sequence[tuple[Verdict, str | None]], hosts: Sequence[str], now: datetime
) -> None:
    """Of one look at these hosts, each with the VM's zone. VMs of theirs that are not among them have none any more.

    Nor have VMs that nobody has judged for a day: their host left fleet.yaml, or another fleet's watch has ended.
    """
    cursor.execute(
        """
        DELETE FROM sla_status s USING vm
         WHERE vm.vm_id = s.vm_id AND NOT s.vm_id = ANY(%s)
           AND (vm.host = ANY(%s) OR NOT vm.defined OR s.checked_at < %s - interval '1 day')
        """,
        ([verdict.facts.vm_id for verdict, _ in verdicts], list(hosts), now),
    )
    if not verdicts:
        return
    execute_values(
        cursor,
        """
        INSERT INTO sla_status (vm_id, policy, zone, status, checked_at, newest_at, verified_at, drilled_at,
                                warn_seconds, error_seconds, backups, size, problems) VALUES %s
        ON CONFLICT (vm_id) DO UPDATE
           SET policy = EXCLUDED.policy, zone = EXCLUDED.zone, status = EXCLUDED.status,
               checked_at = EXCLUDED.checked_at, newest_at = EXCLUDED.newest_at, verified_at = EXCLUDED.verified_at,
               drilled_at = EXCLUDED.drilled_at, warn_seconds = EXCLUDED.warn_seconds,
               error_seconds = EXCLUDED.error_seconds, backups = EXCLUDED.backups, size = EXCLUDED.size,
               problems = EXCLUDED.problems
        """,
        [_status_row(verdict, zone=zone, now=now) for verdict, zone in verdicts],
        page_size=1000,
    )


def count_compliance(cursor: Cursor, *, verdicts: Sequence[Verdict], now: datetime) -> None:
    """Add this look to the day's. VMs that nothing was promised for do not count. Days of more than a year ago go."""
    day = now.astimezone(UTC).date()
    counted = [
        (v.facts.vm_id, v.policy.name, int(v.compliant)) for v in verdicts if v.policy and v.compliant is not None
    ]
    if counted:
        execute_values(
            cursor,
            """
            INSERT INTO sla_day (day, vm_id, policy, looks, compliant) VALUES %s
            ON CONFLICT (day, vm_id, policy) DO UPDATE
               SET looks = sla_day.looks + 1, compliant = sla_day.compliant + EXCLUDED.compliant
            """,
            [(day, vm_id, policy, 1, compliant) for vm_id, policy, compliant in counted],
            page_size=1000,
        )
    totals: dict[str, tuple[int, int]] = {}
    for _, policy, compliant in counted:
        looks, kept = totals.get(policy, (0, 0))
        totals[policy] = looks + 1, kept + compliant
    for policy, (looks, kept) in totals.items():
        cursor.execute(
            """
            INSERT INTO sla_policy_day (day, policy, looks, compliant) VALUES (%s, %s, %s, %s)
            ON CONFLICT (day, policy) DO UPDATE
               SET looks = sla_policy_day.looks + EXCLUDED.looks,
                   compliant = sla_policy_day.compliant + EXCLUDED.compliant
            """,
            (day, policy, looks, kept),
        )
    cursor.execute("DELETE FROM sla_day WHERE day < %s::date - 400", (day,))
    cursor.execute("DELETE FROM sla_policy_day WHERE day < %s::date - 400", (day,))


def _recent(row: Any) -> RecentBackup:
    return RecentBackup(
        external_id=row["external_id"],
        status=BackupStatus(row["status"]),
        created_at=row["created_at"],
        changed=row["changed"],
        volumes=dict(zip(row["sources"] or (), row["sizes"] or (), strict=True)),
        error=row["error"] or "",
    )


def _status_row(verdict: Verdict, *, zone: str | None, now: datetime) -> tuple[Any, ...]:
    facts, policy = verdict.facts, verdict.policy
    rpo = policy.rpo if policy is not None else None
    return (
        facts.vm_id,
        policy.name if policy is not None else None,
        zone,
        verdict.status.value,
        now,
        facts.newest_at,
        facts.verified_at,
        facts.drilled_at,
        rpo.warn_after.total_seconds() if rpo else None,
        rpo.error_after.total_seconds() if rpo else None,
        facts.backups,
        facts.size,
        Json(
            [{key: value for key, value in asdict(finding).items() if key != "subject"} for finding in verdict.findings]
        ),
    )
