"""The views as HTML."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import RedirectResponse, Response

from nasbackup.catalog import Cursor
from nasbackup.catalog.pages import alerts, fleet, history, running, stock
from nasbackup.catalog.pages import now as catalog_now
from nasbackup.web import views
from nasbackup.web.chain_picture import draw
from nasbackup.web.compliance import DEFAULT_SLO, compliance
from nasbackup.web.params import BackupId, Pages, WantedAlerts, WantedVms, Word
from nasbackup.web.site import Here

router = APIRouter()


@router.get("/")
def fleet_page(page: Here, wanted: WantedVms, paging: Pages) -> Response:
    """All VMs, and whether the promises are kept."""
    with page.reading() as cursor:
        counts = fleet.counts(cursor, wanted=wanted)
        total = sum(counts[status] for status in wanted.statuses or counts)
        return page.show(
            "fleet.html",
            cursor=cursor,
            view="fleet",
            rows=fleet.rows(cursor, wanted=wanted),
            counts=counts,
            everything=sum(counts.values()),
            total=total,
            last=paging.last(total),
            paging=paging,
            wanted=wanted,
            statuses=list(fleet.VmStatus),
            sorts=fleet.Sort,
            places=fleet.places(cursor),
            policies=views.policies(cursor, page),
        )


@router.get("/vms/{uuid}")
def vm_page(
    page: Here,
    uuid: UUID,
    paging: Pages,
    chains: Annotated[int, Query(ge=1, le=views.DRAWN)] = 4,
    backup: BackupId = None,
) -> Response:
    """One VM: its chains, its history, what to do. ``backup`` is marked, and shown unless a page is asked for."""
    with page.reading() as cursor:
        vm = fleet.one(cursor, uuid=str(uuid))
        if vm is None:
            raise HTTPException(404, f"The catalog knows no VM {uuid}.")
        if backup is not None and "page" not in page.request.query_params:
            paging = paging.holding(history.newer_than(cursor, vm_id=vm.vm_id, backup_id=backup) or 0)
        newest = history.backups_of(cursor, vm_id=vm.vm_id, limit=views.DRAWN)
        total = history.count_of(cursor, vm_id=vm.vm_id)
        opened, _ = alerts.alerts(cursor, open_ones=True, subject=vm.uuid)
        closed, _ = alerts.alerts(cursor, open_ones=False, subject=vm.uuid, limit=5)
        return page.show(
            "vm.html",
            cursor=cursor,
            view="fleet",
            vm=vm,
            why_no_backup=views.why_no_backup(page, vm),
            picture=draw(views.links(newest), most=chains),
            drawn=views.DRAWN,
            backups=history.backups_of(cursor, vm_id=vm.vm_id, limit=paging.per, offset=paging.offset),
            newest=next((row for row in newest if row.status == "BackedUp"), None),
            marked=backup,
            total=total,
            paging=paging,
            last=paging.last(total),
            drills=history.drills_of(cursor, vm_id=vm.vm_id),
            compliance=_compliance(cursor, page, vm),
            opened=opened,
            closed=closed,
        )


def _compliance(cursor: Cursor, page: Here, vm: fleet.Row) -> object:
    days = fleet.vm_days(cursor, vm_id=vm.vm_id)
    return compliance(
        name=vm.policy or "",
        slo=views.objectives(page).get(vm.policy or "", DEFAULT_SLO),
        counted=[(day.day, day.looks, day.compliant) for day in days],
        today=catalog_now(cursor).date(),
    )


@router.get("/running")
def running_page(page: Here) -> Response:
    """Backups that are being made."""
    with page.reading() as cursor:
        return page.show("running.html", cursor=cursor, view="running", running=running.running(cursor))


@router.get("/repositories")
def repositories_page(page: Here) -> Response:
    """How full, and when full."""
    with page.reading() as cursor:
        found = views.repositories(stock.repositories(cursor), page)
        return page.show("repositories.html", cursor=cursor, view="repositories", repositories=found)


@router.get("/alerts")
def alerts_page(page: Here, wanted: WantedAlerts, paging: Pages) -> Response:
    """What is wrong now, or was."""
    with page.reading() as cursor:
        found, total = views.alerts(cursor, wanted=wanted, paging=paging)
        return page.show(
            "alerts.html",
            cursor=cursor,
            view="alerts",
            alerts=found,
            closed=wanted.closed,
            severity=wanted.severity.value,
            q=wanted.search,
            total=total,
            paging=paging,
            last=paging.last(total),
        )


@router.get("/runs")
def run_page(page: Here, run_id: Word, dag_id: Word = "nas_backup") -> Response:
    """Where the link on a DAG run or task instance leads: to the VM that the run backs up, if it is such a run."""
    with page.reading() as cursor:
        found = history.backup_of_run(cursor, run_id=f"{dag_id}/{run_id}") if dag_id == "nas_backup" else None
        if found is not None:
            return RedirectResponse(f"{page.base}/vms/{found.vm_uuid}?backup={found.backup_id}#b{found.backup_id}")
        return page.show("run.html", cursor=cursor, view="", dag_id=dag_id, run_id=run_id)
