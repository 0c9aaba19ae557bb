"""The same as JSON, for charts and for people's own programs. Times are ISO 8601, sizes bytes, lengths seconds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from uuid import UUID

from fastapi import APIRouter, HTTPException

from nasbackup.catalog import Cursor, looks
from nasbackup.catalog.pages import fleet, history, running, stock
from nasbackup.web import views
from nasbackup.web.params import Pages, WantedAlerts, WantedVms
from nasbackup.web.site import Here

router = APIRouter(prefix="/api")


@router.get("/fleet")
def fleet_api(page: Here, wanted: WantedVms, paging: Pages) -> dict[str, Any]:
    """A page of the table, and how many VMs are in which state."""
    with page.reading() as cursor:
        counts = fleet.counts(cursor, wanted=wanted)
        return {
            "total": sum(counts[status] for status in wanted.statuses or counts),
            "page": paging.page,
            "per": paging.per,
            "last_look": looks.last(cursor, hosts=page.hosts()).at,
            "counts": counts,
            "vms": [_public(row) for row in fleet.rows(cursor, wanted=wanted)],
        }


@router.get("/compliance")
def compliance_api(page: Here) -> dict[str, Any]:
    """Each policy over the last 30 days: percent of looks, the objective, percent of the error budget that is left."""
    with page.reading() as cursor:
        found = views.policies(cursor, page)
    return {
        "policies": [
            {**asdict(policy), "percent": policy.percent, "met": policy.met, "budget_left": policy.budget_left}
            for policy in found
        ]
    }


@router.get("/vms/{uuid}")
def vm_api(page: Here, uuid: UUID, paging: Pages) -> dict[str, Any]:
    """One VM and a page of its backups, the newest first."""
    with page.reading() as cursor:
        vm = _vm(cursor, uuid)
        rows = history.backups_of(cursor, vm_id=vm.vm_id, limit=paging.per, offset=paging.offset)
        return {
            "vm": _public(vm),
            "total": history.count_of(cursor, vm_id=vm.vm_id),
            "page": paging.page,
            "per": paging.per,
            "backups": [
                {**asdict(row), "duration": row.duration, "throughput": row.throughput, "generated": row.generated}
                for row in rows
            ],
            "drills": [asdict(drill) for drill in history.drills_of(cursor, vm_id=vm.vm_id)],
        }


@router.get("/vms/{uuid}/series")
def series_api(page: Here, uuid: UUID) -> dict[str, Any]:
    """Columns for charts, the oldest backup first."""
    with page.reading() as cursor:
        vm = _vm(cursor, uuid)
        return views.series(history.backups_of(cursor, vm_id=vm.vm_id, limit=views.DRAWN))


@router.get("/running")
def running_api(page: Here) -> dict[str, Any]:
    """Backups that are being made, with the progress of each volume."""
    with page.reading() as cursor:
        found = running.running(cursor)
    return {
        "running": [
            {
                **asdict(backup),
                "copies": [
                    {**asdict(copy), "speed": copy.speed, "share": copy.share, "remaining": copy.remaining}
                    for copy in backup.copies
                ],
            }
            for backup in found
        ]
    }


@router.get("/repositories")
def repositories_api(page: Here) -> dict[str, Any]:
    """How full each is and was, and the forecast."""
    with page.reading() as cursor:
        found = views.repositories(stock.repositories(cursor), page)
    return {
        "repositories": [
            {
                **asdict(view.row),
                "forecast": view.forecast.facts() if view.forecast else None,
                "warning": view.warning,
            }
            for view in found
        ]
    }


@router.get("/alerts")
def alerts_api(page: Here, wanted: WantedAlerts, paging: Pages) -> dict[str, Any]:
    """Open alerts, the worst first; or closed ones, the last first."""
    with page.reading() as cursor:
        found, total = views.alerts(cursor, wanted=wanted, paging=paging)
    return {"total": total, "page": paging.page, "per": paging.per, "alerts": [asdict(alert) for alert in found]}


def _vm(cursor: Cursor, uuid: UUID) -> fleet.Row:
    vm = fleet.one(cursor, uuid=str(uuid))
    if vm is None:
        raise HTTPException(404, f"The catalog knows no VM {uuid}.")
    return vm


def _public(row: fleet.Row) -> dict[str, Any]:
    """Without the catalog's own number, and without what other programs have noted at the VM."""
    return {key: value for key, value in asdict(row).items() if key not in ("vm_id", "metadata")}
