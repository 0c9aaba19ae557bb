"""Airflow's deadline of a run of ``nas_backup``: somebody is told at once when it takes too long.

The interval is the Variable ``nas.backup.deadline.seconds``. It is read here, while the DAG file is parsed, and not by
Airflow's ``VariableInterval``: that raises while a run is made when there is no such Variable or it is no number, so a
slip of the pen would cost every backup.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta
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
    """Open the alert and put into the outbox what its channels are told; in the triggerer.

    The next run of nas_sla_watch delivers it, and one of its looks closes it when it is over.
    """
    from nasbackup.airflow import hooks

    catalog, run = await hooks.catalog_async(), context["dag_run"]
    deadline = timedelta(seconds=seconds)
    await asyncio.to_thread(_tell, catalog, run_id=run["dag_run_id"], conf=run["conf"] or {}, deadline=deadline)


def _tell(catalog: Any, *, run_id: str, conf: dict[str, Any], deadline: timedelta) -> None:
    """A policy's own deadline counts in place of ``deadline``, after which this is called: if it is longer nothing is
    said of a backup that has begun, and the look does when its time has come. No look sees a run that has not begun:
    of that it is said now, or never.
    """
    from nasbackup.catalog import late
    from nasbackup.fleet.last_valid import last_valid
    from nasbackup.sla.findings import Subject, SubjectKind
    from nasbackup.sla.freshness import overdue
    from nasbackup.steps import alerts
    from nasbackup.words import span

    known = last_valid()
    name, host = conf.get("vm") or "", conf.get("host") or known.hosts[0]  # as the form of nas_backup has it
    with catalog.transaction() as cursor:
        vm = late.vm_of_run(cursor, run_id=run_id, vm=name, host=host)
    if vm is None:
        log.warning("A run is late, and its VM is not known to the catalog yet: %s", conf)
        return
    policy = known.policy_of(vm=name, host=host, title=vm.title, metadata=vm.metadata)
    promised = (policy and policy.deadline) or deadline
    if vm.ended or (vm.began and promised > deadline):
        return
    subject = Subject(kind=SubjectKind.VM, key=vm.uuid, label=name)
    finding = overdue(subject=subject, what=f"A backup of {name}", took=deadline, deadline=promised)
    if not vm.began:
        was = "is" if promised > deadline else "was"
        text = f"A backup of {name} was asked for {span(deadline)} ago and has not begun"
        finding = replace(finding, text=f"{text}; its deadline {was} {span(promised)}.")
    alerts.settle(catalog, findings=[finding], looked_at=(), channels=known.channels, now=catalog.now())
