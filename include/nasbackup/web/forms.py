"""Prefilled forms of the DAGs. Airflow carries them out: the browser sends them to its API with the user's own login.

Airflow 3.3's own trigger form cannot be opened with values (apache/airflow#54800), so the page draws the same form from
the same params. To be replaced by links once Airflow's can.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response

from nasbackup.catalog import Cursor, due
from nasbackup.catalog.pages import fleet, history
from nasbackup.web import views
from nasbackup.web.params import Word
from nasbackup.web.site import Here, Page

BACKUP, RESTORE, DRILL = "nas_backup", "nas_restore", "nas_restore_drill"
TRIGGERED = (BACKUP, RESTORE, DRILL)
"""DAGs that the page has forms of."""

router = APIRouter(prefix="/forms")


@router.get("/backup")
def backup_form(page: Here, vm: UUID) -> Response:
    """Back up this VM now."""
    with page.reading() as cursor:
        row = _vm(cursor, str(vm))
        conf = {"vm": row.name, "host": row.host, **_from_policy(page, cursor, row)}
        title, why_not = f"Back up {row.name} now", views.why_no_backup(page, row)
        return _form(page, cursor, dag_id=BACKUP, title=title, vm=row, conf=conf, why_not=why_not)


@router.get("/restore")
def restore_form(page: Here, backup: Word) -> Response:
    """Restore this backup."""
    with page.reading() as cursor:
        row = _vm_of(cursor, backup)
        conf = {"backup": backup, "host": row.host}
        return _form(page, cursor, dag_id=RESTORE, title=f"Restore {backup}", vm=row, conf=conf)


@router.get("/drill")
def drill_form(page: Here, backup: Word) -> Response:
    """Boot this backup, apart from everything, and see whether it answers."""
    with page.reading() as cursor:
        row = _vm_of(cursor, backup)
        return _form(page, cursor, dag_id=DRILL, title=f"Drill {backup}", vm=row, conf={"backup": backup})


def _form(
    page: Page, cursor: Cursor, *, dag_id: str, title: str, vm: fleet.Row, conf: dict[str, Any], why_not: str = ""
) -> Response:
    """``why_not``: nothing can come of it, and there is no form."""
    values = {"dag_id": dag_id, "title": title, "vm": vm, "conf": conf, "why_not": why_not}
    return page.show("form.html", cursor=cursor, view="fleet", **values)


def _from_policy(page: Page, cursor: Cursor, row: fleet.Row) -> dict[str, Any]:
    """What the VM's policy says about its backups."""
    known, _ = page.fleet()
    if known is None or known.find_zone(row.host) is None:
        return {}
    policy = known.policy_of(vm=row.name, host=row.host, title=row.title, metadata=row.metadata)
    if policy is None:
        return {}
    state = due.states(cursor, vm_uuids=[row.uuid]).get(row.uuid)
    holds = state.holds if state is not None else ""
    repository = known.repository_of(policy, host=row.host, vm_uuid=row.uuid, holds=holds)
    return {"repository": repository, **policy.params()}


def _vm(cursor: Cursor, uuid: str) -> fleet.Row:
    row = fleet.one(cursor, uuid=uuid)
    if row is None:
        raise HTTPException(404, f"The catalog knows no VM {uuid}.")
    return row


def _vm_of(cursor: Cursor, external_id: str) -> fleet.Row:
    uuid = history.vm_of_backup(cursor, external_id=external_id)
    if uuid is None:
        raise HTTPException(404, f"There is no backup {external_id!r} in the catalog.")
    return _vm(cursor, uuid)
