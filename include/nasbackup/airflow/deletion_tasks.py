"""Bodies of the tasks of ``nas_retention`` that delete."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from nasbackup import fleet
from nasbackup.airflow import hooks
from nasbackup.airflow.retention_tasks import defined_vms, rules_of
from nasbackup.catalog import Database, backups, deletions
from nasbackup.errors import BackupNotDeletable, HypervisorError, NasError, RequestError, VmBusy
from nasbackup.hypervisor import connect
from nasbackup.model import BackupStatus
from nasbackup.steps import retention
from nasbackup.steps.bitmaps import drop_unneeded
from nasbackup.steps.delete import Deletion, delete, list_files
from nasbackup.steps.lease import held_lease
from nasbackup.steps.ticket import Store

log = logging.getLogger(__name__)

Payload = dict[str, Any]


def delete_of_vm(*, work: Payload, params: Mapping[str, Any], run_id: str) -> Payload:
    """Delete what is still unwanted of one VM, chain by chain. A VM that is busy is left for the next run.

    A repository that is away, or known to nobody any more, keeps no chain elsewhere: its error is raised in the end.
    """
    database = hooks.catalog()
    holder = f"nas_retention/{run_id}"
    # Hours may have gone by, somebody may have been asked: what a rule keeps by now stays. (Named ones have no policy.)
    judged = any(chain["policy"] for chain in work["chains"])
    unwanted = _still_unwanted(database, vm_uuid=work["vm_uuid"], params=params) if judged else None
    chains: list[Payload] = []
    first: NasError | RequestError | None = None
    for chain in work["chains"]:
        try:
            chains.append(_delete_chain(database, chain=chain, unwanted=unwanted, holder=holder))
        except (NasError, RequestError) as error:
            log.error("Chain %s in %s is left: %s", chain["chain"], chain["repository"], error)
            first = first or error
    active = [chain.pop("was_active") for chain in chains]
    if any(active):
        _drop_bitmap(database, work=work, holder=holder)
    if first is not None:
        raise first
    return {"vm": work["vm"], "chains": chains}


def _delete_chain(database: Database, *, chain: Payload, unwanted: Set[str] | None, holder: str) -> Payload:
    """``unwanted``: external ids that no rule keeps; None: nobody asks the rules."""
    store = Store(database=database, repository=hooks.NasHook(nas_conn_id=chain["repository"]).get_conn())
    asked = [external_id for external_id, _ in chain["delete"]]
    wanted = asked if unwanted is None else [name for name in asked if name in unwanted]
    left: list[Payload] = []
    before = list_files(store, vm=chain["chain"].split("/")[0])
    done: list[Deletion] = []
    for name in wanted:
        try:
            done += delete(store, external_ids=[name], holder=holder)
        except (BackupNotDeletable, VmBusy) as error:
            log.warning("%s is left: %s", name, error)
            left.append({"external_id": name, "why": str(error)})
    removed = [removal for deletion in done for removal in deletion.removed]
    settled = {*wanted, *(removal.external_id for removal in removed)}
    pending, why_left = _not_asked_for_again(database, names=[name for name in asked if name not in settled])
    return {
        "chain": chain["chain"],
        "repository": chain["repository"],
        "removed": [asdict(removal) for removal in removed],
        "delete_pending": [
            *({"external_id": found.external_id, "kept_by": found.kept_by} for found in done if found.kept_by),
            *pending,
        ],
        "left": [*left, *why_left],
        "bytes_freed": sum(deletion.bytes_freed for deletion in done),
        "files_before": before,
        "files_after": list_files(store, vm=chain["chain"].split("/")[0]),
        "was_active": any(deletion.was_active for deletion in done),
    }


def _not_asked_for_again(database: Database, *, names: Sequence[str]) -> tuple[list[Payload], list[Payload]]:
    """What became of those that nobody has to delete any more: delete-pending by an earlier try, or left, and why."""
    pending: list[Payload] = []
    left: list[Payload] = []
    with database.transaction() as cursor:
        for name in names:
            found = backups.find_or_none(cursor, external_id=name)
            if found is None:
                left.append({"external_id": name, "why": "gone already: an earlier try deleted it"})
            elif found.status in (BackupStatus.DELETE_PENDING, BackupStatus.DELETING):
                kept_by = deletions.kept_by(cursor, backup_id=found.backup_id)
                pending.append({"external_id": name, "kept_by": kept_by})
            else:
                left.append({"external_id": name, "why": "a rule keeps it by now"})
    return pending, left


def _still_unwanted(database: Database, *, vm_uuid: str, params: Mapping[str, Any]) -> set[str]:
    """In all repositories: an external id names one backup of the whole catalog."""
    known = fleet.load()
    found = retention.report(
        database,
        fleet=known,
        now=datetime.now(UTC),
        defined=defined_vms(known),
        vm_uuid=vm_uuid,
        rules=rules_of(params),
    )
    return {external_id for doomed in found.chains for external_id, _ in doomed.plan.delete}


def _drop_bitmap(database: Database, *, work: Payload, holder: str) -> None:
    """It is of no use any more. A host that is away is no reason to fail: nas_reconcile drops it."""
    try:
        host = hooks.LibvirtHook(libvirt_conn_id=work["host"]).get_conn()
        with (
            held_lease(database, vm_uuid=work["vm_uuid"], vm=work["vm"], holder=holder),
            connect(host) as hypervisor,
        ):
            drop_unneeded(database, hypervisor, vm_uuid=work["vm_uuid"])
    except (HypervisorError, RequestError, VmBusy) as error:
        log.warning("The bitmap of %s is left to nas_reconcile: %s", work["vm"], error)
