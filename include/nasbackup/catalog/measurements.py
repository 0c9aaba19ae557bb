"""The fleet in numbers: a few statements, however many VMs there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from typing import Any

from nasbackup.catalog import capacity, looks, repositories
from nasbackup.catalog.database import Cursor
from nasbackup.retention.capacity import Forecast, forecast
from nasbackup.sla.measured import JudgedVm, LastBackup, LastDrill, LastVolume, Measurements, Name

WINDOWS = (1, 7, 30)
"""Days that compliance is given over: today (UTC), the last week, the last month."""

_PATIENCE = "30s"
"""Who scrapes asks again before long: an answer that takes longer is worth nothing, and must not pile up."""

_VMS = """
    SELECT vm.name AS vm, vm.uuid::text AS uuid, coalesce(s.policy, '') AS policy, coalesce(s.zone, '') AS zone,
           s.status, s.newest_at, s.verified_at, s.drilled_at, s.warn_seconds, s.error_seconds,
           s.backups, s.size
      FROM sla_status s JOIN vm USING (vm_id)
     ORDER BY vm_id
"""

# One index look-up per VM and repository, not one row per backup.
_LAST = """
    SELECT vm.name AS vm, vm.uuid::text AS uuid, coalesce(s.policy, '') AS policy, coalesce(s.zone, '') AS zone,
           r.name AS repository, b.backup_id, b.size, b.seconds,
           v.name AS volume, v.virtual_size, v.bytes_read, v.copy_seconds, v.type, v.verified_at
      FROM vm
     CROSS JOIN repository r
     CROSS JOIN LATERAL (
           SELECT backup_id, size, extract(epoch FROM recorded_at - created_at)::double precision AS seconds
             FROM backup
            WHERE vm_id = vm.vm_id AND repository_id = r.repository_id AND status = 'BackedUp'
            ORDER BY begun DESC LIMIT 1
           ) b
      JOIN backup_volume v USING (backup_id)
      LEFT JOIN sla_status s ON s.vm_id = vm.vm_id
     WHERE vm.defined
     ORDER BY vm.vm_id, r.repository_id, v.ordinal
"""

_DRILLS = """
    SELECT DISTINCT ON (d.vm_id)
           vm.name AS vm, vm.uuid::text AS uuid, coalesce(s.policy, '') AS policy, coalesce(s.zone, '') AS zone,
           d.result, d.finished_at, good.rto_seconds
      FROM drill d
      JOIN vm USING (vm_id)
      LEFT JOIN sla_status s USING (vm_id)
      LEFT JOIN (
           SELECT DISTINCT ON (vm_id) vm_id, rto_seconds FROM drill WHERE result = 'ok'
            ORDER BY vm_id, started_at DESC
           ) good USING (vm_id)
     WHERE vm.defined
     ORDER BY d.vm_id, d.started_at DESC
"""


def measure(cursor: Cursor, *, now: datetime, hosts: Sequence[str] | None = None) -> Measurements:
    """All of one moment: the transaction, which has to begin here, sees nothing of what is written meanwhile.

    ``hosts``: those of fleet.yaml, which have to be looked at; None: all that the catalog knows.
    """
    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
    cursor.execute("SELECT set_config('statement_timeout', %s, true)", (_PATIENCE,))
    return Measurements(
        looked_at=looks.last(cursor, hosts=hosts).at,
        vms=_judged(cursor),
        last=_last(cursor),
        drills=_drills(cursor),
        repositories=_forecasts(cursor, now=now),
        backups=_counts(cursor),
        compliance=_compliance(cursor, today=now.astimezone(UTC).date()),
        alerts=_alerts(cursor),
        undelivered=_undelivered(cursor),
    )


def _name(row: Mapping[str, Any]) -> Name:
    return Name(vm=row["vm"], uuid=row["uuid"], policy=row["policy"], zone=row["zone"])


def _judged(cursor: Cursor) -> list[JudgedVm]:
    """The verdicts of the last look."""
    cursor.execute(_VMS)
    return [
        JudgedVm(
            name=_name(row),
            status=row["status"],
            newest_at=row["newest_at"],
            verified_at=row["verified_at"],
            drilled_at=row["drilled_at"],
            warn_seconds=row["warn_seconds"],
            error_seconds=row["error_seconds"],
            backups=row["backups"],
            size=row["size"],
        )
        for row in cursor.fetchall()
    ]


def _last(cursor: Cursor) -> list[LastBackup]:
    cursor.execute(_LAST)
    found = []
    for _, group in groupby(cursor.fetchall(), key=lambda row: row["backup_id"]):
        volumes = list(group)
        first = volumes[0]
        incremental = all(volume["type"] == "INCREMENTAL" for volume in volumes)
        found.append(
            LastBackup(
                name=_name(first),
                repository=first["repository"],
                size=first["size"],
                seconds=first["seconds"],
                incremental=incremental,
                verified=all(volume["verified_at"] is not None for volume in volumes),
                changed=sum(volume["bytes_read"] or 0 for volume in volumes) if incremental else None,
                volumes=tuple(
                    LastVolume(
                        name=volume["volume"],
                        virtual_size=volume["virtual_size"],
                        bytes_read=volume["bytes_read"],
                        copy_seconds=volume["copy_seconds"],
                    )
                    for volume in volumes
                ),
            )
        )
    return found


def _drills(cursor: Cursor) -> list[LastDrill]:
    cursor.execute(_DRILLS)
    return [
        LastDrill(
            name=_name(row),
            ok=row["result"] == "ok",
            finished_at=row["finished_at"],
            rto_seconds=row["rto_seconds"],
        )
        for row in cursor.fetchall()
    ]


def _forecasts(cursor: Cursor, *, now: datetime) -> dict[str, Forecast]:
    names = [registered.repository.name for registered in repositories.list_all(cursor)]
    samples = {name: capacity.samples(cursor, repository=name, now=now) for name in names}
    return {name: forecast(found) for name, found in samples.items() if found}


def _counts(cursor: Cursor) -> dict[tuple[str, str, str], int]:
    cursor.execute(
        "SELECT r.name, b.type, b.status, b.count FROM (SELECT repository_id, type, status, count(*) FROM backup"
        " GROUP BY repository_id, type, status) b JOIN repository r USING (repository_id) ORDER BY 1, 2, 3"
    )
    return {(row["name"], row["type"], row["status"]): row["count"] for row in cursor.fetchall()}


def _compliance(cursor: Cursor, *, today: date) -> dict[tuple[str, int], float]:
    found = {}
    for days in WINDOWS:
        cursor.execute(
            "SELECT policy, sum(compliant)::double precision / sum(looks) AS ratio FROM sla_policy_day"
            " WHERE day > %s GROUP BY policy HAVING sum(looks) > 0 ORDER BY policy",
            (today - timedelta(days=days),),
        )
        found.update({(row["policy"], days): row["ratio"] for row in cursor.fetchall()})
    return found


def _alerts(cursor: Cursor) -> dict[str, int]:
    cursor.execute("SELECT severity, count(*) FROM alert WHERE closed_at IS NULL GROUP BY severity")
    return {row["severity"]: row["count"] for row in cursor.fetchall()}


def _undelivered(cursor: Cursor) -> dict[str, int]:
    cursor.execute(
        "SELECT channel, count(*) FROM alert_delivery WHERE delivered_at IS NULL GROUP BY channel ORDER BY 1"
    )
    return {row["channel"]: row["count"] for row in cursor.fetchall()}
