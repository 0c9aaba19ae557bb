"""Airflow's deadline of a run of ``nas_backup``: somebody is told at once when it takes too long.

The interval is the Variable ``nas.backup.deadline.seconds``. It is read here, while the DAG file is parsed, and not by
Airflow's ``VariableInterval``: that raises while a run is made when there is no such Variable or it is no number, so a
slip of the pen would cost every backup.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

from nasbackup.airflow import variables
from nasbackup.settings import DEFAULT_DEADLINE

log = logging.getLogger(__name__)


def backup_deadline() -> DeadlineAlert:
    """From when the run was queued: one that no worker takes is late as well."""
    interval = _interval()
    return DeadlineAlert(
        name="backup takes too long",
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=interval,
        callback=AsyncCallback(missed, kwargs={"seconds": int(interval.total_seconds())}),
    )


def _interval() -> timedelta:
    try:
        return variables.deadline()
    except Exception as error:  # also: nobody to ask, where DAG files are parsed without an Airflow
        log.warning("The deadline of nas_backup is %s: %s", DEFAULT_DEADLINE, error)
        return DEFAULT_DEADLINE


async def missed(context: dict[str, Any], seconds: int) -> None:
    """Open the alert and tell its channels; in the triggerer. The next look of nas_sla_watch closes it in time."""
    from nasbackup.airflow import hooks

    catalog = await hooks.catalog_async()
    await asyncio.to_thread(_tell, catalog, conf=context["dag_run"]["conf"] or {}, deadline=timedelta(seconds=seconds))


def _tell(catalog: Any, *, conf: dict[str, Any], deadline: timedelta) -> None:
    from nasbackup import fleet
    from nasbackup.catalog import vms
    from nasbackup.sla.findings import Subject, SubjectKind
    from nasbackup.sla.freshness import overdue
    from nasbackup.steps import alerts

    with catalog.transaction() as cursor:
        uuid = vms.find_uuid(cursor, name=conf.get("vm", ""), host=conf.get("host", ""))
    if uuid is None:
        log.warning("A run is late, and its VM is not known to the catalog yet: %s", conf)
        return
    subject = Subject(kind=SubjectKind.VM, key=uuid, label=conf["vm"])
    finding = overdue(subject=subject, what=f"A backup of {conf['vm']}", took=deadline, deadline=deadline)
    alerts.settle(catalog, findings=[finding], looked_at=(), channels=fleet.load().channels, now=datetime.now(UTC))
